"""`fit`: the training loop. Adam, a rate that rises and falls along a cosine, looks at held-out samples on the way.

What is kept is the best of the looks at which the technique has arrived at what it was asked for (half pruned is better
than pruned), or what was given, where nothing was better. With a number of steps, every run gives the same bits, and so
does one that was ended and continued from its checkpoint; a number of minutes cannot promise that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.core.files import replacing
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.formats.findings import Checkpoint
from toolchain.training.engine.objective import Objective

if TYPE_CHECKING:
    from torch.optim import Optimizer

RATE = 1e-3
"""The largest step of a weight, as a share of its channel's root mean square."""
WARM_UP = 0.05
BETAS = (0.9, 0.99)
LONGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Schedule:
    """How long, and how fast.

    minutes: everything included. steps: so many, or until the time is up; None: as many as there is time for; 0: what
    the technique does without training.
    rate: the highest learning rate. looks: shares of the training after which held-out samples are looked at, besides
    its beginning and its end. patience: end after so many looks without anything better; 0: never.
    """

    minutes: float = 24 * 60.0
    steps: int | None = None
    rate: float = RATE
    looks: tuple[float, ...] = (0.5, 0.75)
    patience: int = 0


@dataclass
class Fitted:
    """What came of it. The lesson is left in the state that was kept. improved: it is better than it was at first."""

    looks: list[Checkpoint] = field(default_factory=list)
    kept: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def improved(self) -> bool:
        """Whether training gave anything better than what it began with."""
        return self.kept > 0


def fit(
    lesson: Objective,
    check: CalibrationData,
    schedule: Schedule,
    *,
    began: float | None = None,
    threads: int = 0,
    checkpoint: Path | None = None,
    must_move: bool = False,
    progress: Progress = silent,
) -> Fitted:
    """Train a lesson's student.

    Args:
        lesson: left in the state that is kept.
        check: held-out samples.
        schedule: how long and how fast.
        began: ``time.monotonic()`` at which the minutes began; now.
        threads: 0 takes one for every processor.
        checkpoint: a file that is written at every look, and that a run is continued from if it is there.
        must_move: what it began with is not an answer, since the technique had not arrived there.
        progress: told about every step.
    """
    began = time.monotonic() if began is None else began
    workers = threads or os.cpu_count() or 1
    with one_thread_an_operator() as initializer, ThreadPoolExecutor(workers, initializer=initializer) as pool:
        return _Loop(lesson, check, schedule, began, must_move).run(pool, checkpoint, progress)


@contextlib.contextmanager
def one_thread_an_operator() -> Iterator[Callable[[], None]]:
    """Gives what every other thread has to call first. Threads within an operator wait for each other busily."""
    import torch

    known = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(known)


class _Loop:
    def __init__(
        self, lesson: Objective, check: CalibrationData, schedule: Schedule, began: float, must_move: bool
    ) -> None:
        import torch

        self.lesson, self.check, self.schedule, self.began = lesson, check, schedule, began
        self.must_move = must_move
        self.found = Fitted()
        self.looking = 0.0
        self.kept: dict[str, Any] | None = None
        self.adam: Optimizer = torch.optim.Adam(list(lesson.trained().values()), betas=BETAS)

    def run(self, pool: Executor, checkpoint: Path | None, report: Progress) -> Fitted:
        """To the end, from the beginning or from the checkpoint."""
        import torch

        if checkpoint is not None and checkpoint.exists():
            self._restore(torch.load(checkpoint, weights_only=False))
        else:
            if self.schedule.steps == 0:
                self.lesson.settle(0.0, 1.0)
            self._look(pool)
        lesson, found = self.lesson, self.found
        while (share := self.share()) < 1 and not self._tired():
            self._tell(report)
            rise, fall = min(1.0, (share + 1e-3) / WARM_UP), 0.5 + 0.5 * cos(pi * share)
            rate = self.adam.param_groups[0]["lr"] = self.schedule.rate * rise * fall
            lesson.gradients(found.steps, pool)
            torch.nn.utils.clip_grad_norm_(lesson.trained().values(), LONGEST_GRADIENT)
            self.adam.step()
            found.steps += 1
            lesson.settle(rate, min(self.share(), 1.0))
            if self._due() or self.share() >= 1:
                self._look(pool)
                if checkpoint is not None:
                    with replacing(checkpoint) as folder:
                        torch.save(self._state(), folder / checkpoint.name)
        if self.kept is not None:
            self._put(self.kept)
        found.seconds = time.monotonic() - self.began
        return found

    def share(self) -> float:
        """Of the training that is done, 1 at its end."""
        share = (time.monotonic() - self.began) / max(self.schedule.minutes * 60 - self.looking, 1e-9)
        steps = self.schedule.steps
        return share if steps is None else max(self.found.steps / steps if steps else 1.0, float(share >= 1))

    def _due(self) -> bool:
        """Whether a share after which to look has been passed since the last look."""
        return any(self.found.looks[-1].share < at <= self.share() for at in self.schedule.looks)

    def _tired(self) -> bool:
        since = len(self.found.looks) - 1 - self.found.kept
        return 0 < self.schedule.patience <= since and self._arrived(self.found.looks[-1])

    def _arrived(self, look: Checkpoint) -> bool:
        return look.share >= self.lesson.technique.settled and not (self.must_move and look.share == 0)

    def _look(self, pool: Executor) -> None:
        """Examine; keep the state if it is the best so far of those that count."""
        began = time.monotonic()
        exam = self.lesson.examine(self.check, pool)
        self.looking = time.monotonic() - began
        found = self.found
        found.looks.append(Checkpoint(share=self.share() if found.steps else 0.0, evaluation=exam))
        best = found.looks[found.kept]
        if self._arrived(found.looks[-1]) and (not self._arrived(best) or exam.loss < best.evaluation.loss):
            found.kept, self.kept = len(found.looks) - 1, self._weights()
        elif found.kept == 0 and self.kept is None and found.steps == 0:
            self.kept = self._weights()

    def _weights(self) -> dict[str, Any]:
        lesson = self.lesson
        trained = {name: leaf.detach().clone() for name, leaf in lesson.trained().items()}
        buffers = {name: buffer.clone() for name, buffer in lesson.graph.buffers.items()}
        return {"trained": trained, "buffers": buffers, "technique": _copied(lesson.technique.state())}

    def _put(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, leaf in self.lesson.trained().items():
                leaf.copy_(state["trained"][name])
            for name, buffer in self.lesson.graph.buffers.items():
                buffer.copy_(state["buffers"][name])
        self.lesson.technique.restore(_copied(state["technique"]))

    def _state(self) -> dict[str, Any]:
        looks = [look.model_dump() for look in self.found.looks]
        done = {"looks": looks, "kept": self.found.kept, "steps": self.found.steps}
        elapsed = time.monotonic() - self.began
        return {
            "now": self._weights(), "best": self.kept, "adam": self.adam.state_dict(), "found": done,
            "elapsed": elapsed, "looking": self.looking,
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._put(state["now"])
        self.kept, self.looking = state["best"], state["looking"]
        self.adam.load_state_dict(state["adam"])
        looks = [Checkpoint.model_validate(look) for look in state["found"]["looks"]]
        self.found = Fitted(looks, state["found"]["kept"], state["found"]["steps"])
        self.began = time.monotonic() - state["elapsed"]

    def _tell(self, report: Progress) -> None:
        """Progress in steps where they are counted, else in seconds."""
        if self.schedule.steps is None:
            seconds = int(self.schedule.minutes * 60)
            report("training", int(min(self.share(), 1) * seconds), seconds)
        else:
            report("training", self.found.steps, self.schedule.steps)


def _copied(state: Any) -> Any:
    """Tensors cloned, so that what goes on does not change what was kept."""
    import copy

    return copy.deepcopy(state)
