"""Rounding a weight so that what its layer computes changes least, not the weight itself.

With H = E[x xᵀ] of the layer's input the expected squared error of an output is Δw H Δwᵀ. Weights are rounded column
after column; the error of each is made good by the columns not rounded yet, in closed form:

    H⁻¹ = Uᵀ U (U upper triangular);   for column k:  e = (w_k − round(w_k)) / U_kk,   w_j ← w_j − e U_kj  for j > k

(Optimal brain quantization in a fixed order: Frantar et al., 2022, arXiv:2210.17323.) Overflow-free weights fit in: the
second of a pair is rounded to what the first has left of the bound (`weights.PAIR_LIMIT`), and the columns behind it
take up that error as well. The scale is the best of many for rounding with the diagonal of H alone, and the result is
taken, channel by channel, only where Δw H Δwᵀ is less than rounding to nearest leaves.

H comes in blocks along its diagonal; columns make good for each other within a block. It is damped, the more so the
fewer positions it comes from: with fewer than columns it knows less than it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from toolchain.core.arrays import F32, F64, Index
from toolchain.quantization.weights import (
    PAIR_LIMIT,
    SCALES_EXACT,
    SCALES_PLAIN,
    SMALLEST,
    TOP,
    WeightQuant,
    as_rows,
    bound_pairs,
    from_rows,
    is_overflow_free,
)

DAMPING = 0.01
LAZY = 128
"""Columns updated one by one before the rest is updated at once."""


def round_by_moments(
    weight: F32, nearest: WeightQuant, blocks: Sequence[F64], positions: int, *, exact: bool
) -> WeightQuant:
    """Round a weight with the second moments of what it multiplies.

    Args:
        weight: float32 of any rank >= 2.
        nearest: the same weight rounded to nearest, the mark to beat; its axis and promise are kept.
        blocks: float64 [groups, b, b] each, along the diagonal of H, whose columns are in the order of
            :func:`~toolchain.quantization.weights.as_rows`; every b but the last is even.
        positions: how many inputs H is the mean of.
        exact: keep every adjacent pair free of int16 overflow.
    """
    groups = len(blocks[0])
    size = sum(block.shape[1] for block in blocks)
    rows = np.asarray(as_rows(weight, nearest.axis), np.float64).reshape(groups, -1, size)
    diagonal = np.concatenate([np.einsum("gkk->gk", block) for block in blocks], axis=1)
    mean = np.maximum(diagonal.mean(axis=1), float(SMALLEST))
    damping = max(DAMPING, max(block.shape[1] for block in blocks) / max(positions, 1)) * mean
    damped = [block + damping[:, None, None] * np.eye(block.shape[1]) for block in blocks]
    upper = [np.linalg.cholesky(np.linalg.inv(block)).transpose(0, 2, 1) for block in damped]
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    best = np.asarray(as_rows(nearest.values, nearest.axis), np.float64).reshape(rows.shape)
    scales = nearest.scales.astype(np.float64).reshape(groups, -1)
    least = _error(best * scales[..., None] - rows, damped, ends)
    for candidate in (scales.copy(), _scales(rows, diagonal + damping[:, None], exact)):
        parts = zip(np.split(rows, ends, axis=2), upper, strict=True)
        rounded = np.concatenate([_round(part, u, candidate, exact) for part, u in parts], axis=2)
        error = _error(rounded * candidate[..., None] - rows, damped, ends)
        better = error < least
        best[better], scales[better], least[better] = rounded[better], candidate[better], error[better]
    integers = best.reshape(-1, size).astype(np.int8)
    free = is_overflow_free(integers) if exact else nearest.overflow_free
    values = from_rows(integers, weight.shape, nearest.axis)
    return WeightQuant(values, scales.astype(np.float32).reshape(-1), nearest.axis, free)


def _error(delta: F64, blocks: Sequence[F64], ends: Index) -> F64:
    """Δw H Δwᵀ for every output channel: [groups, outputs]."""
    parts = zip(np.split(delta, ends, axis=2), blocks, strict=True)
    return cast(F64, sum(np.einsum("gok,gok->go", np.matmul(part, block), part) for part, block in parts))


def _scales(rows: F64, importance: F64, exact: bool) -> F64:
    """For every output channel the scale of least weighted error, rounding to nearest: float32 numbers."""
    unit = np.maximum(np.abs(rows).max(axis=2) / TOP, float(SMALLEST))
    best: F64 = unit.copy()
    least = np.full(unit.shape, np.inf)
    for factor in SCALES_EXACT if exact else SCALES_PLAIN:
        scale = (unit * factor).astype(np.float32).astype(np.float64)
        rounded = np.clip(np.rint(rows / scale[..., None]), -TOP, TOP).reshape(-1, rows.shape[-1])
        if exact:
            bound_pairs(rounded)
        delta = rounded.reshape(rows.shape) * scale[..., None] - rows
        error = np.sum(delta**2 * importance[:, None, :], axis=2)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _round(rows: F64, upper: F64, scales: F64, exact: bool) -> F64:
    """Integers [groups, outputs, K], each column's error handed on to the columns behind it."""
    left = rows.copy()
    rounded = np.zeros_like(rows)
    size = rows.shape[2]
    for start in range(0, size, LAZY):
        stop = min(start + LAZY, size)
        errors = np.empty((*rows.shape[:2], stop - start))
        for k in range(start, stop):
            low, high = -float(TOP), float(TOP)
            if exact and k % 2:
                first = rounded[..., k - 1]
                low = np.maximum(low, -PAIR_LIMIT - np.minimum(first, 0))
                high = np.minimum(high, PAIR_LIMIT - np.maximum(first, 0))
            rounded[..., k] = np.clip(np.rint(left[..., k] / scales), low, high)
            error = (left[..., k] - rounded[..., k] * scales) / upper[:, None, k, k]
            left[..., k + 1 : stop] -= error[..., None] * upper[:, None, k, k + 1 : stop]
            errors[..., k - start] = error
        left[..., stop:] -= np.matmul(errors, upper[:, start:stop, stop:])
    return rounded
