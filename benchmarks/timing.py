"""How the benchmarks time the files of one model: interleaved, twice, and the calmer run is kept."""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Measurement


def calmest(subjects: Sequence[Subject], seconds: float, threads: int) -> Sequence[Measurement]:
    """One row a subject. seconds: the least time that each is timed, in each run."""
    settings = Bench(min_time_s=seconds, rounds=6, min_runs=30)
    return min((bench(subjects, settings=settings, threads=threads).measurements for _ in range(2)), key=_unrest)


def _unrest(rows: Sequence[Measurement]) -> float:
    """How much the samples scatter, all models of the run together; it knows nothing of which one is faster."""
    return sum(stats.variation(row.latency.samples_ms) for row in rows if row.latency)
