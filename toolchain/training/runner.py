"""`run_training`: the steps of a training recipe in order, each from the result of the step before it.

The teacher of every step is the model that the recipe started with. The results of finished steps and the state of the
current one are stored in a folder, so an interrupted run can be resumed; on one thread it gives the same bits as a run
without interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import onnx_ir as ir

from toolchain.channels.cut import separate
from toolchain.conversion.source import convert
from toolchain.core.errors import ModelError
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData, open_data
from toolchain.formats.target import Encoding
from toolchain.formats.training_recipe import (
    BinaryStep,
    DistilStep,
    Int8Step,
    PowerOfTwoStep,
    PruneStep,
    ShareStep,
    Step,
    TrainingRecipe,
)
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.training.engine.batch_norms import with_batch_norms
from toolchain.training.engine.comparison import paired_outputs
from toolchain.training.engine.distil import require_trainable
from toolchain.training.engine.feature_adapters import feature_pairs
from toolchain.training.engine.technique import Technique
from toolchain.training.prune_step import prune_in_rounds, prune_step
from toolchain.training.step import (
    BN_INIT_SAMPLES,
    StepResult,
    TrainingContext,
    load_or_make,
    step_result,
    train_student,
    without_labels,
)
from toolchain.training.techniques import codebook_weights, qat
from toolchain.training.techniques.codebook import Codebook, own_gradients

LOGGER = logging.getLogger(__name__)

ENCODINGS: tuple[Encoding, ...] = ("u8", "s8")
IMPORTANCE_SAMPLES = 64
"""Number of samples that the importance of weights is computed from."""
RANGE_SAMPLES = 512
"""Number of samples that quantization ranges are computed from."""


def run_training(
    model: ir.Model,
    recipe: TrainingRecipe,
    data: CalibrationData,
    held: CalibrationData,
    *,
    folder: Path,
    students: Mapping[str, ir.Model] | None = None,
    progress: Progress = silent,
) -> list[StepResult]:
    """Run the steps of a training recipe.

    Args:
        model: an optimized float model; also the teacher.
        recipe: the steps.
        data: samples to train on, with labels or without.
        held: samples to evaluate on.
        folder: holds the results of finished steps and the state of the current one; an empty one starts a new run.
        students: the result of :func:`read_students`; None: they are read here.
        progress: called at every step.

    Returns:
        The result of each step, in order.

    Raises:
        ModelError: torch is not installed; an operator cannot be trained through; nothing can be pruned.
        InputError: the state of an interrupted run cannot be loaded.
    """
    students = read_students(model, recipe) if students is None else students
    context = TrainingContext(separate(model), data, held, recipe, students, folder, progress)
    results: list[StepResult] = []
    for number, step in enumerate(recipe.steps):
        # Optimizing unpacks the codes of a codebook step.
        current = separate(optimize(results[-1].model).model) if results else context.teacher
        results.append(_run_step(context, f"step-{number}", current, step))
        record = results[-1].record
        LOGGER.info("step %d of %d, %s: %s, %.0f s", number + 1, len(recipe.steps), record.technique, record.summary,
                    record.seconds)  # fmt: skip
    return results


def read_students(model: ir.Model, recipe: TrainingRecipe) -> dict[str, ir.Model]:
    """Read the models that steps of a recipe name as `student`: ONNX files or callables that return a module.

    Returns:
        Models by the name in the recipe.

    Raises:
        InputError and its subclasses: a student is not a model, or cannot be trained or compared with the teacher.
    """
    students: dict[str, ir.Model] = {}
    for step in recipe.steps:
        if not isinstance(step, DistilStep):
            continue
        if step.student is not None and step.student not in students:
            inputs = () if step.student.endswith(".onnx") else io.inputs(model)
            student = separate(optimize(convert(step.student, inputs=inputs).model).model)
            require_trainable(student)
            paired_outputs(student, model)
            students[step.student] = student
        feature_pairs(students[step.student] if step.student else model, model, step.features)
    return students


def encoded_path(folder: Path, encoding: Encoding) -> Path:
    """Return the file of a recipe that ends in int8, in one encoding; all encodings hold the same integers."""
    return folder / f"{encoding}.onnx"


def _run_step(context: TrainingContext, key: str, model: ir.Model, step: Step) -> StepResult:
    if isinstance(step, PruneStep):
        if step.schedule == "iterative":
            return prune_in_rounds(context, key, model, step)
        return load_or_make(context, key, partial(prune_step, context, model, step, step.amount))
    if isinstance(step, DistilStep):
        return load_or_make(context, key, partial(_distil_step, context, model, step))
    if isinstance(step, ShareStep | PowerOfTwoStep | BinaryStep):
        return load_or_make(context, key, partial(_codebook_step, context, model, step))
    return load_or_make(context, key, partial(_int8_step, context, model, step))


def _distil_step(context: TrainingContext, model: ir.Model, step: DistilStep, key: str) -> StepResult:
    """Train the current model or the user's student; batch normalizations of an untrained one are folded away."""
    untrained = False
    if step.student is not None:
        untrained = not step.student.endswith(".onnx") if step.fresh is None else step.fresh
        model = context.students[step.student]
    if untrained:
        model = with_batch_norms(model, without_labels(context.data.take(BN_INIT_SAMPLES)))
    objective, fitted = train_student(context, key, model, step, Technique(), batch_norms=untrained)
    trained = objective.to_model() if fitted.improved else model
    trained = separate(optimize(trained).model) if untrained else trained
    student = f"{step.student}, " if step.student else ""
    return step_result(trained, step, f"{student}distilled from the float model", fitted)


def _codebook_step(
    context: TrainingContext, model: ir.Model, step: ShareStep | PowerOfTwoStep | BinaryStep, key: str
) -> StepResult:
    """Train weights that take few values, and store them as codes."""
    importance = None
    if isinstance(step, ShareStep):
        channels = step.per if isinstance(step.per, int) else 1 if step.per == "channel" else None
        kind: codebook_weights.CodebookKind = codebook_weights.SharedWeights(step.bits, channels)
        importance = own_gradients(model, context.data.take(IMPORTANCE_SAMPLES), context.recipe.seed)
        scope = step.per if isinstance(step.per, str) else f"{step.per} channels"
        summary = f"{2**step.bits} values per {scope}"
    elif isinstance(step, PowerOfTwoStep):
        kind = codebook_weights.PowerOfTwoWeights(step.bits, step.terms)
        summary = f"{step.bits} bits, {'powers' if step.terms == 1 else 'sums of two powers'} of two"
    else:
        kind, summary = codebook_weights.BinaryWeights(), "one value and its negative per channel"
    technique = Codebook(model, kind, importance=importance)
    objective, fitted = train_student(context, key, model, step, technique)
    note = "Not faster: onnxruntime unpacks the codes when it loads the file, and computes with floats."
    coded = technique.finish(objective.to_model())
    return step_result(coded, step, summary, fitted, [note], dense=optimize(coded).model)


def _int8_step(context: TrainingContext, model: ir.Model, step: Int8Step, key: str) -> StepResult:
    """Train from the plan of static int8 to one with better weights and scales; the result is the quantized file.

    Raises:
        ModelError: no operator can be int8.
    """
    samples = (context.data.take(RANGE_SAMPLES), context.held)
    data, check = (open_data(without_labels(some), io.inputs(model)) for some in samples)
    float_nodes = context.folder / f"{key}-float-nodes.json"
    quantized = qat.static_plan(model, data, check, float_nodes, context.progress)
    if not quantized.plan.products:
        raise ModelError("has no product that could be int8", where=key, hint="leave the step out")
    student = qat.qat_student(quantized)
    objective, fitted = train_student(context, key, student.model, step, student.technique, inner=False)
    if fitted.improved:
        quantized = qat.trained_plan(student, objective.to_model())
    for encoding in ENCODINGS:
        io.save(quantized.write(encoding), encoded_path(context.folder, encoding))
    int8 = quantized.plan.int8_nodes()
    summary = f"{len(int8)} of {len(quantized.plan.choices)} operators in int8, trained with their rounding"
    model = quantized.write(quantized.encoding)
    return step_result(model, step, summary, fitted, quantized.notes, dense=quantized.model)
