"""Overflow-free weights: a simulated VPMADDUBSW never saturates on them, and they cost little accuracy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saturation import packed, saturating_pairs

from toolchain.quantization.weights import as_rows, from_rows, is_overflow_free, quantize_weight


@st.composite
def layers(draw):
    """A weight of a convolution (1-D to 3-D) or of a matrix product either way round, and its output axis."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.integers(1, 7)
    kind = draw(st.sampled_from(("conv1", "conv2", "conv3", "kn", "nk")))
    spatial = {"conv1": 1, "conv2": 2, "conv3": 3}.get(kind, 0)
    shape = (draw(sizes), draw(sizes), *(draw(st.integers(1, 3)) for _ in range(spatial)))
    weight = rng.standard_normal(shape)
    if draw(st.booleans()):
        weight = np.abs(weight)  # same signs are what overflows
    if draw(st.booleans()):
        weight = rng.choice([-1.0, 0.3, 1.0], shape)  # as large as can be, in every pair
    axis = 1 if kind == "kn" else 0
    weight = weight * 10.0 ** draw(st.integers(-8, 4))
    if draw(st.booleans()):
        weight = np.moveaxis(weight, axis, 0)
        weight[0] = 0
        weight = np.moveaxis(weight, 0, axis)
    return weight.astype(np.float32), axis


@given(layers())
@settings(max_examples=50, deadline=None)
def test_no_activations_saturate_the_pairwise_sums(layer):
    weight, axis = layer
    quant = quantize_weight(weight, axis, exact=True)
    sums, saturated = saturating_pairs(quant.values, axis)
    np.testing.assert_array_equal(sums, saturated)
    assert quant.overflow_free


@given(layers(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_overflow_free_is_reported_correctly(layer, exact):
    weight, axis = layer
    quant = quantize_weight(weight, axis, exact=exact)
    sums, saturated = saturating_pairs(quant.values, axis)
    # 255 · 128 is the last multiple of 255 below 2^15.
    assert quant.overflow_free == bool((np.abs(sums) <= 255 * 128).all())
    assert not quant.overflow_free or bool((sums == saturated).all())


@given(layers(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_shapes_types_and_symmetry(layer, exact):
    weight, axis = layer
    quant = quantize_weight(weight, axis, exact=exact)
    assert quant.values.shape == weight.shape
    assert quant.values.dtype == np.int8
    assert quant.values.min() >= -127
    assert quant.scales.shape == (weight.shape[axis],)
    assert quant.scales.dtype == np.float32
    assert (quant.scales > 0).all()
    assert np.isfinite(quant.scales).all()
    shape = [1] * weight.ndim
    shape[axis] = -1
    expected = quant.values.astype(np.float32) * quant.scales.reshape(shape)
    np.testing.assert_array_equal(quant.dequantized(), expected)


def channel_errors(weight, dequantized, axis):
    errors = (dequantized.astype(np.float64) - weight) ** 2
    return errors.sum(axis=tuple(i for i in range(weight.ndim) if i != axis))


def rounded_at(weight, axis, top):
    """Plain rounding: scale max|w| / top per channel, every weight to the nearest integer."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    scales = np.abs(rows).max(axis=1, keepdims=True) / top
    rounded = np.rint(rows / np.where(scales == 0, 1, scales)) * scales
    return np.moveaxis(rounded.reshape(np.moveaxis(weight, axis, 0).shape), 0, axis)


@given(layers())
@settings(max_examples=50, deadline=None)
def test_exactness_costs_less_than_a_bit(layer):
    """Others avoid saturation by a reduced range (7 bits, integers up to 64); no channel may have a larger error."""
    weight, axis = layer
    ours = channel_errors(weight, quantize_weight(weight, axis, exact=True).dequantized(), axis)
    theirs = channel_errors(weight, rounded_at(weight, axis, 63.5), axis)
    # The search's scales miss theirs by up to 2 %, which costs a hundredth of a squared step a weight.
    size = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).astype(np.float64)
    elements = weight.size / weight.shape[axis]
    step = size / 63.5
    assert (ours <= theirs + 0.01 * elements * step**2).all()


@given(layers())
@settings(max_examples=50, deadline=None)
def test_inexact_rounding_is_at_least_as_good_as_the_plain_one(layer):
    weight, axis = layer
    ours = channel_errors(weight, quantize_weight(weight, axis, exact=False).dequantized(), axis)
    plain = channel_errors(weight, rounded_at(weight, axis, 127), axis)
    magnitude = (weight.astype(np.float64) ** 2).sum(axis=tuple(i for i in range(weight.ndim) if i != axis))
    assert (ours <= plain + 1e-9 * magnitude).all(), "float32 sums are exact to about 1e-7 of each weight, squared"


def test_on_ordinary_layers_exactness_costs_a_third_of_a_bit():
    """Scales grow by a factor of 1.3 or so for bell-shaped weights, not by the 2 of a reduced range."""
    weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32)
    plain, exact = (quantize_weight(weight, 0, exact=flag) for flag in (False, True))
    assert not plain.overflow_free
    assert 1.0 < np.mean(exact.scales / plain.scales) < 1.6


@given(layers(), st.integers(-6, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_scales_respect_their_floor(layer, exponent, exact):
    weight, axis = layer
    floor = np.full(weight.shape[axis], 10.0**exponent, np.float32)
    floor[::2] = 0
    quant = quantize_weight(weight, axis, exact=exact, min_scales=floor)
    assert (quant.scales >= floor).all()
    assert (quant.scales > 0).all()
    off = np.abs(quant.dequantized() - weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    alone = quantize_weight(weight, axis, exact=exact)
    before = np.abs(alone.dequantized() - weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    # Half a step of rounding; a pair brought back to its bound lost up to 64 more before.
    assert (off <= np.maximum(before * 1.01, 0.51 * quant.scales + (64 * quant.scales if exact else 0))).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("floor", [None, 0.0, 1e-3])
def test_a_channel_of_zeros_stays_zero_and_has_a_usable_scale(floor):
    weight = np.zeros((3, 4, 3, 3), np.float32)
    weight[1] = 1
    least = None if floor is None else np.full(3, floor, np.float32)
    quant = quantize_weight(weight, 0, exact=True, min_scales=least)
    assert (quant.values[[0, 2]] == 0).all()
    assert (quant.scales[[0, 2]] >= max(floor or 0, 1e-7)).all()
    np.testing.assert_allclose(quant.dequantized()[1], 1, rtol=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e30, 3e38])
def test_weights_of_any_size(size):
    weight = np.array([[size, -size, size / 2, 0]], np.float32)
    quant = quantize_weight(weight, 0, exact=True)
    assert quant.overflow_free
    assert np.isfinite(quant.scales).all()
    # A scale is never below 1e-30; such weights add nothing to a sum of others.
    np.testing.assert_allclose(quant.dequantized(), weight, atol=max(0.01 * size, 1e-30))


# --- the order of the packed kernel ---


@given(layers())
@settings(max_examples=50, deadline=None)
def test_rows_are_the_packed_order_and_go_back(layer):
    weight, axis = layer
    rows = as_rows(weight, axis)
    np.testing.assert_array_equal(rows, packed(weight, axis).T)
    integers = np.arange(weight.size, dtype=np.int64).astype(np.int8).reshape(weight.shape)
    np.testing.assert_array_equal(from_rows(as_rows(integers, axis), weight.shape, axis), integers)


@pytest.mark.parametrize(
    ("row", "free"),
    [
        ([64, 64], True),
        ([65, 64], False),
        ([127, 1], True),
        ([127, 2], False),
        ([-64, -64], True),
        ([-127, -2], False),
        ([127, -127], True),
        ([0, 100, 100], True),
        ([0, 100, 100, 0], True),
        ([100, 100, 0], False),
        ([1, 2, 127], True),
        ([127], True),
    ],
)
def test_pairs_are_two_by_two_from_the_start(row, free):
    assert is_overflow_free(np.array([row], np.int8)) == free
    assert is_overflow_free(np.array([[0] * len(row), row], np.int8)) == free, "any channel counts"


def test_negative_one_twenty_eight_is_counted_whole():
    assert is_overflow_free(np.array([[-128, 0]], np.int8))
    assert not is_overflow_free(np.array([[-128, -1]], np.int8))
