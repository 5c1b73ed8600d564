"""A quick race of two small models in this process: is the second slower than the first, and how sure is that?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from onnxruntime import InferenceSession

from toolchain.data.tensors import Feed

ROUNDS = 7


@dataclass(frozen=True)
class Race:
    """Median seconds of an inference in every round, for the first model and for the second."""

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def medians_s(self) -> tuple[float, float]:
        """Of the rounds."""
        return float(np.median(self.first_s)), float(np.median(self.second_s))

    def second_is_slower(self, by: float = 1.02) -> bool:
        """Whether the second model's median ratio is above `by`, and it lost every round but at most one.

        On equals, losing 6 of 7 rounds happens once in 16 times (sign test), and then by `by` far more rarely.
        """
        ratios = np.array(self.second_s) / np.array(self.first_s)
        return bool(np.median(ratios) > by and (ratios > 1).sum() >= len(ratios) - 1)


def race(first: InferenceSession, second: InferenceSession, feed: Feed, *, seconds: float = 0.1) -> Race:
    """Run two sessions in turn, round by round, so that what disturbs one disturbs the other.

    Args:
        first: a session of one thread, so that idle threads do not spin against the other.
        second: likewise, taking the same feed.
        feed: inputs of every run.
        seconds: time for both together, at most; a slow model still runs once every round.
    """
    engines = first, second
    for engine in engines:
        engine.run(None, feed)
    repeats = max(1, int(seconds / ROUNDS / max(sum(_time(engine, feed) for engine in engines), 1e-6)))
    rounds = [tuple(_median_time(engine, feed, repeats) for engine in engines) for _ in range(ROUNDS)]
    return Race(tuple(a for a, _ in rounds), tuple(b for _, b in rounds))


def _median_time(engine: InferenceSession, feed: Feed, repeats: int) -> float:
    return float(np.median([_time(engine, feed) for _ in range(repeats)]))


def _time(engine: InferenceSession, feed: Feed) -> float:
    # A session of one thread computes in the calling one: its own time leaves out what others do to the machine.
    started = time.thread_time()
    engine.run(None, feed)
    return time.thread_time() - started
