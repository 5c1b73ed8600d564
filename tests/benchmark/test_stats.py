"""Statistics against independent oracles: order statistics, coverage, and cases with a known answer."""

from __future__ import annotations

from itertools import accumulate
from math import comb

import numpy as np
import pytest

from toolchain.benchmark import stats
from toolchain.formats.results import Conditions, Latency, Reading, Window


def latency(*rounds: np.ndarray, settled: bool = True, processes: int = 1, cpu: float = 0) -> Latency:
    """cpu: processor time of each sample, as a share of it; 0 is unknown."""
    return Latency(
        samples_ms=tuple(float(v) for r in rounds for v in r),
        rounds=tuple(accumulate((len(r) for r in rounds[:-1]), initial=0)),
        load_ms=1.0,
        first_ms=1.0,
        settled=settled,
        threads=1,
        processes=processes,
        cpu_ms=tuple(float(v * cpu) for r in rounds for v in r) if cpu else (),
    )


def order_statistic_interval(values: np.ndarray) -> tuple[float, float]:
    """The exact 95 % interval of a median, from the order statistics and the binomial distribution with p = 1/2."""
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
            "throttled",
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
    assert paired.high - paired.low < 0.15
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_different_numbers_of_rounds_are_not_paired():
    a, b = latency(quiet(30), quiet(30)), latency(quiet(60) / 2)
    assert stats.speedup(a, b).value == pytest.approx(a.p50_ms / b.p50_ms)


def test_one_thread_is_compared_by_what_it_computed():
    """Half of one model's elapsed time was spent waiting for other processes; none of the other model's was."""
    a = latency(*(quiet(40, s) for s in range(6)), cpu=1.0)
    b = latency(*(quiet(40, s + 10) * 2 for s in range(6)), cpu=0.5)
    assert stats.speedup(a, b).value == pytest.approx(1, rel=0.01)
    assert stats.speedup(a, b.model_copy(update={"cpu_ms": ()})).value == pytest.approx(0.5, rel=0.01)


def test_a_disturbed_round_does_not_count():
    calm = [quiet(40, s) for s in range(12)]
    other = [quiet(40, s + 20) for s in range(12)]
    other[3] = other[3] * 4
    estimate = stats.speedup(latency(*calm), latency(*other))
    assert estimate.value == pytest.approx(1, rel=0.01)
    assert estimate.low > 0.95


def trial(rng: np.random.Generator, slower: float) -> stats.Estimate:
    """Compare 30 rounds, in 3 processes, with those of a model that takes `slower` times as long, on a busy machine."""

    def rounds(factor: float, machine: np.ndarray) -> Latency:
        placed = np.repeat(rng.normal(1, 0.009, 3), 10)
        own = rng.normal(1, 0.02, 30) + (rng.random(30) < 0.05) * rng.exponential(0.5, 30)
        return latency(
            *(factor * m * p * o * rng.lognormal(0, 0.05, 30) for m, p, o in zip(machine, placed, own, strict=True)),
            processes=3,
        )

    machine = rng.lognormal(0, 0.2, 30)  # affects both models of a round
    return stats.speedup(rounds(1, machine), rounds(slower, machine))


def test_the_same_twice_is_the_same_and_5_percent_are_seen():
    rng = np.random.default_rng(7)
    same, slower = ([trial(rng, factor) for _ in range(60)] for factor in (1.0, 1.05))
    assert sum(e.low <= 1 <= e.high for e in same) >= 57
    assert sum(e.high < 1 for e in slower) >= 54
    assert np.median([1 / e.value for e in slower]) == pytest.approx(1.05, abs=0.006)


@pytest.mark.parametrize(
    ("n", "quantile"),
    [(2, 4.303), (5, 2.571), (11, 2.201), (39, 2.023)],  # a table of Student's distribution
)
def test_students_distribution(n, quantile):
    assert stats.student_quantile(n) == pytest.approx(quantile, rel=0.035 if n == 2 else 0.002)


def test_a_difference_in_words():
    assert stats.difference(stats.Estimate(1.01, 0.99, 1.03)) == "no significant difference (95 %: -2.9 to +1.0 %)"
    assert stats.difference(stats.Estimate(1 / 1.05, 1 / 1.06, 1 / 1.04)) == "5.0 % slower (95 %: 4.0 to 6.0 %)"
    assert stats.difference(stats.Estimate(2, 1.6, 2.5)) == "50.0 % faster (95 %: 37.5 to 60.0 %)"


def pi(*flags: int, clocks: tuple[float, ...] = ()) -> Conditions:
    """flags: before, during (any number) and after, as a Raspberry Pi 4 throttled on another day reports them."""
    during = tuple(Reading(throttled=flag) for flag in flags[1:-1])
    if clocks:
        during = tuple(Reading(clock_mhz=clock) for clock in clocks)
    return Conditions(throttled_before=flags[0], throttled_after=flags[-1], during=during)


@pytest.mark.parametrize(
    ("conditions", "kind", "reason"),
    [
        (pi(0, 0, 0), "steady", ""),
        (pi(0x50000, 0x50000, 0x50000), "steady", ""),  # it happened before the benchmark
        (pi(0x50000, 0x50005, 0x50000), "throttled", "the voltage is too low, the processor is throttled (flags 0x5)"),
        (pi(0, 0, 0x20000), "throttled", "the clock is capped (flags 0x2)"),  # between two readings
        (pi(0, 0x80008, 0x80000), "throttled", "it is too warm"),
        (pi(0, 0, clocks=(1800, 1800, 600, 1800, 1800, 1800)), "steady", ""),  # an idle moment
        (pi(0, 0, clocks=(1800, 1800, 1500, 1400, 1400, 1300)), "throttled", "fell from 1800 to 1350 MHz"),
    ],
)
def test_throttling(conditions, kind, reason):
    found = stats.verdict(latency(quiet()), conditions)
    assert found.kind == kind
    assert reason in (found.reason or "")


def test_a_sustained_run():
    windows = [Window(at_s=10 * (i + 1), p50_ms=20 if i < 30 else 40, runs=9) for i in range(60)]  # ten minutes
    found = stats.sustained(windows)
    assert (found.first_ms, found.last_ms, found.minutes, found.change) == (20, 40, 10, 1)
    said = stats.verdict(latency(quiet()), None, windows)
    assert said.kind == "drifting"
    assert said.reason == "100% slower at the end of 10 minutes than at their beginning"
    hot = [w.model_copy(update={"clock_mhz": 2400.0 if w.p50_ms == 20 else 1200.0}) for w in windows]
    assert stats.verdict(latency(quiet()), None, hot).reason == "the clock fell from 2400 to 1200 MHz"
    assert stats.sustained([]) is None
    assert stats.sustained(windows[:1]).change == 0
