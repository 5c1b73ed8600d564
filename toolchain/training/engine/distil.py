"""`distil`: a pruned model learns, without labels, to do what the model it was made from does.

What is compared, and in which units weights move, tells :mod:`toolchain.training.engine.objective`; the loop is
:mod:`toolchain.training.engine.loop`.
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
from toolchain.training.engine.loop import RATE, Schedule, fit
from toolchain.training.engine.objective import Objective
from toolchain.training.engine.torch_graph import check_operators

CHECKED = 64


@dataclass(frozen=True)
class Distilled:
    """A trained model.

    before, after: how the outputs of held-out samples lie to the teacher's. Where training did not lower the loss,
    they are equal and `model` is the student as it was.
    """

    model: ir.Model
    before: Evaluation
    after: Evaluation
    steps: int
    seconds: float


def require_trainable(model: ir.Model) -> None:
    """To be called before anything slow.

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
    rate: float = RATE,
    check: CalibrationData | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Distilled:
    """Train `student` to compute what `teacher` computes.

    Args:
        student: the teacher with channels or whole branches removed; it is not changed. Its tensors that have the
            name and shape of one of the teacher's are taken to mean the same.
        teacher: a float model with the same inputs and outputs.
        data: samples to train on; as many as fit 512 MiB.
        minutes: how long, everything included.
        steps: plan for so many and stop there, or when time is up. The result is the same every time, which that of a
            time cannot be.
        seed: of the order of samples and of what is done to them.
        rate: the highest learning rate.
        check: held-out samples, at most 64 of them; None holds some of `data` back.
        threads: 0 takes one for every processor.
        progress: told about every step.

    Raises:
        ModelError: torch is not installed; an operator cannot be trained through; nothing to train or to compare.
        InputError: no time, or no steps.
    """
    began = time.monotonic()
    if not minutes > 0 or (steps is not None and steps < 1):
        raise InputError(f"{minutes:g} minutes, {steps} steps", where="training", hint="give more than none")
    require_trainable(student)
    if check is None:
        data, check = data.split()
    lesson = Objective(student, teacher, data, seed=seed)
    schedule = Schedule(minutes, steps, rate)
    found = fit(lesson, check.take(CHECKED), schedule, began=began, threads=threads, progress=progress)
    before, after = found.looks[0].evaluation, found.looks[found.kept].evaluation
    return Distilled(lesson.written() if found.improved else student, before, after, found.steps, found.seconds)
