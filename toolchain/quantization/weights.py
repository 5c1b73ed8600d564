"""Overflow-free weights: round weights to int8 so that no kernel can saturate.

x86 without VNNI multiplies unsigned activations by signed weights with ``VPMADDUBSW``, which adds *pairs* of products
in saturating int16. For adjacent weights a, b of one output channel, the sum fits in int16 for all activations in
0..255 if and only if

    max(a, 0) + max(b, 0) <= 128      and      min(a, 0) + min(b, 0) >= -128        (255 · 128 = 32640 < 2¹⁵)

So the scale and the rounding of each output channel are chosen together. For each of many scales, from a little below
max|w|/127 to a little above twice that, weights are rounded, and pairs that exceed the bound are reduced to it. The
scale of least squared error is used. ARM and VNNI kernels add in int32, where the same weights are exact too.

The pairs are those of the packed kernel: a convolution's im2col runs (kh, kw, cin) with channels last
(``qlinearconv.cc``), a matrix product along K (``qgemm_kernel_avx2.cpp``), two by two. A depthwise convolution has an
int32 kernel of its own and does not need the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolchain.core.arrays import F32, I8

PAIR_LIMIT = 128
"""Largest magnitude of the sum of two adjacent weights of the same sign."""
INT8_MAX = 127
"""Largest magnitude of a weight; -128 is not used."""
MIN_SCALE = np.float32(1e-30)
"""Smallest scale; its product with the scale of an activation is still a normal float32 number."""
PLAIN_SCALE_FACTORS = np.linspace(0.80, 1.0, 9)
"""Scales that are tried, as multiples of max|w| / 127."""
PART_ELEMENTS = 1 << 15
"""Number of weights that are rounded at a time."""
EXACT_SCALE_FACTORS = np.concatenate([PLAIN_SCALE_FACTORS, np.linspace(1.04, 2.04, 26)])
"""Scales that are tried for overflow-free weights."""


@dataclass(frozen=True)
class WeightQuant:
    """Signed int8 weights, symmetric, zero point 0.

    Attributes:
        values: int8, in the weight's own shape.
        scales: float32 [channels].
        axis: the output-channel axis.
        overflow_free: True where no adjacent pair can saturate int16.
    """

    values: I8
    scales: F32
    axis: int
    overflow_free: bool

    def dequantized(self) -> F32:
        """Compute the real weights that the integers stand for, float32."""
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.values.astype(np.float32) * self.scales.reshape(shape)


def as_rows(weight: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.generic]:
    """Lay out a weight as [channels, K], with K in the order in which the packed kernel pairs it.

    A convolution's [O, I, kh, kw] becomes [O, kh·kw·I]; a matrix's [K, N] or [N, K] becomes [N, K].
    """
    rows = np.moveaxis(weight, axis, 0)
    if rows.ndim > 2:
        rows = np.moveaxis(rows, 1, -1)
    return rows.reshape(rows.shape[0], -1)


def from_rows(rows: I8, shape: tuple[int, ...], axis: int) -> I8:
    """Invert :func:`as_rows`: lay out rows in the shape of the weight."""
    moved = [shape[axis], *[n for i, n in enumerate(shape) if i != axis]]
    last = rows.reshape(moved[0], *moved[2:], *moved[1:2])
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(last, -1, 1), 0, axis))


def is_overflow_free(rows: I8) -> bool:
    """True where no adjacent pair of [channels, K] can exceed int16 for any unsigned activations."""
    wide = rows.astype(np.int16)
    even, odd = wide[:, 0 : wide.shape[1] // 2 * 2 : 2], wide[:, 1::2]
    top = np.maximum(even, 0) + np.maximum(odd, 0)
    bottom = np.minimum(even, 0) + np.minimum(odd, 0)
    return bool((top <= PAIR_LIMIT).all() and (bottom >= -PAIR_LIMIT).all())


def quantize_weight(weight: F32, axis: int, *, exact: bool, min_scales: F32 | None = None) -> WeightQuant:
    """Round a weight, with a scale for each output channel.

    Args:
        weight: float32 of any rank >= 2.
        axis: output-channel axis.
        exact: keep every adjacent pair free of int16 overflow.
        min_scales: smallest allowed scales, float32 [channels]; with smaller ones the bias would overflow int32.
    """
    rows: F32 = np.asarray(as_rows(weight, axis), np.float32)
    largest: F32 = np.max(np.abs(rows), axis=1, initial=0.0)
    # In units of the plain scale, because squared errors of very small or large weights would exceed float32.
    unit = np.maximum(largest / np.float32(INT8_MAX), MIN_SCALE)
    floor = np.maximum(MIN_SCALE, 0 if min_scales is None else min_scales)
    lowest: F32 = np.asarray(np.broadcast_to(floor / unit, unit.shape), np.float32)
    best, best_scale = np.zeros(rows.shape, np.int8), np.ones(len(rows), np.float32)
    for part in row_slices(*rows.shape):
        best[part], best_scale[part] = _rounded_best(rows[part] / unit[part, None], lowest[part], exact=exact)
    # In an all-zero channel any scale fits, but it must not be tiny, because real numbers are divided by it later.
    scales = np.maximum(np.where(largest == 0, np.float32(1e-6), best_scale * unit), floor)
    return WeightQuant(from_rows(best, weight.shape, axis), scales, axis, is_overflow_free(best))


def row_slices(rows: int, columns: int) -> list[slice]:
    """Divide rows so that the temporaries of rounding a part stay in the processor's cache."""
    size = max(1, PART_ELEMENTS // max(columns, 1))
    return [slice(start, start + size) for start in range(0, rows, size)]


def _rounded_best(rows: F32, lowest: F32, *, exact: bool) -> tuple[I8, F32]:
    """Try all scales and return, for every row, the integers and the scale of least squared error.

    Args:
        rows: float32 [channels, K] in units of the plain scale.
        lowest: smallest allowed scales in this unit, float32 [channels].
        exact: keep every adjacent pair free of int16 overflow.
    """
    least, best_scale = np.full(len(rows), np.inf, np.float32), np.ones(len(rows), np.float32)
    best = np.zeros(rows.shape, np.int8)
    for factor in EXACT_SCALE_FACTORS if exact else PLAIN_SCALE_FACTORS:
        scale = np.maximum(np.float32(factor), lowest)
        rounded = np.clip(np.rint(rows / scale[:, None]), -INT8_MAX, INT8_MAX)
        if exact:
            bound_pairs(rounded)
        error = np.sum((rounded * scale[:, None] - rows) ** 2, axis=1)
        better = error < least
        least[better], best_scale[better] = error[better], scale[better]
        best[better] = rounded[better].astype(np.int8)
    return best, best_scale


def round_at(weight: F32, scales: F32, axis: int, *, exact: bool) -> I8:
    """Round a float32 weight at given scales, float32 [channels]; otherwise like :func:`quantize_weight`."""
    rounded = np.clip(np.rint(np.asarray(as_rows(weight, axis), np.float32) / scales[:, None]), -INT8_MAX, INT8_MAX)
    if exact:
        bound_pairs(rounded)
    return from_rows(rounded.astype(np.int8), weight.shape, axis)


def bound_pairs(rounded: npt.NDArray[np.floating]) -> None:
    """Reduce adjacent integers whose same-signed sum exceeds the limit, half from each, in place.

    Args:
        rounded: whole numbers of at most :data:`INT8_MAX`, so that only numbers of one sign have such a sum.
    """
    first, second = rounded[:, 0 : rounded.shape[1] // 2 * 2 : 2], rounded[:, 1::2]
    where = np.nonzero(np.abs(first + second) > PAIR_LIMIT)
    a, b = first[where], second[where]
    excess = np.abs(a + b) - PAIR_LIMIT
    half = np.ceil(excess / 2)
    first[where], second[where] = a - np.sign(a) * half, b - np.sign(b) * (excess - half)
