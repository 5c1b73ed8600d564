"""Timing of the files of one model: interleaved, twice, and the calmer run is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Latency, Measurement

MAX_ROUND_SAMPLES = 1000
"""Number of times of one round that are kept, evenly spread; the median of more is no more certain."""


def settings(seconds: str | float) -> Bench:
    """Settings to time each file for at least this many seconds."""
    return Bench(min_time_s=float(seconds), rounds=6, min_runs=30)


def calmest(subjects: Sequence[Subject], settings: Bench, threads: int) -> Sequence[Measurement]:
    """Time the subjects, files of one model, twice; return the calmer run, one row per subject."""
    runs = (bench(subjects, settings=settings, threads=threads).measurements for _ in range(2))
    return [thinned(row) for row in min(runs, key=_unrest)]


def thinned(row: Measurement) -> Measurement:
    """Keep at most :data:`MAX_ROUND_SAMPLES` times of each round, so that the raw samples can be stored."""
    times = latency(row)
    rounds = [range(*ends) for ends in pairwise([*times.rounds, len(times.samples_ms)])]
    kept = [samples[:: -(-len(samples) // MAX_ROUND_SAMPLES)] for samples in rounds]
    chosen = [sample for samples in kept for sample in samples]
    fewer = times.model_copy(
        update={
            "samples_ms": tuple(times.samples_ms[i] for i in chosen),
            "cpu_ms": tuple(times.cpu_ms[i] for i in chosen) if times.cpu_ms else (),
            "rounds": tuple(accumulate((len(samples) for samples in kept[:-1]), initial=0)),
        }
    )
    return row.model_copy(update={"latency": fewer})


def latency(row: Measurement) -> Latency:
    """The times of a row that was timed, as every row of `bench` on a machine is."""
    assert row.latency is not None, f"{row.model} {row.variant} was not timed"
    return row.latency


def _unrest(rows: Sequence[Measurement]) -> float:
    """The scatter of the samples of all models together, which does not depend on which model is faster."""
    return sum(stats.variation(row.latency.samples_ms) for row in rows if row.latency)
