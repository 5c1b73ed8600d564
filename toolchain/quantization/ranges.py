"""Ranges: choose an activation's range from its histogram.

A range [lo, hi] that contains 0 is divided into 255 steps of s = (hi - lo) / 255. With counts n over values x:

    E(lo, hi) = s²/12 · #{lo <= x <= hi, x ≠ 0}  +  Σ_{x < lo} n (x - lo)²  +  Σ_{x > hi} n (x - hi)²

The first term is the variance of rounding to a grid (uniform error; exact zeros are representable and cause none). The
others are clipping. The prefix sums of n, nx, nx² give E for every pair of edges at once, so the search is exhaustive
over a grid of edges, and the result is always within the observed limits. Rounding is not uniform where many values are
equal or within one step, so the result must beat min-max on the histogram itself as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolchain.calibration.observation import TensorStats
from toolchain.core.arrays import F64
from toolchain.formats.recipe import RangeMethod

UINT8_MAX = 255
"""The largest quantized value, which is also the number of steps of a grid."""
EDGES_PER_SIDE = 128
"""Number of edges that are tried on each side."""


@dataclass(frozen=True)
class Affine:
    """A grid of 256 real values: scale · (q - zero_point) for q in 0..255.

    Attributes:
        scale: distance between neighbours, a float32 number.
        zero_point: the q that represents 0.
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest representable value."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> float:
        """The largest representable value."""
        return self.scale * (UINT8_MAX - self.zero_point)


def choose_range(stats: TensorStats, method: RangeMethod, percentile: float) -> tuple[float, float]:
    """Choose the range to quantize, inside the observed limits widened to contain 0.

    Args:
        stats: statistics of the tensor.
        method: the method; `auto` chooses the range of least squared error, as `mse` does.
        percentile: percentage of values inside the range, for the method `percentile`.
    """
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    if method == "minmax" or low == high:
        return low, high
    if method == "percentile":
        return _percentile_range(stats, percentile)
    return _entropy_range(stats) if method == "entropy" else _mse_range(stats)


def _percentile_range(stats: TensorStats, percentile: float) -> tuple[float, float]:
    """Cut (100 - percentile) / 2 percent of the values off each side."""
    tail = (100.0 - percentile) / 200.0 * stats.count
    below = np.concatenate([[0], np.cumsum(stats.histogram)])
    edges = stats.edges
    low = float(np.interp(tail, below, edges))
    high = float(np.interp(stats.count - tail, below, edges))
    return min(low, 0.0), max(high, 0.0)


def _entropy_range(stats: TensorStats) -> tuple[float, float]:
    """Find the limit of |x| for which the clipped histogram P and its 255 levels Q differ least: Σ P ln (P / Q).

    TensorRT calibrates this way (Migacz, 2017, "8-bit inference with TensorRT"). Clipped values count in the outermost
    bins of P, and Q spreads each level evenly over those of its bins that are not empty.
    """
    counts, edges = stats.histogram.astype(np.float64), stats.edges
    centres = (edges[:-1] + edges[1:]) / 2
    widest = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    best, least = widest, np.inf
    for limit in _edge_candidates(max(-widest[0], widest[1])):
        low, high = max(widest[0], -limit), min(widest[1], limit)
        inside = np.flatnonzero((centres >= low) & (centres <= high))
        if len(inside) < 2:
            break
        first, last = inside[0], inside[-1] + 1
        plain = counts[first:last]
        clipped = plain.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        level = np.rint((centres[first:last] - low) / (high - low) * UINT8_MAX).astype(np.intp)
        filled = clipped > 0
        sums = np.bincount(level, plain * filled, UINT8_MAX + 1)
        spread = sums / np.maximum(np.bincount(level, filled, UINT8_MAX + 1), 1)
        p, q = clipped[filled] / clipped.sum(), spread[level][filled] / max(plain.sum(), 1.0)
        divergence = float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _mse_range(stats: TensorStats) -> tuple[float, float]:
    """Find the pair of edges with the least expected squared error."""
    edges, counts = stats.edges, stats.histogram.astype(np.float64)
    centres = (edges[:-1] + edges[1:]) / 2
    lows, highs = _edge_candidates(min(stats.minimum, 0.0)), _edge_candidates(max(stats.maximum, 0.0))
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    below_low = [np.interp(lows, edges, s) for s in sums]
    above_high = [s[-1] - np.interp(highs, edges, s) for s in sums]
    clipped_low = below_low[2] - 2 * lows * below_low[1] + lows**2 * below_low[0]
    clipped_high = above_high[2] - 2 * highs * above_high[1] + highs**2 * above_high[0]
    inside = stats.count - _exact_zeros(stats) - below_low[0][:, None] - above_high[0][None, :]
    step = (highs[None, :] - lows[:, None]) / UINT8_MAX
    error = step**2 / 12 * np.maximum(inside, 0) + clipped_low[:, None] + clipped_high[None, :]
    error[step <= 0] = np.inf
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    widest, narrowed = (float(lows[0]), float(highs[0])), (float(lows[i]), float(highs[j]))
    # After a Clip many values equal a limit, so the values of the outer bins are assumed to be the limits.
    values = np.concatenate([[stats.minimum], centres[1:-1], [stats.maximum]])
    return min(widest, narrowed, key=lambda limits: _rounding_error(affine(*limits), values, counts))


def _rounding_error(grid: Affine, values: F64, counts: F64) -> float:
    """Sum the squared errors of `values`, each weighted by `counts`, on a grid."""
    rounded = grid.scale * (np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, UINT8_MAX) - grid.zero_point)
    return float(counts @ (rounded - values) ** 2)


def _edge_candidates(limit: float) -> F64:
    """List edges from the observed limit inwards; the widest comes first, so that equal errors keep min-max."""
    return limit * np.linspace(1.0, 0.02, EDGES_PER_SIDE) if limit else np.zeros(1)


def _exact_zeros(stats: TensorStats) -> float:
    """Estimate the number of exact zeros after a Relu: the excess of the bin at 0 over the next bin."""
    if stats.minimum != 0.0 or len(stats.histogram) < 3:
        return 0.0
    return max(0.0, float(stats.histogram[0] - stats.histogram[1]))


def affine(low: float, high: float) -> Affine:
    """Make the grid for [low, high], widened to contain 0; 0 is a value of the grid."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / UINT8_MAX)
    if not scale > np.finfo(np.float32).tiny:
        return Affine(1.0, 0)
    zero = int(np.clip(np.rint(-low / np.float64(scale)), 0, UINT8_MAX))
    return Affine(float(scale), zero)
