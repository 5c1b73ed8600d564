"""`fit`: the training loop. Adam, a learning rate with warm-up and cosine decay, and checkpoints on held-out samples.

The result is the best checkpoint after the technique reached its target, or the input model where no checkpoint is
better. (Before that, a half-pruned model scores better than a pruned one, but is not the result that was asked for.)
With a fixed number of steps every run gives the same bits, and so does a run that was interrupted and resumed from its
state file. With a number of minutes the result may differ from run to run.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.formats.findings import Checkpoint
from toolchain.training.engine.objective import Objective
from toolchain.training.engine.state_file import load_state, save_state

if TYPE_CHECKING:
    from torch.optim import Optimizer

LOGGER = logging.getLogger(__name__)

Clock = Callable[[], float]
"""A function that returns the time in seconds, such as ``time.monotonic``."""

DEFAULT_RATE = 1e-3
"""Largest change of a weight in one step, relative to the root mean square of its channel."""
WARM_UP_SHARE = 0.05
"""Fraction of the training in which the learning rate rises."""
ADAM_BETAS = (0.9, 0.99)
"""Decay rates of Adam's averages of the gradient and of its square."""
MAX_GRADIENT_NORM = 1.0
"""Gradients of a step are scaled down to this norm."""


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training.

    Attributes:
        minutes: time limit, everything included.
        steps: number of steps; None: as many as the time allows; 0: the technique is applied without training.
        rate: the highest learning rate.
        evaluate_at: fractions of the training after which held-out samples are evaluated, besides its start and end.
        patience: stop after this number of evaluations without improvement; 0: never.
    """

    minutes: float = 24 * 60.0
    steps: int | None = None
    rate: float = DEFAULT_RATE
    evaluate_at: tuple[float, ...] = (0.5, 0.75)
    patience: int = 0


@dataclass
class Fitted:
    """Record of a training; the objective itself is left in the state of the best checkpoint.

    Attributes:
        checkpoints: evaluations of held-out samples, the first before any step.
        best: index of the checkpoint that was kept.
        steps: number of steps taken.
        seconds: time taken, including that of interrupted runs.
    """

    checkpoints: list[Checkpoint] = field(default_factory=list)
    best: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def improved(self) -> bool:
        """True where a later checkpoint is better than the first."""
        return self.best > 0


def fit(
    objective: Objective,
    check: CalibrationData,
    schedule: Schedule,
    *,
    started: float | None = None,
    threads: int = 0,
    state_path: Path | None = None,
    skip_first: bool = False,
    progress: Progress = silent,
    clock: Clock = time.monotonic,
) -> Fitted:
    """Train the student of an objective.

    Args:
        objective: left in the state of the best checkpoint.
        check: held-out samples.
        schedule: length and learning rate.
        started: time on `clock` from which the minutes are counted; None: now.
        threads: 0 takes one for every processor.
        state_path: a file that is written at every checkpoint. If it exists, the run continues from it.
        skip_first: the first checkpoint cannot be the result, because the technique had not reached its target there.
        progress: called at every step.
        clock: measures the time.

    Raises:
        InputError: the state file cannot be loaded.
    """
    started = clock() if started is None else started
    workers = threads or os.cpu_count() or 1
    with one_thread_per_operator() as initializer, ThreadPoolExecutor(workers, initializer=initializer) as pool:
        loop = _Loop(objective, check, schedule, clock=clock, started=started, skip_first=skip_first)
        return loop.run(pool, state_path, progress)


@contextlib.contextmanager
def one_thread_per_operator() -> Iterator[Callable[[], None]]:
    """Make torch run every operator in one thread, since threads inside an operator use the CPU while they wait.

    Yields a function that every other thread has to call first.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)


class _Loop:
    """The state of a training between two steps."""

    def __init__(
        self,
        objective: Objective,
        check: CalibrationData,
        schedule: Schedule,
        *,
        clock: Clock,
        started: float,
        skip_first: bool,
    ) -> None:
        import torch

        self.objective, self.check, self.schedule = objective, check, schedule
        self.clock, self.started, self.skip_first = clock, started, skip_first
        self.record = Fitted()
        self.batch_losses: list[float] = []
        self.evaluation_seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.adam: Optimizer = torch.optim.Adam(list(objective.trainable().values()), betas=ADAM_BETAS)

    def run(self, pool: Executor, state_path: Path | None, progress: Progress) -> Fitted:
        """Train to the end, from the beginning or from the state file."""
        if state_path is not None and state_path.exists():
            self._restore(load_state(state_path))
            LOGGER.info("resumed after %d steps from %s", self.record.steps, state_path.name)
        else:
            if self.schedule.steps == 0:
                self.objective.finish_step(0.0, 1.0)
            self._checkpoint(pool)
        while (share := self._share()) < 1 and not self._out_of_patience():
            self._report(progress)
            self._step(share, pool)
            if self._evaluation_due() or self._share() >= 1:
                self._checkpoint(pool)
                if state_path is not None:
                    save_state(state_path, self._state())
        if self.best is not None:
            self._put(self.best)
        self.record.seconds = self.clock() - self.started
        LOGGER.info("kept checkpoint %d of %d", self.record.best, len(self.record.checkpoints) - 1)
        return self.record

    def _step(self, share: float, pool: Executor) -> None:
        """Take one step of the optimizer, at the learning rate of this fraction of the training."""
        import torch

        objective, record = self.objective, self.record
        warm_up, decay = min(1.0, (share + 1e-3) / WARM_UP_SHARE), 0.5 + 0.5 * cos(pi * share)
        rate = self.adam.param_groups[0]["lr"] = self.schedule.rate * warm_up * decay
        self.batch_losses.append(objective.gradients(record.steps, pool))
        torch.nn.utils.clip_grad_norm_(objective.trainable().values(), MAX_GRADIENT_NORM)
        self.adam.step()
        record.steps += 1
        objective.finish_step(rate, min(self._share(), 1.0))

    def _share(self) -> float:
        """Compute the fraction of the training that is over, 1 at its end."""
        elapsed = self.clock() - self.started
        share = elapsed / max(self.schedule.minutes * 60 - self.evaluation_seconds, 1e-9)
        steps = self.schedule.steps
        return share if steps is None else max(self.record.steps / steps if steps else 1.0, float(share >= 1))

    def _evaluation_due(self) -> bool:
        """Check whether one of the planned fractions was passed since the last checkpoint."""
        return any(self.record.checkpoints[-1].share < at <= self._share() for at in self.schedule.evaluate_at)

    def _out_of_patience(self) -> bool:
        last = len(self.record.checkpoints) - 1
        return 0 < self.schedule.patience <= last - self.record.best and self._is_candidate(last)

    def _is_candidate(self, number: int) -> bool:
        """Check whether the technique had reached its target at a checkpoint, so that it can be the result."""
        reached = self.record.checkpoints[number].share >= self.objective.technique.target_share
        return reached and not (self.skip_first and number == 0)

    def _checkpoint(self, pool: Executor) -> None:
        """Evaluate the held-out samples; keep the state if it is the best candidate so far."""
        started = self.clock()
        evaluation = self.objective.evaluate(self.check, pool)
        self.evaluation_seconds = self.clock() - started
        record, share = self.record, self._share() if self.record.steps else 0.0
        record.checkpoints.append(Checkpoint(share=share, evaluation=evaluation))
        last, first = len(record.checkpoints) - 1, record.steps == 0
        best = record.checkpoints[record.best].evaluation
        better = not self._is_candidate(record.best) or evaluation.loss < best.loss
        if self._is_candidate(last) and better:
            record.best, self.best = last, self._weights()
        elif first and self.best is None:
            self.best = self._weights()
        self._log(last)

    def _log(self, number: int) -> None:
        evaluation = self.record.checkpoints[number].evaluation
        trained = sum(self.batch_losses) / len(self.batch_losses) if self.batch_losses else float("nan")
        self.batch_losses = []
        LOGGER.info(
            "checkpoint %d, step %d: held-out loss %.4g, %.2f dB%s, training loss %.4g%s",
            number,
            self.record.steps,
            evaluation.loss,
            evaluation.fidelity_db,
            "" if evaluation.accuracy is None else f", {evaluation.accuracy:.1%} right",
            trained,
            ", the best so far" if self.record.best == number else "",
        )

    def _weights(self) -> dict[str, Any]:
        """Copy everything that a step changes, except the optimizer."""
        objective = self.objective
        trained = {name: leaf.detach().clone() for name, leaf in objective.trainable().items()}
        buffers = {name: buffer.clone() for name, buffer in objective.graph.buffers.items()}
        return {"trained": trained, "buffers": buffers, "technique": copy.deepcopy(objective.technique.state())}

    def _put(self, state: dict[str, Any]) -> None:
        """Set everything that :meth:`_weights` copied."""
        import torch

        with torch.no_grad():
            for name, leaf in self.objective.trainable().items():
                leaf.copy_(state["trained"][name])
            for name, buffer in self.objective.graph.buffers.items():
                buffer.copy_(state["buffers"][name])
        self.objective.technique.restore(copy.deepcopy(state["technique"]))

    def _state(self) -> dict[str, Any]:
        """Collect what a resumed run needs: tensors, numbers, strings, lists and dictionaries only."""
        return {
            "current": self._weights(),
            "best": self.best,
            "adam": self.adam.state_dict(),
            "checkpoints": [checkpoint.model_dump() for checkpoint in self.record.checkpoints],
            "best_number": self.record.best,
            "steps": self.record.steps,
            "elapsed": self.clock() - self.started,
            "evaluation_seconds": self.evaluation_seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._put(state["current"])
        self.best, self.evaluation_seconds = state["best"], state["evaluation_seconds"]
        self.adam.load_state_dict(state["adam"])
        checkpoints = [Checkpoint.model_validate(checkpoint) for checkpoint in state["checkpoints"]]
        self.record = Fitted(checkpoints, state["best_number"], state["steps"])
        self.started = self.clock() - state["elapsed"]

    def _report(self, progress: Progress) -> None:
        """Report progress in steps where their number is fixed, otherwise in seconds."""
        if self.schedule.steps is None:
            seconds = int(self.schedule.minutes * 60)
            progress("training", int(min(self._share(), 1) * seconds), seconds)
        else:
            progress("training", self.record.steps, self.schedule.steps)
