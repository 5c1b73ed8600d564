"""What samples say: an interval of the median, steadiness, and which of two models is faster.

Successive inferences are not independent (clock, caches, neighbours), so samples are resampled in blocks of
consecutive ones: the moving-block bootstrap (Künsch, Ann. Statist. 17, 1989), block length n^(1/3), with
percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

Two models that ran interleaved are compared round by round: what slowed a whole round down slowed both and cancels.
- With one thread, the computing time of that thread is compared, not the time that passed: on a busy machine the
  latter holds the turns of others. On an idle one they are the same.
- The ratio is the trimmed mean of the logarithms of the rounds' ratios, a fifth cut off on both sides, so that a round
  somebody disturbed does not count. Its interval is that of Tukey and McLaughlin (Sankhyā A 25, 1963): the winsorized
  deviation, and Student's distribution.
- A process is some 1 % faster or slower than the next of the same file for all of its life, by where its memory lies
  (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong, ASPLOS 2009). A few cannot tell how
  much that is: `PLACEMENT`, measured on many, is added to the interval, or what they show if that is more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolchain.core.arrays import F64
from toolchain.formats.results import Conditions, Latency, Reading, Window

RESAMPLES = 1000
CONFIDENCE = 0.95
MAX_SAMPLES = 1000  # More are thinned evenly before resampling: a little wider, never narrower.
TRIM = 0.2  # of the rounds, on each side
PLACEMENT = 0.01  # standard deviation of the speed of processes of the same file
NORMAL = 1.96  # the 97.5th percentile

WIDE = 0.05  # uncertainty of the median
UNEVEN = 0.10  # standard deviation of the central 98 %, of their mean (the limit is pyperf's)
TAIL = 1.5  # 99th percentile, of the median
DRIFT = 0.05  # change of the median between the halves
THROTTLED = 0.90  # clock late, of the clock early
FLAGS = ("the voltage is too low", "the clock is capped", "the processor is throttled", "it is too warm")
MINUTE_S = 60.0
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
class Steadiness:
    """Whether the samples can be trusted, and if not, why: one clause with the numbers."""

    kind: Literal["steady", "noisy", "throttled", "drifting"]
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


@dataclass(frozen=True)
class Sustained:
    """The first and the last minute of a sustained run (thirds of one shorter than three): medians of the windows."""

    first_ms: float
    last_ms: float
    minutes: float

    @property
    def change(self) -> float:
        """By how much of the first minute's latency the last one's is longer."""
        return self.last_ms / self.first_ms - 1


def sustained(windows: Sequence[Window]) -> Sustained | None:
    """What a sustained run came to; None where there was none."""
    if not windows:
        return None
    end = windows[-1].at_s
    part = min(MINUTE_S, end / 3)
    first = [window.p50_ms for window in windows if window.at_s <= part] or [windows[0].p50_ms]
    last = [window.p50_ms for window in windows if window.at_s > end - part]
    return Sustained(float(np.median(first)), float(np.median(last)), end / 60)


def verdict(latency: Latency, conditions: Conditions | None = None, windows: Sequence[Window] = ()) -> Steadiness:
    """Throttled, drifting, noisy or steady, the first that holds; with the reason, and whether the machine was busy."""
    about = conditions or Conditions()
    busy = f" (load {about.load_before:.1f} before it began)" if (about.load_before or 0) >= BUSY else ""
    if reason := _throttled(about, windows):
        return Steadiness("throttled", reason)
    run = sustained(windows)
    if run is not None and abs(run.change) > DRIFT:
        direction = "slower" if run.change > 0 else "faster"
        change = f"{abs(run.change):.0%} {direction} at the end of {run.minutes:.3g} minutes than at their beginning"
        return Steadiness("drifting", change + busy)
    change_of_halves = drift(latency.samples_ms)
    if abs(change_of_halves) > DRIFT:
        direction = "slower" if change_of_halves > 0 else "faster"
        return Steadiness("drifting", f"the second half is {abs(change_of_halves):.0%} {direction}{busy}")
    noise = _noise(latency)
    return Steadiness("noisy", noise + busy) if noise else Steadiness("steady")


def _throttled(about: Conditions, windows: Sequence[Window]) -> str | None:
    """By a Raspberry Pi's flags (bits 0 to 3 now, 16 to 19 since its start) or by the clock; None where it was not."""
    looks: list[Reading | Window] = [*about.during, *windows]
    seen = 0
    for flags in (about.throttled_before, about.throttled_after, *(look.throttled for look in looks)):
        seen |= (flags or 0) & 0xF
    if about.throttled_before is not None:
        after = max([about.throttled_after or 0, *(look.throttled or 0 for look in looks)])
        seen |= (after & ~about.throttled_before) >> 16 & 0xF
    if seen:
        return ", ".join(name for bit, name in enumerate(FLAGS) if seen >> bit & 1) + f" (flags {seen:#x})"
    series = [about.clock_mhz_before, *(look.clock_mhz for look in looks), about.clock_mhz_after]
    clocks = [clock for clock in series if clock is not None]
    third = max(1, len(clocks) // 3)
    early, late = np.median(clocks[:third] or [0]), np.median(clocks[-third:] or [0])
    return f"the clock fell from {early:.0f} to {late:.0f} MHz" if late < THROTTLED * early else None


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
    """How many times faster `other` is than `baseline`, above 1 where it is faster; see the module's docstring.

    paired: they were interleaved. Otherwise, or where the rounds differ in number, the ratio is that of the medians of
    all samples, each resampled by itself.
    """
    first, second = (_compared(latency, beside) for latency, beside in ((baseline, other), (other, baseline)))
    alone = PLACEMENT * math.sqrt(1 / baseline.processes + 1 / other.processes)
    if not paired or baseline.processes != other.processes or not 1 < len(baseline.rounds) == len(other.rounds):
        rng = np.random.default_rng(seed)
        resampled = np.log(_resampled_medians(first, rng) / _resampled_medians(second, rng))
        center, tail = float(np.log(np.median(first) / np.median(second))), (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return _ratio(center, max(0.0, center - low), max(0.0, high - center), NORMAL * alone)
    pairs = zip(_rounds(first, baseline), _rounds(second, other), strict=True)
    logs = np.log([np.median(a) / np.median(b) for a, b in pairs])
    center, side = _trimmed(logs)
    placed = [np.median(part) for part in np.array_split(logs, baseline.processes)]
    shown = float(np.std(placed, ddof=1)) / math.sqrt(len(placed)) if len(placed) > 1 else 0.0
    side = max(side, NORMAL * math.sqrt(max(0.0, shown**2 - alone**2)))  # the placement comes on top
    return _ratio(center, side, side, NORMAL * alone)


def difference(ratio: Estimate) -> str:
    """What a speed-up says of the other model's time: ``no significant difference`` or ``5.1 % slower (95 %: ...)``.

    The percentages are of the baseline's time.
    """
    changes = [1 / speed - 1 for speed in (ratio.value, ratio.high, ratio.low)]
    if ratio.low <= 1 <= ratio.high:
        return f"no significant difference (95 %: {changes[1] * 100:+.1f} to {changes[2] * 100:+.1f} %)"
    ends = sorted(abs(change) * 100 for change in changes[1:])
    direction = "slower" if changes[0] > 0 else "faster"
    return f"{abs(changes[0]) * 100:.1f} % {direction} (95 %: {ends[0]:.1f} to {ends[1]:.1f} %)"


def _compared(latency: Latency, beside: Latency) -> F64:
    """Computing times where both have them, else times that passed."""
    return np.asarray(latency.cpu_ms if latency.cpu_ms and beside.cpu_ms else latency.samples_ms, dtype=np.float64)


def _rounds(values: F64, latency: Latency) -> list[F64]:
    return [values[a:b] for a, b in itertools.pairwise((*latency.rounds, len(values)))]


def _trimmed(values: F64) -> tuple[float, float]:
    """The trimmed mean and half of its 95 % interval, of two values or more."""
    ordered, n = np.sort(values), len(values)
    cut = int(TRIM * n)
    kept = ordered[cut : n - cut]
    winsorized = np.clip(ordered, kept[0], kept[-1])
    error = float(winsorized.std(ddof=1)) * math.sqrt(n) / len(kept)
    return float(kept.mean()), _student(len(kept) - 1) * error


def _student(v: int) -> float:
    """The 97.5th percentile of Student's distribution (Abramowitz & Stegun 26.7.5); 3 % low for two degrees."""
    z = NORMAL
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def _ratio(center: float, below: float, above: float, placement: float) -> Estimate:
    """From the logarithm of a ratio and the sides of its interval, to which that of the placement is added."""
    low, high = (math.hypot(side, placement) for side in (below, above))
    return Estimate(math.exp(center), math.exp(center - low), math.exp(center + high))


def _resampled_medians(values: F64, rng: np.random.Generator) -> F64:
    """Medians of `RESAMPLES` moving-block resamples."""
    values = values[:: -(-len(values) // MAX_SAMPLES)]
    n = len(values)
    length = round(n ** (1 / 3))
    starts = rng.integers(n - length + 1, size=(RESAMPLES, -(-n // length)))
    indices = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]
    return np.asarray(np.median(values[indices], axis=1), dtype=np.float64)


def _estimate(value: float, resampled: F64) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # With few samples the percentiles need not contain the estimate itself.
    return Estimate(value, min(float(low), value), max(float(high), value))
