"""`distil`: a pruned model is trained, without labels, to compute what the original model computes.

The loss is that of :mod:`toolchain.training.engine.objective`, the loop that of :mod:`toolchain.training.engine.loop`.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.core.errors import InputError, ModelError
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.formats.findings import Evaluation
from toolchain.training.engine.loop import DEFAULT_RATE, Clock, Schedule, fit
from toolchain.training.engine.objective_builder import build_objective
from toolchain.training.engine.torch_graph import check_operators

MAX_CHECK_SAMPLES = 64
"""Largest number of held-out samples that are used."""


@dataclass(frozen=True)
class Distilled:
    """A trained model.

    Attributes:
        model: the student after training; the unchanged student where training did not lower the loss.
        before: evaluation of held-out samples before training.
        after: the same for `model`.
        steps: number of steps taken.
        seconds: time taken.
    """

    model: ir.Model
    before: Evaluation
    after: Evaluation
    steps: int
    seconds: float


def require_trainable(model: ir.Model) -> None:
    """Check that a model can be trained. Called early, so that the error does not come after minutes of work.

    Raises:
        ModelError: torch is not installed, or an operator cannot be trained through.
    """
    if importlib.util.find_spec("torch") is None:
        hint = "pip install 'edge-toolchain[torch]'"
        raise ModelError("torch is not installed, and training needs it", where=model.graph.name, hint=hint)
    check_operators(model)


def distil(
    student: ir.Model,
    teacher: ir.Model,
    data: CalibrationData,
    *,
    minutes: float,
    steps: int | None = None,
    seed: int = 0,
    rate: float = DEFAULT_RATE,
    check: CalibrationData | None = None,
    threads: int = 0,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
) -> Distilled:
    """Train `student` to compute what `teacher` computes.

    Args:
        student: the teacher with channels or whole branches removed; it is not changed. Inner tensors with the name and
            shape of one of the teacher's are expected to mean the same.
        teacher: a float model with the same inputs and outputs.
        data: samples to train on; the first that fit into 512 MiB are used.
        minutes: time limit, everything included.
        steps: number of steps; training stops earlier when the time is up. With a number of steps the result is
            reproducible, with a time alone it is not.
        seed: for the order of the samples and their random changes.
        rate: the highest learning rate.
        check: held-out samples, at most 64 of them are used; None holds some of `data` back.
        threads: 0 takes one for every processor.
        progress: called at every step.
        clock: measures the time.

    Raises:
        ModelError: torch is not installed; an operator cannot be trained through; nothing to train or to compare.
        InputError: `minutes` or `steps` is not positive.
    """
    started = clock()
    if not minutes > 0 or (steps is not None and steps < 1):
        what = f"got {minutes:g} minutes and {steps} steps"
        raise InputError(what, where="training", hint="give a time above 0 and at least one step")
    require_trainable(student)
    if check is None:
        data, check = data.split()
    objective = build_objective(student, teacher, data, seed=seed)
    fitted = fit(
        objective,
        check.take(MAX_CHECK_SAMPLES),
        Schedule(minutes, steps, rate),
        started=started,
        threads=threads,
        progress=progress,
        clock=clock,
    )
    return Distilled(
        model=objective.to_model() if fitted.improved else student,
        before=fitted.checkpoints[0].evaluation,
        after=fitted.checkpoints[fitted.best].evaluation,
        steps=fitted.steps,
        seconds=fitted.seconds,
    )
