"""Timing of the files of one model: interleaved, twice, and the calmer run is kept."""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Latency, Measurement


def settings(seconds: str | float) -> Bench:
    """Settings to time each file for at least this many seconds."""
    return Bench(min_time_s=float(seconds), rounds=6, min_runs=30)


def calmest(subjects: Sequence[Subject], settings: Bench, threads: int) -> Sequence[Measurement]:
    """Time the subjects, files of one model, twice; return the calmer run, one row per subject."""
    return min((bench(subjects, settings=settings, threads=threads).measurements for _ in range(2)), key=_unrest)


def latency(row: Measurement) -> Latency:
    """The times of a row that was timed, as every row of `bench` on a machine is."""
    assert row.latency is not None, f"{row.model} {row.variant} was not timed"
    return row.latency


def _unrest(rows: Sequence[Measurement]) -> float:
    """The scatter of the samples of all models together, which does not depend on which model is faster."""
    return sum(stats.variation(row.latency.samples_ms) for row in rows if row.latency)
