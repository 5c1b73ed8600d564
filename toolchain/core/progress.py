"""Progress of long work: one convention for every function that takes more than two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """A function that long operations call at each stage, and at each step of a stage that counts its steps."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report a stage.

        Args:
            what: the stage, a short phrase such as ``rounding weights``. It stays the same while the stage runs.
            done: number of steps that are finished.
            total: number of steps; 0 if it is not known.
        """


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """Report nothing: the default of library calls."""


class Stage:
    """Counts the steps of one stage and reports them, the beginning included."""

    def __init__(self, name: str, total: int, progress: Progress) -> None:
        self._name, self._total, self._progress = name, total, progress
        self._done = 0
        progress(name, 0, total)

    def step(self) -> None:
        """Report that one more step is finished."""
        self._done += 1
        self._progress(self._name, self._done, self._total)


class StageClock:
    """A progress function that passes every report on, and adds up the time of every stage.

    A stage takes the time from its report until another stage is reported; it may be reported again later.
    """

    def __init__(self, progress: Progress = silent, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the clock.

        Args:
            progress: gets every report.
            clock: returns a time in seconds.
        """
        self._progress, self._clock = progress, clock
        self._seconds: dict[str, float] = {}
        self._stage = ""
        self._since = clock()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report a stage; see :class:`Progress`."""
        self._pass_time()
        self._stage = what
        self._progress(what, done, total)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every stage until now, in the order of their first reports."""
        self._pass_time()
        return {stage: seconds for stage, seconds in self._seconds.items() if stage}

    def _pass_time(self) -> None:
        now = self._clock()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since = now
