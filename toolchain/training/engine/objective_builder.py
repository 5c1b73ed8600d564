"""`build_objective`: a finished training objective from a student, its teacher and samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.data.calibration import CalibrationData
from toolchain.graph import io, run
from toolchain.training.engine.comparison import (
    ComparedTensors,
    Teacher,
    candidate_tensors,
    largest_bytes,
    with_equal_shapes,
)
from toolchain.training.engine.feature_adapters import FeatureAdapters
from toolchain.training.engine.objective import LossConfig, Objective
from toolchain.training.engine.samples import MAX_BYTES, Example, Samples, joined
from toolchain.training.engine.scaled_weights import scale_weights
from toolchain.training.engine.technique import Technique
from toolchain.training.engine.torch_graph import TorchGraph

MIN_PART = 4
"""Smallest number of samples that one thread computes at once, where samples can be stacked."""
PART_CACHE_BYTES = 1 << 20
"""Parts are enlarged until their largest tensor has this size."""
ADAPTER_SAMPLES = 16
"""Number of samples that feature adapters are first fitted to."""
STACKING_TOLERANCE = 1e-3
"""Largest relative difference between two samples computed together and one by one."""


def build_objective(
    student: ir.Model,
    teacher: ir.Model,
    data: CalibrationData,
    *,
    technique: Technique | None = None,
    config: LossConfig | None = None,
    seed: int = 0,
) -> Objective:
    """Build the training objective of a student.

    The steps, each from the results of those before it:

    1. the student in torch, and its weights in their own units
    2. the samples
    3. the tensors that can be compared by name, and a teacher that computes them
    4. one sample through both: tensors of equal shape stay
    5. the size of a part, and whether the teacher's tensors are kept
    6. adapters, fitted to the first samples
    7. the technique at the beginning of the training

    Args:
        student: the model to train; it is not changed.
        teacher: a float model with inputs of the same names.
        data: samples to train on.
        technique: made for this student; None: plain training.
        config: composition of the loss; None: the defaults.
        seed: decides which samples a step draws.

    Raises:
        ModelError: an operator cannot be trained through, the student has no weights, or it has no float output of the
            shape of the teacher's.
        InputError: a feature cannot be compared.
    """
    technique, config = technique or Technique(), config or LossConfig()
    graph = TorchGraph(student)
    if not graph.parameters:
        raise ModelError("has no weights that could be trained", where=student.graph.name, hint="leave training out")
    weights = scale_weights(graph, revives=technique.revives)
    samples = Samples(data, augment=config.augment)
    candidates = candidate_tensors(student, teacher, inner=config.inner, features=config.features)
    goals = Teacher(teacher, candidates.teacher_names)
    compared, sample_bytes = _compare_shapes(candidates, graph, goals, samples.examples[0], str(student.graph.name))
    objective = Objective(
        graph=graph,
        technique=technique,
        config=config,
        seed=seed,
        samples=samples,
        weights=weights,
        compared=compared,
        teacher=goals,
        part=_part_size(student, teacher, graph, samples, compared, config),
        goals=None if samples.augment or sample_bytes * len(samples) > MAX_BYTES else {},
        adapters=_fit_adapters(graph, goals, samples, compared.features),
    )
    technique.advance(weights.dense(), 0.0)
    return objective


def _compare_shapes(
    candidates: ComparedTensors, graph: TorchGraph, teacher: Teacher, example: Example, where: str
) -> tuple[ComparedTensors, int]:
    """Run one sample through student and teacher; keep the tensors of equal shape.

    Returns:
        The tensors, and the bytes that the teacher's take for one sample.
    """
    import torch

    of_teacher = {name: tuple(value.shape) for name, value in teacher(example, candidates.names).items()}
    with torch.no_grad():
        of_student = {name: tuple(value.shape) for name, value in graph(example, candidates.names).items()}
    compared = with_equal_shapes(candidates, of_student, of_teacher, where)
    return compared, sum(4 * int(np.prod(of_teacher[name], dtype=np.int64)) for name in compared.names)


def _part_size(
    student: ir.Model,
    teacher: ir.Model,
    graph: TorchGraph,
    samples: Samples,
    compared: ComparedTensors,
    config: LossConfig,
) -> int:
    """Choose how many samples one thread computes at once: as many as fit its cache, 1 if they cannot be stacked."""
    if not _can_stack(student, teacher, graph, samples.examples, compared.names):
        return 1
    if config.batch_statistics:
        return config.batch
    return min(max(MIN_PART, PART_CACHE_BYTES // largest_bytes(student)), config.batch)


def _can_stack(
    student: ir.Model, teacher: ir.Model, graph: TorchGraph, examples: Sequence[Example], names: Sequence[str]
) -> bool:
    """Check whether two samples give the same results together as one by one."""
    import torch

    specs = [*io.inputs(student), *io.inputs(teacher)]
    first, last = examples[0], examples[-1]
    if any(not spec.dims or isinstance(spec.dims[0], int) for spec in specs):
        return False
    if len({tuple(value.shape for value in example.values()) for example in examples}) > 1:
        return False
    with torch.no_grad():
        try:
            together = graph(joined([first, last]), names)
        except RuntimeError:  # a Reshape to a constant shape
            return False
        alone = joined([graph(first, names), graph(last, names)])
    return all(run.relative_error(alone[n].numpy(), together[n].numpy()) < STACKING_TOLERANCE for n in names)


def _fit_adapters(graph: TorchGraph, teacher: Teacher, samples: Samples, names: Sequence[str]) -> FeatureAdapters:
    """Fit the adapters of features to the untrained student, on the first samples."""
    import torch

    if not names:
        return FeatureAdapters({}, {})
    first = samples.examples[:ADAPTER_SAMPLES]
    with torch.no_grad():
        of_student = joined([graph(example, names) for example in first])
    return FeatureAdapters(of_student, joined([teacher(example, names) for example in first]))
