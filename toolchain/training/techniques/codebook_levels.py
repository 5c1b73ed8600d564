"""The few values that weights may take, and which of them each takes: the mathematics, in NumPy.

K-means (weight sharing, Han et al. 2016, arXiv 1510.00149). Around a trained w the loss grows by ½ Σ h_i (w_i − c_i)²,
with h the diagonal of its Hessian; so h_i weighs weight i (Choi et al. 2017, arXiv 1612.01543):

    c_j ← Σ_{i in j} h_i w_i / Σ_{i in j} h_i,    i in j  where |w_i − c_j| is least

On a line the clusters are intervals, their borders half way between centres. Sorted once, with sums from the left, a
round costs a few binary searches.

Powers of two (Zhou et al. 2017, arXiv 1702.03044) and sums of two (additive powers, Li et al. 2020, arXiv 1909.13144).
With B bits of magnitude behind the sign:

    one term     0, 1, ½, ¼, … : 2^B − 1 powers
    two terms    p + q; p is 0 or one of 2^⌈B/2⌉ − 1 powers, q is 0 or one of 2^⌊B/2⌋ − 1 others, which alternate

times a scale for each output channel. Sums of two lie evenly where large weights are, which single powers do not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from toolchain.core.arrays import F64, I64

Start = Literal["linear", "quantile"]

ROUNDS = 200
"""Of k-means, at most; it has mostly settled after a few dozen."""
LEAST_SHARE = 1e-3
"""Every weight counts at least this part of the mean, so that a cluster of weights nobody reads has a centre."""
SCALES = 2.0 ** np.linspace(-1.5, 0.5, 33)
"""Tried for powers of two, in units of the channel's largest weight over the largest level."""


def nearest(values: F64, levels: F64) -> I64:
    """Index of the nearest of the sorted `levels`, of the shape of `values`; half way the upper one."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values, side="right")


def start_centres(values: F64, count: int, start: Start) -> F64:
    """`count` sorted centres. linear: evenly over the range; quantile: as many values to each."""
    if start == "linear":
        return np.linspace(values.min(), values.max(), count)
    return np.quantile(values, (np.arange(count) + 0.5) / count)


def kmeans(values: F64, centres: F64, weights: F64 | None = None) -> F64:
    """Weighted k-means on a line, from sorted `centres` until nothing moves; an empty cluster stays where it is.

    Args:
        values: of any shape.
        centres: [k], sorted.
        weights: of the shape of `values`, not negative; None: all count alike.

    Returns:
        float64 [k], sorted.
    """
    flat = values.reshape(-1).astype(np.float64)
    share = np.ones_like(flat) if weights is None else weights.reshape(-1).astype(np.float64)
    share = np.maximum(share / max(float(share.mean()), 1e-300), LEAST_SHARE)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    mass, moment = (np.concatenate([[0.0], np.cumsum(x)]) for x in (share[order], (share * flat)[order]))
    for _ in range(ROUNDS):
        borders = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(flat)]])
        held = np.diff(mass[edges])
        moved = np.sort(np.where(held > 0, np.diff(moment[edges]) / np.where(held > 0, held, 1), centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def powers(bits: int, terms: int) -> F64:
    """2^bits − 1 sorted levels, the same on both sides of zero; one term: the largest is 1.

    bits: 2 or more. terms: 1 or 2.
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
    """For every row the s with the least Σ h (w − s q)², q the levels nearest to w / s, among candidates.

    For given q the best s is Σ h w q / Σ h q², and what it takes off the error is (Σ h w q)² / Σ h q².

    Args:
        rows: [n, m].
        levels: sorted.
        weights: h, [n, m]; None: all alike.

    Returns:
        float64 [n]; 1 for a row of zeros.
    """
    share = np.ones_like(rows) if weights is None else weights
    largest = np.abs(rows).max(1) / levels[-1]
    largest = np.where(largest > 0, largest, 1.0)
    best, gain = largest, np.full(len(rows), -1.0)
    for candidate in SCALES:
        chosen = levels[nearest(rows / (candidate * largest)[:, None], levels)]
        size = (share * chosen**2).sum(1)
        match = (share * rows * chosen).sum(1)
        found = np.where(size > 0, match**2 / np.where(size > 0, size, 1), 0.0)
        better = (found > gain) & (match > 0)
        best = np.where(better, match / np.where(size > 0, size, 1), best)
        gain = np.where(better, found, gain)
    return best
