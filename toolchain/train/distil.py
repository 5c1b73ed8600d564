"""`distil`: a pruned model learns, without labels, to do what the model it was made from does.

Adam with a learning rate that falls along a cosine, on batches of calibration samples. What is compared, and in which
units weights move, tells :mod:`toolchain.train.lesson`.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import onnx_ir as ir

from toolchain.data import CalibrationData
from toolchain.errors import InputError, ModelError
from toolchain.train.lesson import Lesson

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

    before_db, after_db: fidelity to the teacher on held-out samples, as :mod:`toolchain.fidelity` defines it. Where
    training did not help, they are equal and `model` is the student as it was.
    """

    model: ir.Model
    before_db: float
    after_db: float
    steps: int
    seconds: float


def require_torch(model: ir.Model) -> None:
    """Say so before anything slow.

    Raises:
        ModelError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        hint = "pip install 'edge-toolchain[torch]'"
        raise ModelError("torch is not installed, and training needs it", where=model.graph.name, hint=hint)


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
    require_torch(student)
    import torch

    def gone() -> float:
        """Share of the training that is done; 1 leaves time for the last look at the held-out samples."""
        share = (time.monotonic() - began) / max(minutes * 60 - looking, 1e-9)
        return share if steps is None else max(done / steps, float(share >= 1))

    report = progress or (lambda what, done, total: None)
    if check is None:
        data, check = data.split()
    check = check.take(CHECKED)
    lesson = Lesson(student, teacher, data)
    rng, adam = np.random.default_rng(seed), torch.optim.Adam(list(lesson.moves.values()), betas=BETAS)
    done, checks, known = 0, list(CHECKS), torch.get_num_threads()
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        looked = time.monotonic()
        best = before = lesson.fidelity_db(check, pool)
        looking, kept = time.monotonic() - looked, None
        while (share := gone()) < 1:
            report("distilling", *((int(share * minutes * 60), int(minutes * 60)) if steps is None else (done, steps)))
            adam.param_groups[0]["lr"] = rate * min(1.0, (share + 1e-3) / WARM_UP) * (0.5 + 0.5 * cos(pi * share))
            lesson.gradients(lesson.batch(rng), pool)
            torch.nn.utils.clip_grad_norm_(lesson.moves.values(), LONGEST_GRADIENT)
            adam.step()
            done += 1
            if (checks and share >= checks[0]) or gone() >= 1:
                checks = checks[1:]
                found = lesson.fidelity_db(check, pool)
                best, kept = (found, lesson.state()) if found > best else (best, kept)
    torch.set_num_threads(known)
    model = student if kept is None else lesson.written(kept)
    return Distilled(model, before, best, done, time.monotonic() - began)
