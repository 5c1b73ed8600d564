"""Codebook levels and the assignment of weights to them, in NumPy.

K-means (weight sharing, Han et al. 2016, arXiv 1510.00149). Around trained weights w the loss grows by
½ Σ h_i (w_i − c_i)², where h is the diagonal of its Hessian; so weight i has the factor h_i (Choi et al. 2017, arXiv
1612.01543):

    c_j ← Σ_{i in j} h_i w_i / Σ_{i in j} h_i,    i in j  where |w_i − c_j| is smallest

On a line the clusters are intervals, with borders half way between the centres. With the values sorted once and sums
accumulated from the left, a round costs a few binary searches.

Powers of two (Zhou et al. 2017, arXiv 1702.03044) and sums of two (additive powers, Li et al. 2020, arXiv 1909.13144).
With B bits of magnitude beside the sign bit:

    one term     0, 1, ½, ¼, … : 2^B − 1 powers
    two terms    p + q; p is 0 or one of 2^⌈B/2⌉ − 1 powers, q is 0 or one of 2^⌊B/2⌋ − 1 others, which alternate

times a scale for each output channel. Sums of two powers are spaced evenly among large weights; single powers are not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from toolchain.core.arrays import F64, I64

Start = Literal["linear", "quantile"]
"""First centres of k-means: evenly over the range of the weights, or with the same number of weights for each."""

MAX_KMEANS_ROUNDS = 200
"""Limit of k-means; it usually converges after a few dozen rounds."""
MIN_RELATIVE_IMPORTANCE = 1e-3
"""Smallest importance of a weight, relative to the mean, so that every cluster of weights has a centre."""
SCALE_CANDIDATES = 2.0 ** np.linspace(-1.5, 0.5, 33)
"""Scales tried for powers of two, relative to the channel's largest weight divided by the largest level."""


def nearest(values: F64, levels: F64) -> I64:
    """Return the index of the nearest of the sorted `levels` for each value; half way between two, the upper one."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values, side="right")


def start_centres(values: F64, count: int, start: Start) -> F64:
    """Choose `count` sorted centres."""
    if start == "linear":
        return np.linspace(values.min(), values.max(), count)
    return np.quantile(values, (np.arange(count) + 0.5) / count)


def kmeans(values: F64, centres: F64, weights: F64 | None = None) -> F64:
    """Run weighted k-means on a line, from sorted `centres` until nothing moves; an empty cluster keeps its centre.

    Args:
        values: of any shape.
        centres: [k], sorted.
        weights: in the shape of `values`, not negative; None: all count equally.

    Returns:
        float64 [k], sorted.
    """
    flat = values.reshape(-1).astype(np.float64)
    share = np.ones_like(flat) if weights is None else weights.reshape(-1).astype(np.float64)
    share = np.maximum(share / max(float(share.mean()), 1e-300), MIN_RELATIVE_IMPORTANCE)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    mass, moment = (np.concatenate([[0.0], np.cumsum(x)]) for x in (share[order], (share * flat)[order]))
    for _ in range(MAX_KMEANS_ROUNDS):
        borders = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(flat)]])
        held = np.diff(mass[edges])
        moved = np.sort(np.where(held > 0, np.diff(moment[edges]) / np.where(held > 0, held, 1), centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def power_levels(bits: int, terms: int) -> F64:
    """Compute 2^bits − 1 sorted levels, symmetric around zero; with one term the largest is 1.

    Args:
        bits: 2 or more, the sign included.
        terms: 1 or 2 powers in each level.
    """
    magnitude = bits - 1
    if terms == 1:
        sums = np.concatenate([[0.0], 2.0 ** -np.arange(2**magnitude - 1)])
    else:
        second = 2 ** (magnitude // 2) - 1
        first = 2 ** (magnitude - magnitude // 2) - 1
        exponents = np.arange(first + second)
        chosen = np.isin(exponents, first + second - 2 - 2 * np.arange(second))
        p, q = (np.concatenate([[0.0], 2.0 ** -exponents[where]]) for where in (~chosen, chosen))
        sums = (p[:, None] + q).reshape(-1)
    sums = np.unique(sums)
    return np.concatenate([-sums[:0:-1], sums])


def best_scales(rows: F64, levels: F64, weights: F64 | None = None) -> F64:
    """Find for every row the scale s with the smallest Σ h (w − s q)², where q are the levels nearest to w / s.

    For given q the best s is Σ h w q / Σ h q², and it reduces the error by (Σ h w q)² / Σ h q². The q of a fixed set of
    candidate scales are tried.

    Args:
        rows: [n, m].
        levels: sorted.
        weights: h, [n, m]; None: all equal.

    Returns:
        float64 [n]; 1 for a row of zeros.
    """
    importance = np.ones_like(rows) if weights is None else weights
    largest = np.abs(rows).max(1) / levels[-1]
    largest = np.where(largest > 0, largest, 1.0)
    best, gain = largest, np.full(len(rows), -1.0)
    for candidate in SCALE_CANDIDATES:
        chosen = levels[nearest(rows / (candidate * largest)[:, None], levels)]
        size = (importance * chosen**2).sum(1)
        match = (importance * rows * chosen).sum(1)
        reduction = np.where(size > 0, match**2 / np.where(size > 0, size, 1), 0.0)
        better = (reduction > gain) & (match > 0)
        best = np.where(better, match / np.where(size > 0, size, 1), best)
        gain = np.where(better, reduction, gain)
    return best
