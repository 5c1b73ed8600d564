"""`distil`: a pruned model learns, without labels, to do what the model it was made from does.

Adam with a learning rate that falls along a cosine, on batches of calibration samples. What is compared, and in which
units weights move, tells :mod:`toolchain.train.lesson`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import onnx_ir as ir

from toolchain.data import CalibrationData
from toolchain.errors import InputError, ModelError
from toolchain.train.lesson import Exam, Lesson
from toolchain.train.torch_graph import check_operators

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total): steps where their number is given, else seconds."""

RATE = 1e-3
"""The largest step of a weight, as a share of its channel's root mean square."""
WARM_UP = 0.05
BETAS = (0.9, 0.99)
LONGEST_GRADIENT = 1.0
CHECKS = (0.5, 0.75)
"""Shares of the time after which held-out samples are looked at, besides the beginning and the end."""
CHECKED = 64


@dataclass(frozen=True)
class Distilled:
    """A trained model.

    before, after: how the outputs of held-out samples lie to the teacher's. Where training did not lower the loss,
    they are equal and `model` is the student as it was.
    """

    model: ir.Model
    before: Exam
    after: Exam
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
    progress: Progress | None = None,
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
    with _one_thread_an_operator() as initializer:
        lesson = Lesson(student, teacher, data)
        with ThreadPoolExecutor(threads or os.cpu_count() or 1, initializer=initializer) as pool:
            schedule = _Schedule(began, minutes * 60, steps)
            report = progress or (lambda what, done, total: None)
            return _train(
                student, lesson, check.take(CHECKED), schedule, rate, np.random.default_rng(seed), pool, report
            )


@contextlib.contextmanager
def _one_thread_an_operator() -> Iterator[Callable[[], None]]:
    """Gives what every other thread has to call first. Threads within an operator wait for each other busily."""
    import torch

    known = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(known)


@dataclass
class _Schedule:
    """When training ends. looking: seconds that the last look at the held-out samples will take."""

    began: float
    seconds: float
    steps: int | None
    done: int = 0
    looking: float = 0.0

    def share(self) -> float:
        """Of the training that is done, 1 at its end."""
        share = (time.monotonic() - self.began) / max(self.seconds - self.looking, 1e-9)
        return share if self.steps is None else max(self.done / self.steps, float(share >= 1))

    def tell(self, report: Progress) -> None:
        """Progress in steps where they are counted, else in seconds."""
        if self.steps is None:
            report("distilling", int(min(self.share(), 1) * self.seconds), int(self.seconds))
        else:
            report("distilling", self.done, self.steps)


def _train(
    student: ir.Model,
    lesson: Lesson,
    check: CalibrationData,
    schedule: _Schedule,
    rate: float,
    rng: np.random.Generator,
    pool: Executor,
    report: Progress,
) -> Distilled:
    import torch

    looked = time.monotonic()
    best = before = lesson.examine(check, pool)
    schedule.looking = time.monotonic() - looked
    adam = torch.optim.Adam(list(lesson.moves.values()), betas=BETAS)
    kept, checks = None, list(CHECKS)
    while (share := schedule.share()) < 1:
        schedule.tell(report)
        adam.param_groups[0]["lr"] = rate * min(1.0, (share + 1e-3) / WARM_UP) * (0.5 + 0.5 * cos(pi * share))
        lesson.gradients(lesson.batch(rng), pool)
        torch.nn.utils.clip_grad_norm_(lesson.moves.values(), LONGEST_GRADIENT)
        adam.step()
        schedule.done += 1
        if (checks and share >= checks[0]) or schedule.share() >= 1:
            checks = checks[1:]
            found = lesson.examine(check, pool)
            best, kept = (found, lesson.state()) if found.loss < best.loss else (best, kept)
    model = student if kept is None else lesson.written(kept)
    return Distilled(model, before, best, schedule.done, time.monotonic() - schedule.began)
