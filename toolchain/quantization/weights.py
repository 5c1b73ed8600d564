"""Rounding weights to int8 so that no kernel can saturate: overflow-free weights.

x86 without VNNI multiplies unsigned activations with signed weights by ``VPMADDUBSW``, which adds *pairs* of
products in saturating int16. For adjacent weights a, b of one output channel and any activations in 0..255 the
sum stays inside int16 exactly if

    max(a, 0) + max(b, 0) <= 128      and      min(a, 0) + min(b, 0) >= -128        (255 · 128 = 32640 < 2¹⁵)

so each output channel's scale and rounding are chosen together: among scales from a little below max|w|/127 to a
little above twice that, weights are rounded, offending pairs are brought back to the bound, and the scale of
least squared error wins. ARM and VNNI kernels add in int32; there the same weights simply are exact too.

The pairs are those of the packed kernel: a convolution's im2col runs (kh, kw, cin) with channels last
(``qlinearconv.cc``), a matrix product along K (``qgemm_kernel_avx2.cpp``), two by two. A depthwise convolution
has an int32 kernel of its own and needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolchain.core.arrays import F32, I8

PAIR_LIMIT = 128
TOP = 127
SMALLEST = np.float32(1e-30)
"""No scale is smaller, so that its product with an activation's scale is an ordinary float32."""
SCALES_PLAIN = np.linspace(0.80, 1.0, 9)
SCALES_EXACT = np.concatenate([SCALES_PLAIN, np.linspace(1.04, 2.04, 26)])


@dataclass(frozen=True)
class WeightQuant:
    """Signed int8 weights, symmetric, zero point 0.

    values: int8, the weight's own shape. scales: float32 [channels]. axis: the output-channel axis.
    overflow_free: no adjacent pair can saturate int16.
    """

    values: I8
    scales: F32
    axis: int
    overflow_free: bool

    def dequantized(self) -> F32:
        """The real weights the integers stand for, float32."""
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.values.astype(np.float32) * self.scales.reshape(shape)


def as_rows(weight: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.generic]:
    """[channels, K] with K in the order the packed kernel pairs it.

    A convolution's [O, I, kh, kw] becomes [O, kh·kw·I]; a matrix's [K, N] or [N, K] becomes [N, K].
    """
    rows = np.moveaxis(weight, axis, 0)
    if rows.ndim > 2:
        rows = np.moveaxis(rows, 1, -1)
    return rows.reshape(rows.shape[0], -1)


def from_rows(rows: I8, shape: tuple[int, ...], axis: int) -> I8:
    """The inverse of :func:`as_rows`."""
    moved = [shape[axis], *[n for i, n in enumerate(shape) if i != axis]]
    last = rows.reshape(moved[0], *moved[2:], *moved[1:2])
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(last, -1, 1), 0, axis))


def is_overflow_free(rows: I8) -> bool:
    """Whether no adjacent pair of [channels, K] can leave int16 for any unsigned activations."""
    wide = rows.astype(np.int16)
    even, odd = wide[:, 0 : wide.shape[1] // 2 * 2 : 2], wide[:, 1::2]
    top = np.maximum(even, 0) + np.maximum(odd, 0)
    bottom = np.minimum(even, 0) + np.minimum(odd, 0)
    return bool((top <= PAIR_LIMIT).all() and (bottom >= -PAIR_LIMIT).all())


def quantize_weight(weight: F32, axis: int, *, exact: bool, min_scales: F32 | None = None) -> WeightQuant:
    """Round a weight per output channel.

    Args:
        weight: float32 of any rank >= 2.
        axis: output-channel axis.
        exact: keep every adjacent pair free of int16 overflow.
        min_scales: float32 [channels], scales must not be smaller (the bias would overflow int32).
    """
    rows: F32 = np.asarray(as_rows(weight, axis), np.float32)
    largest: F32 = np.max(np.abs(rows), axis=1, initial=0.0)
    # In units of the plain scale: squared errors of very small or large weights would leave float32.
    unit = np.maximum(largest / np.float32(TOP), SMALLEST)
    rows = rows / unit[:, None]
    floor = np.maximum(SMALLEST, 0 if min_scales is None else min_scales)
    best_error, best_scale = np.full(len(rows), np.inf, np.float32), np.ones(len(rows), np.float32)
    best = np.zeros(rows.shape, np.int8)
    for factor in SCALES_EXACT if exact else SCALES_PLAIN:
        scale = np.maximum(np.float32(factor), floor / unit)
        rounded = np.clip(np.rint(rows / scale[:, None]), -TOP, TOP)
        if exact:
            bound_pairs(rounded)
        error = np.sum((rounded * scale[:, None] - rows) ** 2, axis=1)
        better = error < best_error
        best_error[better], best_scale[better] = error[better], scale[better]
        best[better] = rounded[better].astype(np.int8)
    # An all-zero channel: any scale does, but it divides real numbers later.
    scales = np.maximum(np.where(largest == 0, np.float32(1e-6), best_scale * unit), floor)
    return WeightQuant(from_rows(best, weight.shape, axis), scales, axis, is_overflow_free(best))


def round_at(weight: F32, scales: F32, axis: int, *, exact: bool) -> I8:
    """The integers nearest to a weight float32 [...] at given scales float32 [channels]; else as `quantize_weight`."""
    rounded = np.clip(np.rint(np.asarray(as_rows(weight, axis), np.float32) / scales[:, None]), -TOP, TOP)
    if exact:
        bound_pairs(rounded)
    return from_rows(rounded.astype(np.int8), weight.shape, axis)


def bound_pairs(rounded: npt.NDArray[np.floating]) -> None:
    """Bring adjacent integers whose same-signed sum exceeds the limit back to it, half from each, in place."""
    pairs = rounded[:, : rounded.shape[1] // 2 * 2].reshape(rounded.shape[0], -1, 2)
    for sign in (1, -1):
        same = np.maximum(sign * pairs, 0).sum(axis=2)
        where = same > PAIR_LIMIT
        if where.any():
            excess = same[where] - PAIR_LIMIT
            first = np.ceil(excess / 2)
            pairs[where] -= sign * np.stack([first, excess - first], axis=-1)
