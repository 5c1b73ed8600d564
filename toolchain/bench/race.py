"""A quick race of small models in this process: who is faster, and by what ratio, on one feed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from onnxruntime import InferenceSession

from toolchain.data import Feed


def race(engines: Sequence[InferenceSession], feed: Feed, *, seconds: float = 0.1, rounds: int = 7) -> list[float]:
    """Median seconds of an inference of each engine, interleaved round by round.

    Args:
        engines: sessions that take `feed`; they should have one thread each, so as not to spin against each other.
        feed: inputs of every run.
        seconds: time for all engines together; a slow model still runs once every round.
        rounds: how often the engines take turns.
    """
    for engine in engines:
        engine.run(None, feed)
    started = time.perf_counter()
    for engine in engines:
        engine.run(None, feed)
    once = time.perf_counter() - started
    repeats = max(1, int(seconds / rounds / max(once, 1e-6)))
    medians: list[list[float]] = [[] for _ in engines]
    for _ in range(rounds):
        for samples, engine in zip(medians, engines, strict=True):
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                engine.run(None, feed)
                times.append(time.perf_counter() - started)
            samples.append(float(np.median(times)))
    return [float(np.median(samples)) for samples in medians]
