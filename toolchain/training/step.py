"""Parts that all steps of a training recipe share: the context, the training itself, and the record of the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.channels.cut import parameter_count
from toolchain.core.files import write_text
from toolchain.core.progress import Progress
from toolchain.data.calibration import LABELS, CalibrationData
from toolchain.data.tensors import Feed
from toolchain.formats.findings import TrainingStep
from toolchain.formats.training_recipe import DistilStep, LearningSettings, Step, TrainingRecipe
from toolchain.graph import io
from toolchain.graph.sizes import sizes
from toolchain.ops import cost
from toolchain.ops.weights import product_weights
from toolchain.training.engine.loop import Fitted, Schedule, fit
from toolchain.training.engine.objective import LossConfig, Objective
from toolchain.training.engine.objective_builder import build_objective
from toolchain.training.engine.technique import Technique

LOGGER = logging.getLogger(__name__)

EVALUATIONS = 20
"""Number of times in a training that held-out samples are evaluated."""
BN_INIT_SAMPLES = 64
"""Number of samples that inserted batch normalizations take their first statistics from."""
RATE_PRETRAINED, RATE_WITH_BATCH_NORM, RATE_UNTRAINED = 1e-2, 2e-2, 1e-1
"""Peak learning rates: of a pretrained model, of one with batch normalizations inserted, of an untrained student."""
NOT_IMPROVED = (
    "Training did not improve the model; the input model was kept. A lower learning rate, or more and more varied "
    "samples, may help."
)


@dataclass(frozen=True)
class StepResult:
    """The model that a step made, and its record for the report."""

    model: ir.Model
    record: TrainingStep


@dataclass(frozen=True)
class TrainingContext:
    """Inputs and settings that all steps of a recipe share.

    Attributes:
        teacher: the model that the recipe started with.
        data: samples to train on.
        held: samples to evaluate on.
        recipe: the steps and their common settings.
        students: models that steps name as `student`, by that name.
        folder: holds the results of finished steps and the state of the current one.
        progress: called at every step.
    """

    teacher: ir.Model
    data: CalibrationData
    held: CalibrationData
    recipe: TrainingRecipe
    students: Mapping[str, ir.Model]
    folder: Path
    progress: Progress


def load_or_make(context: TrainingContext, key: str, make: Callable[[str], StepResult]) -> StepResult:
    """Make the result of a step and store it, or load it where an earlier run has stored it.

    In both cases the model is read from the folder, so that a resumed run continues with the same bits.

    Args:
        context: inputs and settings of the recipe.
        key: first part of the names of the step's files.
        make: makes the result, given the key.
    """
    model, record = context.folder / f"{key}.onnx", context.folder / f"{key}.json"
    if record.exists():
        LOGGER.info("%s was finished by an earlier run", key)
    else:
        result = make(key)
        io.save(result.model, model)
        write_text(record, result.record.model_dump_json())
        _state_path(context, key).unlink(missing_ok=True)
    return StepResult(io.load(model), TrainingStep.model_validate_json(record.read_text(encoding="utf-8")))


def train_student(
    context: TrainingContext,
    key: str,
    model: ir.Model,
    step: LearningSettings,
    technique: Technique,
    *,
    skip_first: bool = False,
    batch_norms: bool = False,
    inner: bool = True,
    rounds: int = 1,
) -> tuple[Objective, Fitted]:
    """Train a model as a step says.

    Args:
        context: inputs and settings of the recipe.
        key: first part of the name of the state file.
        model: the student.
        step: length, learning rate and loss.
        technique: pruning, codebook or quantization, made for the student.
        skip_first: the state before training cannot be the result.
        batch_norms: the student has batch normalizations inserted, which use the statistics of the batch.
        inner: compare inner tensors of a student that was cut from the teacher.
        rounds: number of trainings that the step's time is divided among.

    Returns:
        The objective in the state of the best checkpoint, and the record of the training.
    """
    config = LossConfig(
        labels=step.labels,
        temperature=step.temperature,
        inner=inner and not batch_norms,
        batch=step.batch,
        augment=step.augment,
        batch_statistics=batch_norms,
        features=step.features if isinstance(step, DistilStep) else None,
    )
    seed = context.recipe.seed
    objective = build_objective(model, context.teacher, context.data, technique=technique, config=config, seed=seed)
    schedule = Schedule(
        minutes=step.minutes / rounds if step.minutes else Schedule.minutes,
        steps=None if step.minutes else objective.samples.steps(step.epochs / rounds, step.batch),
        rate=step.rate or _default_rate(step, batch_norms),
        evaluate_at=tuple((i + 1) / EVALUATIONS for i in range(EVALUATIONS - 1)),
        patience=step.patience,
    )
    length = f"{schedule.minutes:g} minutes" if schedule.steps is None else f"{schedule.steps} steps"
    LOGGER.info("%s: training for %s, peak learning rate %g", key, length, schedule.rate)
    fitted = fit(
        objective,
        context.held,
        schedule,
        threads=context.recipe.threads,
        state_path=_state_path(context, key),
        skip_first=skip_first,
        progress=lambda what, done=0, total=0: context.progress(f"{what}, {key}", done, total),
    )
    return objective, fitted


def _default_rate(step: LearningSettings, batch_norms: bool) -> float:
    if not batch_norms:
        return RATE_PRETRAINED
    return RATE_UNTRAINED if isinstance(step, DistilStep) else RATE_WITH_BATCH_NORM


def _state_path(context: TrainingContext, key: str) -> Path:
    return context.folder / f"{key}-state.pt"


def step_result(
    model: ir.Model,
    step: Step,
    summary: str,
    fitted: Fitted,
    notes: Sequence[str] = (),
    dense: ir.Model | None = None,
) -> StepResult:
    """Record the result of a step.

    Args:
        model: result of the step.
        step: settings of the step.
        summary: a few words for the report.
        fitted: the record of the training.
        notes: sentences for the report.
        dense: the model in floats, where `model` is coded or quantized.
    """
    dense = dense or model
    if fitted.steps and not fitted.improved:
        notes = [*notes, NOT_IMPROVED]
    size = sizes(model)
    zeros = [array == 0 for _, _, array in weight_matrices(dense)]
    record = TrainingStep(
        technique=step.technique,
        summary=summary,
        seconds=fitted.seconds,
        steps=fitted.steps,
        checkpoints=tuple(fitted.checkpoints),
        kept=fitted.best,
        macs=sum(macs or 0 for macs in cost.count(dense).macs.values()),
        parameters=parameter_count(dense),
        zeros=float(np.mean(np.concatenate([z.reshape(-1) for z in zeros]))) if zeros else 0.0,
        bytes=size.raw,
        zip_bytes=size.zipped,
        wire_bytes=size.wire,
        notes=tuple(notes),
    )
    return StepResult(model, record)


def weight_matrices(model: ir.Model) -> list[tuple[ir.Value, int, np.ndarray]]:
    """List the weights of products: the value, the axis that is summed over, and the numbers; each weight once."""
    return list(
        {weight.value: (weight.value, weight.axes.in_, weight.array) for weight in product_weights(model)}.values()
    )


def without_labels(data: CalibrationData) -> list[Feed]:
    """Return the samples without their labels."""
    return [{name: array for name, array in feed.items() if name != LABELS} for feed in data]
