"""Comparing the speed of two whole models on this machine: a quick race, and a measurement with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.core.errors import DeviceError
from toolchain.data.tensors import Feed
from toolchain.formats.recipe import Bench
from toolchain.graph import io
from toolchain.latency.race import Race
from toolchain.quantization.races import race_models

RACE_SECONDS = 1.0
"""Time for one race of two whole models."""
FINAL_BENCH = Bench(warmup_s=0.2, min_time_s=2.0, min_runs=12, rounds=12, processes=3)
"""Settings of the measurement that is reported."""


@dataclass(frozen=True)
class Speed:
    """The speed of two models.

    Attributes:
        first_ms: median latency of the first model.
        speedup: latency of the first model over that of the second, with its 95 % interval.
    """

    first_ms: float
    speedup: stats.Estimate

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the speed-up."""
        return self.speedup.low, self.speedup.high


@dataclass(frozen=True)
class SpeedMeter:
    """Functions that compare two models on one sample.

    Attributes:
        race: in this process, to choose between many candidates.
        measure: in fresh processes that take turns, for what is reported.
    """

    race: Callable[[ir.Model, ir.Model, Feed], Race]
    measure: Callable[[ir.Model, ir.Model, Feed], Speed]


def race_here(first: ir.Model, second: ir.Model, feed: Feed) -> Race:
    """Race two models, one thread."""
    return race_models(first, second, feed, seconds=RACE_SECONDS)


def measure_here(first: ir.Model, second: ir.Model, feed: Feed) -> Speed:
    """Measure two models as `toolchain bench` does, one thread."""
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        subjects = []
        for variant, model in (("dense", first), ("pruned", second)):
            io.save_in_place(model, Path(folder) / f"{variant}.onnx")
            subjects.append(Subject(Path(folder) / f"{variant}.onnx", "model", variant, feeds=feed))
        rows = bench(subjects, settings=FINAL_BENCH, threads=1).measurements
    before, after = (row.latency for row in rows)
    if before is None or after is None:
        raise DeviceError("cannot time models", where="this computer", hint="prune on another one")
    return Speed(before.p50_ms, stats.speedup(before, after))


HERE = SpeedMeter(race_here, measure_here)
"""Compares models on this machine."""


def race_speedup(times: Race) -> float:
    """Compute the median ratio over rounds; both models run in every round, so a slow round affects both."""
    return float(np.median(np.array(times.first_s) / np.array(times.second_s)))
