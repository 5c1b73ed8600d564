"""`race`: time two small models in turn in this process, to find out whether the second is slower than the first."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from onnxruntime import InferenceSession

from toolchain.data.tensors import Feed

RACE_ROUNDS = 7
MAX_ROUNDS_WON = 1
"""A model that is slower wins at most this many rounds."""


@dataclass(frozen=True)
class Race:
    """The result of a race.

    Attributes:
        first_s: median seconds of an inference of the first model, for each round.
        second_s: likewise for the second model.
    """

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def medians_s(self) -> tuple[float, float]:
        """Medians over the rounds, in seconds: first model, second model."""
        return float(np.median(self.first_s)), float(np.median(self.second_s))

    def second_is_slower(self, by: float = 1.02) -> bool:
        """Return True if the median ratio exceeds `by` and the second model was slower in all rounds but at most one.

        If both models are equal, the second loses 6 of 7 rounds in one race out of 16 (sign test), and far more rarely
        by that much.

        Args:
            by: limit for the median of the rounds' ratios, time of the second model divided by that of the first.
        """
        ratios = np.array(self.second_s) / np.array(self.first_s)
        return bool(np.median(ratios) > by and (ratios <= 1).sum() <= MAX_ROUNDS_WON)


def race(
    first: InferenceSession, second: InferenceSession, feed: Feed, *, seconds: float = 0.1, decide: bool = False
) -> Race:
    """Run two sessions in turn, round by round, so that a disturbance affects both.

    Args:
        first: a session with one thread, so that idle threads do not take the processor from the other session.
        second: likewise; its inputs are the same.
        feed: inputs of every run.
        seconds: time for both together; a slow model takes longer, because it runs at least once in each round.
        decide: end the race once the second model cannot be found slower any more. The decision is the same, but the
            times come from few rounds.
    """
    engines = first, second
    for engine in engines:
        engine.run(None, feed)
    repeats = max(1, int(seconds / RACE_ROUNDS / max(sum(_time(engine, feed) for engine in engines), 1e-6)))
    first_s, second_s = list[float](), list[float]()
    while len(first_s) < RACE_ROUNDS:
        first_s.append(_median_time(first, feed, repeats))
        second_s.append(_median_time(second, feed, repeats))
        won = sum(b <= a for a, b in zip(first_s, second_s, strict=True))
        if decide and won > MAX_ROUNDS_WON:
            break
    return Race(tuple(first_s), tuple(second_s))


def _median_time(engine: InferenceSession, feed: Feed, repeats: int) -> float:
    return float(np.median([_time(engine, feed) for _ in range(repeats)]))


def _time(engine: InferenceSession, feed: Feed) -> float:
    # A session with one thread computes in the calling thread; that thread's processor time excludes other programs.
    started = time.thread_time()
    engine.run(None, feed)
    return time.thread_time() - started
