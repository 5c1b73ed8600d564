"""Statistics of latency samples: an interval for the median, steadiness, and the comparison of two models.

Successive inferences are not independent (clock, caches, other processes), so samples are resampled in blocks of
consecutive ones: the moving-block bootstrap (Künsch, Ann. Statist. 17, 1989), block length n^(1/3), with percentile
intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

Two models that took turns are compared round by round: a disturbance of a whole round slows both and cancels.
- With one thread, the processor time of that thread is compared instead of the elapsed time. On a busy machine the
  elapsed time includes the turns of other processes; on an idle machine both are the same.
- The ratio is the trimmed mean of the logarithms of the rounds' ratios, with a fifth cut off on both sides, so that a
  disturbed round does not count. Its interval is that of Tukey and McLaughlin (Sankhyā A 25, 1963): the winsorized
  deviation, and Student's distribution.
- The position of a process in memory makes it about 1 % faster or slower than another process with the same file, for
  its whole life (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong, ASPLOS 2009). A few
  processes are not enough to estimate that deviation, so `PROCESS_DEVIATION`, measured on many, is added to the
  interval; where the processes show a larger deviation, that one is used.
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
MAX_RESAMPLED = 1000  # More samples are thinned evenly before resampling; intervals get a little wider, never narrower.
TRIMMED_SHARE = 0.2  # share of the rounds that is cut off on each side
PROCESS_DEVIATION = 0.01  # relative standard deviation of the speed between processes with the same file
NORMAL_QUANTILE = 1.96  # 97.5th percentile of the normal distribution

MAX_UNCERTAINTY = 0.05  # of the median, relative to it
MAX_VARIATION = 0.10  # standard deviation of the central 98 %, relative to their mean (the limit is pyperf's)
MAX_TAIL_RATIO = 1.5  # 99th percentile divided by the median
MAX_DRIFT = 0.05  # relative change of the median from the first half to the second
MIN_CLOCK_RATIO = 0.90  # late clock divided by the early clock; below it, the processor was throttled
THROTTLING_FLAGS = ("the voltage is too low", "the clock is capped", "the processor is throttled", "it is too warm")
SUSTAINED_PART_S = 60.0  # length of the beginning and of the end of a sustained run that are compared
BUSY_LOAD = 1.0  # a load before the benchmark with which at least one core was in use by others


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
    """A judgement of samples: whether they can be trusted.

    Attributes:
        kind: ``steady`` if they can, else the kind of disturbance.
        reason: why they cannot, one clause with the numbers; None for steady samples.
    """

    kind: Literal["steady", "noisy", "throttled", "drifting"]
    reason: str | None = None


def median(samples: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median with its 95 % interval; `seed` is that of the resampling."""
    values = np.asarray(samples, dtype=np.float64)
    return _estimate(float(np.median(values)), _resampled_medians(values, np.random.default_rng(seed)))


def variation(samples: Sequence[float]) -> float:
    """Return the standard deviation divided by the mean, of the samples between the 1st and the 99th percentile."""
    values = np.asarray(samples, dtype=np.float64)
    low, high = np.percentile(values, [1, 99])
    central = values[(values >= low) & (values <= high)]
    return float(central.std() / central.mean())


def drift(samples: Sequence[float]) -> float:
    """Return the relative change of the median from the first half to the second; 0 where their intervals overlap."""
    if len(samples) < 4:
        return 0.0
    middle = len(samples) // 2
    first, second = median(samples[:middle]), median(samples[middle:])
    if first.low <= second.high and second.low <= first.high:
        return 0.0
    return second.value / first.value - 1


@dataclass(frozen=True)
class Sustained:
    """The beginning and the end of a sustained run: one minute each, or a third of a run shorter than three minutes.

    Attributes:
        first_ms: median of the windows' median latencies at the beginning.
        last_ms: likewise at the end.
        minutes: length of the whole run.
    """

    first_ms: float
    last_ms: float
    minutes: float

    @property
    def change(self) -> float:
        """Relative change of the latency, positive where the end is slower."""
        return self.last_ms / self.first_ms - 1


def sustained(windows: Sequence[Window]) -> Sustained | None:
    """Summarize a sustained run; None if there was none."""
    if not windows:
        return None
    end = windows[-1].at_s
    part = min(SUSTAINED_PART_S, end / 3)
    first = [window.p50_ms for window in windows if window.at_s <= part] or [windows[0].p50_ms]
    last = [window.p50_ms for window in windows if window.at_s > end - part]
    return Sustained(float(np.median(first)), float(np.median(last)), end / 60)


def verdict(latency: Latency, conditions: Conditions | None = None, windows: Sequence[Window] = ()) -> Steadiness:
    """Judge samples: throttled, drifting, noisy or steady, the first that holds.

    Args:
        latency: the samples.
        conditions: readings of the machine; None where there are none.
        windows: windows of a sustained run; empty if there was none.

    Returns:
        The judgement; its reason also says if the machine was busy before.
    """
    about = conditions or Conditions()
    busy = f" (load {about.load_before:.1f} before it began)" if (about.load_before or 0) >= BUSY_LOAD else ""
    if reason := _throttled(about, windows):
        return Steadiness("throttled", reason)
    run = sustained(windows)
    if run is not None and abs(run.change) > MAX_DRIFT:
        direction = "slower" if run.change > 0 else "faster"
        change = f"{abs(run.change):.0%} {direction} at the end of {run.minutes:.3g} minutes than at their beginning"
        return Steadiness("drifting", change + busy)
    change_of_halves = drift(latency.samples_ms)
    if abs(change_of_halves) > MAX_DRIFT:
        direction = "slower" if change_of_halves > 0 else "faster"
        return Steadiness("drifting", f"the second half is {abs(change_of_halves):.0%} {direction}{busy}")
    noise = _noise(latency)
    return Steadiness("noisy", noise + busy) if noise else Steadiness("steady")


def _throttled(about: Conditions, windows: Sequence[Window]) -> str | None:
    """Return the reason if the processor was throttled, else None.

    A Raspberry Pi's flags tell (bits 0 to 3: now, 16 to 19: since its start), or a fall of the clock.
    """
    readings: list[Reading | Window] = [*about.during, *windows]
    bits = 0
    for flags in (about.throttled_before, about.throttled_after, *(reading.throttled for reading in readings)):
        bits |= (flags or 0) & 0xF
    if about.throttled_before is not None:
        after = max([about.throttled_after or 0, *(reading.throttled or 0 for reading in readings)])
        bits |= (after & ~about.throttled_before) >> 16 & 0xF
    if bits:
        return ", ".join(name for bit, name in enumerate(THROTTLING_FLAGS) if bits >> bit & 1) + f" (flags {bits:#x})"
    series = [about.clock_mhz_before, *(reading.clock_mhz for reading in readings), about.clock_mhz_after]
    clocks = [clock for clock in series if clock is not None]
    third = max(1, len(clocks) // 3)
    early, late = np.median(clocks[:third] or [0]), np.median(clocks[-third:] or [0])
    return f"the clock fell from {early:.0f} to {late:.0f} MHz" if late < MIN_CLOCK_RATIO * early else None


def _noise(latency: Latency) -> str | None:
    if not latency.settled:
        return "warm-up did not become steady"
    p50 = median(latency.samples_ms)
    if p50.uncertainty > MAX_UNCERTAINTY:
        return f"the median is known to ±{p50.uncertainty:.0%} only"
    spread = variation(latency.samples_ms)
    if spread > MAX_VARIATION:
        return f"standard deviation {spread:.0%} of the mean"
    tail = latency.p99_ms / p50.value
    return f"p99 is {tail:.1f} times the median" if tail > MAX_TAIL_RATIO else None


def speedup(baseline: Latency, other: Latency, *, paired: bool = True, seed: int = 0) -> Estimate:
    """Return the baseline's latency divided by the other one's, above 1 where the other is faster.

    The method is described at the top of this file.

    Args:
        baseline: samples of the model that is compared with.
        other: samples of the other model.
        paired: True where they took turns. Otherwise, or where the numbers of rounds differ, the ratio is that of the
            medians of all samples, each resampled by itself.
        seed: of the resampling.
    """
    first, second = (_compared(latency, beside) for latency, beside in ((baseline, other), (other, baseline)))
    expected = PROCESS_DEVIATION * math.sqrt(1 / baseline.processes + 1 / other.processes)
    if not paired or baseline.processes != other.processes or not 1 < len(baseline.rounds) == len(other.rounds):
        rng = np.random.default_rng(seed)
        resampled = np.log(_resampled_medians(first, rng) / _resampled_medians(second, rng))
        center, tail = float(np.log(np.median(first) / np.median(second))), (1 - CONFIDENCE) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return _ratio(center, max(0.0, center - low), max(0.0, high - center), NORMAL_QUANTILE * expected)
    pairs = zip(_rounds(first, baseline), _rounds(second, other), strict=True)
    logs = np.log([np.median(a) / np.median(b) for a, b in pairs])
    center, side = _trimmed(logs)
    by_process = [np.median(part) for part in np.array_split(logs, baseline.processes)]
    observed = float(np.std(by_process, ddof=1)) / math.sqrt(len(by_process)) if len(by_process) > 1 else 0.0
    # `_ratio` adds the expected deviation between processes, so only the part of the observed one above it counts here.
    side = max(side, NORMAL_QUANTILE * math.sqrt(max(0.0, observed**2 - expected**2)))
    return _ratio(center, side, side, NORMAL_QUANTILE * expected)


def difference(ratio: Estimate) -> str:
    """Return a speed-up in words: ``no significant difference (95 %: ...)`` or ``5.1 % slower (95 %: ...)``.

    The percentages are relative to the baseline's time.
    """
    changes = [1 / speed - 1 for speed in (ratio.value, ratio.high, ratio.low)]
    if ratio.low <= 1 <= ratio.high:
        return f"no significant difference (95 %: {changes[1] * 100:+.1f} to {changes[2] * 100:+.1f} %)"
    ends = sorted(abs(change) * 100 for change in changes[1:])
    direction = "slower" if changes[0] > 0 else "faster"
    return f"{abs(changes[0]) * 100:.1f} % {direction} (95 %: {ends[0]:.1f} to {ends[1]:.1f} %)"


def _compared(latency: Latency, beside: Latency) -> F64:
    """Return processor times if both have them, else elapsed times."""
    return np.asarray(latency.cpu_ms if latency.cpu_ms and beside.cpu_ms else latency.samples_ms, dtype=np.float64)


def _rounds(values: F64, latency: Latency) -> list[F64]:
    return [values[a:b] for a, b in itertools.pairwise((*latency.rounds, len(values)))]


def _trimmed(values: F64) -> tuple[float, float]:
    """Return the trimmed mean of two or more values, and half the length of its 95 % interval."""
    ordered, n = np.sort(values), len(values)
    cut = int(TRIMMED_SHARE * n)
    kept = ordered[cut : n - cut]
    winsorized = np.clip(ordered, kept[0], kept[-1])
    error = float(winsorized.std(ddof=1)) * math.sqrt(n) / len(kept)
    return float(kept.mean()), student_quantile(len(kept) - 1) * error


def student_quantile(v: int) -> float:
    """Return the 97.5th percentile of Student's distribution (Abramowitz & Stegun 26.7.5).

    Args:
        v: degrees of freedom, 2 or more; the approximation is 3 % low for 2.
    """
    z = NORMAL_QUANTILE
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def _ratio(center: float, below: float, above: float, between_processes: float) -> Estimate:
    """Return the ratio, from its logarithm and the sides of its interval; both sides include `between_processes`."""
    low, high = (math.hypot(side, between_processes) for side in (below, above))
    return Estimate(math.exp(center), math.exp(center - low), math.exp(center + high))


def _resampled_medians(values: F64, rng: np.random.Generator) -> F64:
    """Return the medians of `RESAMPLES` moving-block resamples."""
    values = values[:: -(-len(values) // MAX_RESAMPLED)]
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
