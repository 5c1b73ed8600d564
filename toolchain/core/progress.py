"""Progress of long work: one convention for every function that takes more than two seconds."""

from __future__ import annotations

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
