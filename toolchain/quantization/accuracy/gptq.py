"""GPTQ: round a weight so that the output of its layer changes least, instead of the weight itself.

With H = E[x xᵀ] of the layer's input the expected squared error of an output is Δw H Δwᵀ. Weights are rounded column
after column, and the error of each is compensated by the columns that are not rounded yet, in closed form:

    H⁻¹ = Uᵀ U (U upper triangular);   for column k:  e = (w_k − round(w_k)) / U_kk,   w_j ← w_j − e U_kj  for j > k

(Optimal brain quantization in a fixed order: Frantar et al., 2022, arXiv:2210.17323.) Weights stay overflow-free: the
second weight of a pair is rounded within what the first leaves of the bound (`weights.PAIR_LIMIT`), and the columns
after it compensate that error as well. Of many scales, the best one for rounding with the diagonal of H alone is used.
The result is kept, channel by channel, only where its Δw H Δwᵀ is less than that of rounding to nearest.

H comes in blocks along its diagonal; columns compensate each other within a block. H is damped, more strongly the
fewer positions it comes from: with fewer positions than columns, H is an uncertain estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from toolchain.core.arrays import F32, F64, Index
from toolchain.quantization.weights import (
    EXACT_SCALE_FACTORS,
    INT8_MAX,
    MIN_SCALE,
    PAIR_LIMIT,
    PLAIN_SCALE_FACTORS,
    WeightQuant,
    as_rows,
    bound_pairs,
    from_rows,
    is_overflow_free,
    row_slices,
)

MIN_DAMPING = 0.01
"""Smallest share of the mean diagonal of H that is added to the diagonal."""
UPDATE_COLUMNS = 128
"""Number of columns, an even one, that are updated one by one before all later columns are updated at once."""


def round_by_moments(
    weight: F32, nearest: WeightQuant, blocks: Sequence[F64], positions: int, *, exact: bool
) -> WeightQuant:
    """Round a weight with the second moments of the inputs that it multiplies.

    Args:
        weight: float32 of any rank >= 2.
        nearest: the same weight rounded to nearest; channels where this is better keep it.
        blocks: float64 [groups, b, b] each, along the diagonal of H, whose columns are in the order of
            :func:`~toolchain.quantization.weights.as_rows`; every b but the last is even.
        positions: number of inputs that H is the mean of.
        exact: keep every adjacent pair free of int16 overflow.
    """
    groups, size = len(blocks[0]), sum(block.shape[1] for block in blocks)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    rows = np.asarray(as_rows(weight, nearest.axis), np.float64).reshape(groups, -1, size)
    damped = _damped(blocks, positions)
    upper = [np.linalg.cholesky(np.linalg.inv(block)).transpose(0, 2, 1) for block in damped]
    best = np.asarray(as_rows(nearest.values, nearest.axis), np.float64).reshape(rows.shape)
    scales = nearest.scales.astype(np.float64).reshape(groups, -1)
    least = _error(best * scales[..., None] - rows, damped, ends)
    for candidate in (scales.copy(), _scales(rows, _diagonal(damped), exact)):
        parts = zip(np.split(rows, ends, axis=2), upper, strict=True)
        rounded = np.concatenate([_round(part, u, candidate, exact) for part, u in parts], axis=2)
        error = _error(rounded * candidate[..., None] - rows, damped, ends)
        better = error < least
        best[better], scales[better], least[better] = rounded[better], candidate[better], error[better]
    integers = best.reshape(-1, size).astype(np.int8)
    free = is_overflow_free(integers) if exact else nearest.overflow_free
    values = from_rows(integers, weight.shape, nearest.axis)
    return WeightQuant(values, scales.astype(np.float32).reshape(-1), nearest.axis, free)


def _damped(blocks: Sequence[F64], positions: int) -> list[F64]:
    """Add to the diagonal of H a share of its mean, the larger the fewer positions H comes from."""
    mean = np.maximum(_diagonal(blocks).mean(axis=1), float(MIN_SCALE))
    damping = max(MIN_DAMPING, max(block.shape[1] for block in blocks) / max(positions, 1)) * mean
    return [block + damping[:, None, None] * np.eye(block.shape[1]) for block in blocks]


def _diagonal(blocks: Sequence[F64]) -> F64:
    """Return the diagonal of H: [groups, K]."""
    return np.concatenate([np.einsum("gkk->gk", block) for block in blocks], axis=1)


def _error(delta: F64, blocks: Sequence[F64], ends: Index) -> F64:
    """Compute Δw H Δwᵀ for every output channel: [groups, outputs]."""
    parts = zip(np.split(delta, ends, axis=2), blocks, strict=True)
    return cast(F64, sum(np.einsum("gok,gok->go", np.matmul(part, block), part) for part, block in parts))


def _scales(rows: F64, importance: F64, exact: bool) -> F64:
    """Find for every output channel the float32 scale with the least weighted error of rounding to nearest."""
    unit = np.maximum(np.abs(rows).max(axis=2) / INT8_MAX, float(MIN_SCALE))
    best: F64 = unit.copy()
    for group, own in enumerate(rows):
        for part in row_slices(*own.shape):
            best[group, part] = _least_error_scales(own[part], unit[group, part], importance[group], exact)
    return best


def _least_error_scales(rows: F64, unit: F64, importance: F64, exact: bool) -> F64:
    """Find the scale with the least weighted error of rounding to nearest for rows [outputs, K] of one group."""
    best: F64 = unit.copy()
    least = np.full(unit.shape, np.inf)
    for factor in EXACT_SCALE_FACTORS if exact else PLAIN_SCALE_FACTORS:
        scale = (unit * factor).astype(np.float32).astype(np.float64)
        rounded = np.clip(np.rint(rows / scale[:, None]), -INT8_MAX, INT8_MAX)
        if exact:
            bound_pairs(rounded)
        error = np.sum((rounded * scale[:, None] - rows) ** 2 * importance, axis=1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _round(rows: F64, upper: F64, scales: F64, exact: bool) -> F64:
    """Round to integers [groups, outputs, K]; the columns after each column compensate its error."""
    remaining = rows.copy()
    result = np.empty_like(rows)
    size = rows.shape[2]
    for start in range(0, size, UPDATE_COLUMNS):
        stop = min(start + UPDATE_COLUMNS, size)
        # With columns first, the numbers of a column are neighbours in memory.
        columns = np.ascontiguousarray(remaining[..., start:stop].transpose(2, 0, 1))
        factors = upper[:, start:stop, start:stop].transpose(1, 2, 0)[..., None]
        rounded, errors = np.empty_like(columns), np.empty_like(columns)
        for k in range(stop - start):
            low, high = -float(INT8_MAX), float(INT8_MAX)
            if exact and k % 2:
                low = np.maximum(low, -PAIR_LIMIT - np.minimum(rounded[k - 1], 0))
                high = np.minimum(high, PAIR_LIMIT - np.maximum(rounded[k - 1], 0))
            rounded[k] = np.clip(np.rint(columns[k] / scales), low, high)
            errors[k] = (columns[k] - rounded[k] * scales) / factors[k, k]
            columns[k + 1 :] -= errors[k] * factors[k, k + 1 :]
        result[..., start:stop] = rounded.transpose(1, 2, 0)
        remaining[..., stop:] -= np.matmul(errors.transpose(1, 2, 0), upper[:, start:stop, stop:])
    return result
