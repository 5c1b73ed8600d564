"""What samples say: an interval of the median, steadiness, and the ratio of two models interleaved.

Successive inferences are not independent (clock, caches, neighbours), so samples are resampled in blocks of
consecutive ones: the moving-block bootstrap (Künsch, Ann. Statist. 17, 1989), block length n^(1/3), with
percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). Ratios of
interleaved runs are resampled in two stages, rounds and then blocks in each round (Davison & Hinkley,
Bootstrap Methods and their Application, 1997, §3.8): what slowed a whole round down slowed both models and cancels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from toolchain.measurement import Conditions, Latency

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
MAX_SAMPLES = 1000  # More are thinned evenly before resampling: a little wider, never narrower.

WIDE = 0.05  # uncertainty of the median
UNEVEN = 0.10  # standard deviation of the central 98 %, of their mean (the limit is pyperf's)
TAIL = 1.5  # 99th percentile, of the median
DRIFT = 0.05  # change of the median between the halves
THROTTLED = 0.90  # clock after, of the clock before
BUSY = 1.0  # load before we began: at least one core was somebody else's


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, in the unit of the samples (or none, for a ratio)."""

    value: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """The wider side of the interval, as a fraction of the value."""
        return max(self.high - self.value, self.value - self.low) / self.value


@dataclass(frozen=True)
class Verdict:
    """Whether the samples can be trusted, and if not, why: one clause with the numbers."""

    kind: Literal["steady", "noisy", "drifting"]
    reason: str | None = None


def median(samples: Sequence[float], seed: int = 0) -> Estimate:
    """The median with its interval."""
    values = np.asarray(samples, dtype=np.float64)
    return _estimate(float(np.median(values)), _resampled_medians(values, np.random.default_rng(seed)))


def variation(samples: Sequence[float]) -> float:
    """Standard deviation over mean of the samples between the 1st and the 99th percentile."""
    values = np.asarray(samples, dtype=np.float64)
    low, high = np.percentile(values, [1, 99])
    central = values[(values >= low) & (values <= high)]
    return float(central.std() / central.mean())


def drift(samples: Sequence[float]) -> float:
    """Relative change of the median from the first half to the second; 0 where the halves' intervals overlap."""
    if len(samples) < 4:
        return 0.0
    middle = len(samples) // 2
    first, second = median(samples[:middle]), median(samples[middle:])
    if first.low <= second.high and second.low <= first.high:
        return 0.0
    return second.value / first.value - 1


def verdict(latency: Latency, conditions: Conditions | None = None) -> Verdict:
    """Drifting before noisy before steady; the first reason found is given, and whether the machine was busy."""
    about = conditions or Conditions()
    busy = f" (load {about.load_before:.1f} before it began)" if (about.load_before or 0) >= BUSY else ""
    before, after = about.clock_mhz_before, about.clock_mhz_after
    if before and after and after < THROTTLED * before:
        return Verdict("drifting", f"the clock fell from {before:.0f} to {after:.0f} MHz")
    change = drift(latency.samples_ms)
    if abs(change) > DRIFT:
        direction = "slower" if change > 0 else "faster"
        return Verdict("drifting", f"the second half is {abs(change):.0%} {direction}{busy}")
    noise = _noise(latency)
    return Verdict("noisy", noise + busy) if noise else Verdict("steady")


def _noise(latency: Latency) -> str | None:
    if not latency.settled:
        return "warm-up did not become steady"
    p50 = median(latency.samples_ms)
    if p50.uncertainty > WIDE:
        return f"the median is known to ±{p50.uncertainty:.0%} only"
    spread = variation(latency.samples_ms)
    if spread > UNEVEN:
        return f"standard deviation {spread:.0%} of the mean"
    tail = latency.p99_ms / p50.value
    return f"p99 is {tail:.1f} times the median" if tail > TAIL else None


def speedup(baseline: Latency, other: Latency, *, paired: bool = True, seed: int = 0) -> Estimate:
    """How many times faster `other` is than `baseline`: the ratio of their medians, above 1 where it is faster.

    paired: they were interleaved. The ratio is then the geometric mean of the rounds' ratios; otherwise, or
    where the numbers of rounds differ, that of the medians of all samples, each resampled by itself.
    """
    rng = np.random.default_rng(seed)
    if not paired or len(baseline.rounds) != len(other.rounds):
        ratios = _resampled_medians(np.asarray(baseline.samples_ms), rng)
        ratios /= _resampled_medians(np.asarray(other.samples_ms), rng)
        return _estimate(baseline.p50_ms / other.p50_ms, ratios)
    pairs = list(zip(_rounds(baseline), _rounds(other), strict=True))
    value = np.exp(np.mean([np.log(np.median(a) / np.median(b)) for a, b in pairs]))
    logs = np.log([_resampled_medians(a, rng) / _resampled_medians(b, rng) for a, b in pairs])
    chosen = rng.integers(len(pairs), size=(len(pairs), RESAMPLES))
    return _estimate(float(value), np.exp(np.take_along_axis(logs, chosen, axis=0).mean(axis=0)))


def _rounds(latency: Latency) -> list[Floats]:
    values = np.asarray(latency.samples_ms, dtype=np.float64)
    return [values[a:b] for a, b in itertools.pairwise((*latency.rounds, len(values)))]


def _resampled_medians(values: Floats, rng: np.random.Generator) -> Floats:
    """Medians of `RESAMPLES` moving-block resamples."""
    values = values[:: -(-len(values) // MAX_SAMPLES)]
    n = len(values)
    length = round(n ** (1 / 3))
    starts = rng.integers(n - length + 1, size=(RESAMPLES, -(-n // length)))
    indices = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]
    return np.asarray(np.median(values[indices], axis=1), dtype=np.float64)


def _estimate(value: float, resampled: Floats) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # With few samples the percentiles need not contain the estimate itself.
    return Estimate(value, min(float(low), value), max(float(high), value))
