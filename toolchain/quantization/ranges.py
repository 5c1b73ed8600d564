"""Choosing an activation's range from its histogram.

A range [lo, hi] containing 0 is cut into 255 steps of s = (hi - lo) / 255. With counts n over values x:

    E(lo, hi) = s²/12 · #{lo <= x <= hi, x ≠ 0}  +  Σ_{x < lo} n (x - lo)²  +  Σ_{x > hi} n (x - hi)²

The first term is the variance of rounding to a grid (uniform error; exact zeros are representable and make
none), the others are clipping. The prefix sums of n, nx, nx² give E for every pair of edges at once, so the
search is exhaustive over a grid of edges and never goes beyond the observed limits. Rounding is not uniform where
many values are equal or within one step, so what was found must beat min-max on the histogram itself as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolchain.calibration.observation import TensorStats
from toolchain.core.arrays import F64
from toolchain.formats.recipe import RangeMethod

LEVELS = 255
CANDIDATES = 128
"""Edges tried on each side."""


@dataclass(frozen=True)
class Affine:
    """Real value = scale · (q - zero_point), q in 0..255; scale is a float32 number."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest representable value."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The largest representable value."""
        return self.scale * (LEVELS - self.zero_point)


def choose_range(stats: TensorStats, method: RangeMethod, percentile: float) -> tuple[float, float]:
    """The range to quantize, inside the observed limits widened to contain 0; `auto` takes the least squared error."""
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    if method == "minmax" or low == high:
        return low, high
    if method == "percentile":
        return _percentile_range(stats, percentile)
    return _entropy_range(stats) if method == "entropy" else _mse_range(stats)


def _percentile_range(stats: TensorStats, percentile: float) -> tuple[float, float]:
    """Cut (100 - percentile) / 2 percent off each side."""
    tail = (100.0 - percentile) / 200.0 * stats.count
    below = np.concatenate([[0], np.cumsum(stats.histogram)])
    edges = stats.edges
    low = float(np.interp(tail, below, edges))
    high = float(np.interp(stats.count - tail, below, edges))
    return min(low, 0.0), max(high, 0.0)


def _entropy_range(stats: TensorStats) -> tuple[float, float]:
    """|x| clipped until the clipped histogram P and its 255 levels Q differ least: Σ P ln (P / Q).

    As TensorRT calibrates (Migacz, 2017, "8-bit inference with TensorRT"): what is clipped counts into P's outermost
    bins, and Q spreads each level evenly over those of its bins that are not empty.
    """
    counts, edges = stats.histogram.astype(np.float64), stats.edges
    centres = (edges[:-1] + edges[1:]) / 2
    widest = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    best, least = widest, np.inf
    for limit in _candidates(max(-widest[0], widest[1])):
        low, high = max(widest[0], -limit), min(widest[1], limit)
        inside = np.flatnonzero((centres >= low) & (centres <= high))
        if len(inside) < 2:
            break
        first, last = inside[0], inside[-1] + 1
        plain = counts[first:last]
        clipped = plain.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        level = np.rint((centres[first:last] - low) / (high - low) * LEVELS).astype(np.intp)
        filled = clipped > 0
        sums = np.bincount(level, plain * filled, LEVELS + 1)
        spread = sums / np.maximum(np.bincount(level, filled, LEVELS + 1), 1)
        p, q = clipped[filled] / clipped.sum(), spread[level][filled] / max(plain.sum(), 1.0)
        divergence = float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _mse_range(stats: TensorStats) -> tuple[float, float]:
    """The pair of edges of least expected squared error."""
    edges, counts = stats.edges, stats.histogram.astype(np.float64)
    centres = (edges[:-1] + edges[1:]) / 2
    lows, highs = _candidates(min(stats.minimum, 0.0)), _candidates(max(stats.maximum, 0.0))
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    below_low = [np.interp(lows, edges, s) for s in sums]
    above_high = [s[-1] - np.interp(highs, edges, s) for s in sums]
    clipped_low = below_low[2] - 2 * lows * below_low[1] + lows**2 * below_low[0]
    clipped_high = above_high[2] - 2 * highs * above_high[1] + highs**2 * above_high[0]
    inside = stats.count - _zeros(stats) - below_low[0][:, None] - above_high[0][None, :]
    step = (highs[None, :] - lows[:, None]) / LEVELS
    error = step**2 / 12 * np.maximum(inside, 0) + clipped_low[:, None] + clipped_high[None, :]
    error[step <= 0] = np.inf
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    widest, found = (float(lows[0]), float(highs[0])), (float(lows[i]), float(highs[j]))
    # Where an activation clips, many values equal a limit; the outer bins stand for those.
    values = np.concatenate([[stats.minimum], centres[1:-1], [stats.maximum]])
    return min(widest, found, key=lambda limits: _rounding_error(affine(*limits), values, counts))


def _rounding_error(grid: Affine, values: F64, counts: F64) -> float:
    """Summed squared error of `values`, each `counts` times, on a grid."""
    rounded = grid.scale * (np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, LEVELS) - grid.zero_point)
    return float(counts @ (rounded - values) ** 2)


def _candidates(limit: float) -> F64:
    """From the observed limit inwards; the widest comes first so that ties keep min-max."""
    return limit * np.linspace(1.0, 0.02, CANDIDATES) if limit else np.zeros(1)


def _zeros(stats: TensorStats) -> float:
    """How many values are exact zeros after a Relu: what the bin at 0 holds beyond its neighbour's share."""
    if stats.minimum != 0.0 or len(stats.histogram) < 3:
        return 0.0
    return max(0.0, float(stats.histogram[0] - stats.histogram[1]))


def affine(low: float, high: float) -> Affine:
    """The grid for [low, high], widened to contain 0, with 0 on it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / LEVELS)
    if not scale > np.finfo(np.float32).tiny:
        return Affine(1.0, 0)
    zero = int(np.clip(np.rint(-low / np.float64(scale)), 0, LEVELS))
    return Affine(float(scale), zero)
