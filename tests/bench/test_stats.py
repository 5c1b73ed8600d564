"""Statistics against independent oracles: order statistics, coverage, and cases with a known answer."""

from __future__ import annotations

from itertools import accumulate
from math import comb

import numpy as np
import pytest

from toolchain.bench import stats
from toolchain.measurement import Conditions, Latency


def latency(*rounds: np.ndarray, settled: bool = True) -> Latency:
    return Latency(
        samples_ms=tuple(float(v) for r in rounds for v in r),
        rounds=tuple(accumulate((len(r) for r in rounds[:-1]), initial=0)),
        load_ms=1.0,
        first_ms=1.0,
        settled=settled,
        threads=1,
    )


def order_statistic_interval(values: np.ndarray) -> tuple[float, float]:
    """The exact 95 % interval of a median: sorted samples between which binomial(n, 1/2) lies that often."""
    n = len(values)
    tail, rank = 0.0, 0
    while tail + comb(n, rank) / 2**n <= 0.025:
        tail += comb(n, rank) / 2**n
        rank += 1
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[n - rank])


@pytest.mark.parametrize("n", [60, 300, 900])
def test_interval_agrees_with_order_statistics(n):
    values = np.random.default_rng(n).lognormal(0, 0.3, n)
    estimate = stats.median(values.tolist())
    low, high = order_statistic_interval(values)
    assert estimate.value == np.median(values)
    assert estimate.low <= estimate.value <= estimate.high
    assert (estimate.high - estimate.low) == pytest.approx(high - low, rel=0.35)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(150):
        estimate = stats.median(rng.lognormal(0, 0.2, 90).tolist(), seed)
        hits += estimate.low <= 1 <= estimate.high
    assert 0.88 <= hits / 150 <= 0.995


def test_interval_is_wider_for_samples_that_hang_together():
    noise = np.random.default_rng(2).normal(0, 1, 900)
    chained = np.convolve(noise, np.ones(15) / np.sqrt(15), mode="same")  # the same variance, correlated
    loose, tight = (stats.median((x + 50).tolist()) for x in (chained, noise))
    assert loose.high - loose.low > 1.5 * (tight.high - tight.low)


def test_one_sample_and_equal_samples():
    assert stats.median([2.0]) == stats.Estimate(2.0, 2.0, 2.0)
    assert stats.median([3.0] * 50) == stats.Estimate(3.0, 3.0, 3.0)


def test_seeded():
    values = np.random.default_rng(3).normal(10, 1, 200).tolist()
    assert stats.median(values) == stats.median(values)
    assert stats.median(values, seed=1) != stats.median(values)


def quiet(n: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 0.1, n)


def clock(before: float, after: float) -> Conditions:
    return Conditions(clock_mhz_before=before, clock_mhz_after=after)


@pytest.mark.parametrize(
    ("measured", "conditions", "kind", "reason"),
    [
        (latency(quiet()), None, "steady", None),
        (latency(quiet()), Conditions(clock_mhz_before=1800, clock_mhz_after=1750), "steady", None),
        (
            latency(quiet()),
            Conditions(clock_mhz_before=1800, clock_mhz_after=1000),
            "drifting",
            "fell from 1800 to 1000",
        ),
        (latency(np.r_[quiet(150), quiet(150) * 1.3]), None, "drifting", "30% slower"),
        (latency(np.r_[quiet(150), quiet(150) / 1.25]), None, "drifting", "20% faster"),
        (latency(np.tile([8.0, 12.0], 150)), Conditions(load_before=2.34), "noisy", "(load 2.3 before it began)"),
        (latency(quiet()), Conditions(load_before=2.34), "steady", None),
        (latency(quiet(), settled=False), None, "noisy", "warm-up"),
        (latency(np.tile([8.0, 12.0], 150)), None, "noisy", "20% of the mean|known to"),
        (latency(np.where(np.arange(300) % 40 == 5, 17.0, quiet())), None, "noisy", "p99 is 1.7|standard deviation"),
        (latency(np.random.default_rng(5).uniform(5, 15, 12)), None, "noisy", "known to"),
    ],
)
def test_verdict(measured, conditions, kind, reason):
    found = stats.verdict(measured, conditions)
    assert found.kind == kind
    assert (found.reason is None) if reason is None else any(r in found.reason for r in reason.split("|"))


def test_speedup_of_a_scaled_copy_is_the_scale():
    rounds = [quiet(40, s) for s in range(3)]
    estimate = stats.speedup(latency(*rounds), latency(*(r / 2.5 for r in rounds)))
    assert estimate.value == pytest.approx(2.5)
    assert estimate.low <= 2.5 <= estimate.high < 2.6


def test_pairing_cancels_what_slows_a_whole_round():
    slow = (1.0, 1.6, 2.4)
    a = latency(*(quiet(40, s) * 2 * f for s, f in enumerate(slow)))
    b = latency(*(quiet(40, s + 10) * f for s, f in enumerate(slow)))
    paired, unpaired = stats.speedup(a, b), stats.speedup(a, b, paired=False)
    assert paired.value == pytest.approx(2, rel=0.02)
    assert paired.high - paired.low < 0.1
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_different_numbers_of_rounds_are_not_paired():
    a, b = latency(quiet(30), quiet(30)), latency(quiet(60) / 2)
    assert stats.speedup(a, b).value == pytest.approx(a.p50_ms / b.p50_ms)
