"""Rounding by second moments: never worse than to nearest, pairs within their bound, close to the optimum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.quantization.accuracy import gptq
from toolchain.quantization.accuracy.gptq import round_by_moments
from toolchain.quantization.weights import as_rows, quantize_weight

MANY = 10**9
"""Enough positions for the least damping."""


def correlated(rng, columns, groups=1, positions=None, rank=None):
    """Moments of inputs that share a few causes, as neighbouring pixels do: [groups, K, K]."""
    n, rank = positions or 4 * columns, rank or max(1, columns // 3)
    causes = rng.standard_normal((groups, n, rank)) @ rng.standard_normal((groups, rank, columns))
    x = causes + 0.1 * rng.standard_normal((groups, n, columns))
    return x.transpose(0, 2, 1) @ x / n


def cut(whole, sizes):
    """The blocks of these sizes along the diagonal."""
    ends = np.cumsum(sizes)
    return [whole[:, e - n : e, e - n : e] for e, n in zip(ends, sizes, strict=True)]


def whole_of(blocks):
    size = sum(b.shape[1] for b in blocks)
    whole = np.zeros((len(blocks[0]), size, size))
    start = 0
    for b in blocks:
        stop = start + b.shape[1]
        whole[:, start:stop, start:stop] = b
        start = stop
    return whole


def errors(weight, quant, blocks, positions=MANY):
    """Δw H Δwᵀ by output channel with H damped by a hundredth of its mean diagonal, or columns/positions of it."""
    h = whole_of(blocks)
    share = max(0.01, max(b.shape[1] for b in blocks) / positions)
    rows = as_rows(weight, quant.axis).astype(np.float64)
    delta = as_rows(quant.values, quant.axis).astype(np.float64) * quant.scales.astype(np.float64)[:, None] - rows
    per_group = len(rows) // len(h)
    found = []
    for channel, d in enumerate(delta):
        g = h[channel // per_group]
        found.append(d @ g @ d + share * np.trace(g) / len(g) * (d @ d))
    return np.array(found)


def pairs_are_bounded(quant):
    for row in as_rows(quant.values, quant.axis).astype(int):
        for a, b in zip(row[0::2], row[1::2], strict=False):
            if max(a, 0) + max(b, 0) > 128 or min(a, 0) + min(b, 0) < -128:
                return False
    return True


@st.composite
def layers(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(("matrix", "turned", "conv", "grouped")))
    outputs, columns, groups = draw(st.integers(1, 6)), draw(st.integers(1, 19)), 1
    if kind == "conv":
        shape, axis, columns = (outputs, draw(st.integers(1, 3)), 3, 2), 0, None
    elif kind == "grouped":
        groups = draw(st.integers(2, 3))
        shape, axis, columns = (groups * outputs, draw(st.integers(1, 3)), 3, 1), 0, None
    else:
        shape, axis = ((columns, outputs), 1) if kind == "matrix" else ((outputs, columns), 0)
    columns = columns or int(np.prod(shape[1:]))
    spread = draw(st.sampled_from(("normal", "heavy", "equal", "big", "tiny")))
    weight = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy": lambda: rng.standard_t(2, shape),
        "equal": lambda: np.full(shape, 0.7) * rng.choice([-1, 1]),
        "big": lambda: rng.standard_normal(shape) * 1e12,
        "tiny": lambda: rng.standard_normal(shape) * 1e-12,
    }[spread]()
    weight = weight.astype(np.float32)
    if draw(st.booleans()):
        np.moveaxis(weight, axis, 0)[0] = 0
    positions = draw(st.sampled_from((1, 3, 1000)))
    h = correlated(rng, columns, groups, positions) * 10.0 ** draw(st.integers(-8, 8))
    if draw(st.booleans()):
        dead = rng.random(columns) < 0.4
        h[:, dead], h[:, :, dead] = 0, 0
    first = draw(st.integers(0, (columns - 1) // 2)) * 2
    blocks = cut(h, [n for n in (first, columns - first) if n])
    return weight, axis, blocks, positions, draw(st.booleans())


@given(layers())
@settings(max_examples=120, deadline=None)
def test_it_is_bounded_and_no_channel_is_worse_than_rounded_to_nearest(layer):
    weight, axis, blocks, positions, exact = layer
    nearest = quantize_weight(weight, axis, exact=exact)
    quant = round_by_moments(weight, nearest, blocks, positions, exact=exact)
    assert (quant.values.dtype, quant.values.shape, quant.axis) == (np.int8, weight.shape, axis)
    assert (quant.scales.dtype, quant.scales.shape) == (np.float32, nearest.scales.shape)
    assert np.isfinite(quant.scales).all()
    assert (quant.scales > 0).all()
    assert quant.values.min() >= -127
    if exact:
        assert pairs_are_bounded(quant)
        assert quant.overflow_free
    before, after = (errors(weight, q, blocks, positions) for q in (nearest, quant))
    # Sums of squares in another order; a scale is one float32 number in both.
    assert (after <= before * (1 + 1e-9) + 1e-300).all()
    for one, other in zip(as_rows(weight, axis), as_rows(quant.values, axis), strict=True):
        assert one.any() or not other.any(), "a channel of zeros stays"


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("columns", [64, 63, 27])
def test_correlated_inputs_gain_much(columns, exact):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, columns)).astype(np.float32)
    h = correlated(rng, columns)
    nearest = quantize_weight(weight, 0, exact=exact)
    quant = round_by_moments(weight, nearest, [h], MANY, exact=exact)
    assert errors(weight, quant, [h]).sum() < 0.5 * errors(weight, nearest, [h]).sum()


def test_inputs_without_correlation_gain_nothing_but_a_scale():
    """With H the identity the best integers of a scale are the nearest, so at most the scale differs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 30)).astype(np.float32)
    nearest = quantize_weight(weight, 0, exact=False)
    quant = round_by_moments(weight, nearest, [np.eye(30)[None]], MANY, exact=False)
    expected = np.clip(np.rint(weight / quant.scales[:, None].astype(np.float64)), -127, 127)
    np.testing.assert_array_equal(quant.values, expected)
    assert errors(weight, quant, [np.eye(30)[None]]).sum() > 0.95 * errors(weight, nearest, [np.eye(30)[None]]).sum()


def test_few_columns_come_near_the_best_of_all_roundings():
    """Try all integers next to the real weights, at the chosen scale: 3⁵ for each of 40 channels."""
    rng = np.random.default_rng(0)
    columns, outputs = 5, 40
    weight = rng.standard_normal((outputs, columns)).astype(np.float32)
    h = correlated(rng, columns, rank=2)
    nearest = quantize_weight(weight, 0, exact=False)
    quant = round_by_moments(weight, nearest, [h], MANY, exact=False)
    offsets = np.array(list(itertools.product((-1, 0, 1), repeat=columns)))
    best = []
    for row, scale in zip(weight.astype(np.float64), quant.scales.astype(np.float64), strict=True):
        integers = np.clip(np.rint(row / scale) + offsets, -127, 127)
        delta = integers * scale - row
        damped = h[0] + 0.01 * np.trace(h[0]) / columns * np.eye(columns)
        best.append(np.einsum("nk,kl,nl->n", delta, damped, delta).min())
    mine, plain = errors(weight, quant, [h]), errors(weight, nearest, [h])
    assert (mine >= np.array(best) * (1 - 1e-9)).all(), "the search holds every rounding it could take"
    assert np.mean(mine <= np.array(best) * (1 + 1e-9)) > 0.1, "sometimes the best of 243 itself"
    assert mine.sum() - sum(best) < 0.5 * (plain.sum() - sum(best)), "more than half the way"


def test_groups_are_rounded_each_by_its_own_moments():
    """A layer with groups is rounded like one layer per group."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3, 2, 2)).astype(np.float32)
    h = correlated(rng, 12, groups=3)
    nearest = quantize_weight(weight, 0, exact=True)
    together = round_by_moments(weight, nearest, [h], MANY, exact=True)
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        alone = replace(nearest, values=nearest.values[part], scales=nearest.scales[part])
        alone = round_by_moments(weight[part], alone, [h[g : g + 1]], MANY, exact=True)
        np.testing.assert_array_equal(together.values[part], alone.values)
        np.testing.assert_array_equal(together.scales[part], alone.scales)


def test_blocks_are_layers_side_by_side():
    """With one scale the rounding of a block does not depend on the other; only the channel is judged as a whole."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 20)).astype(np.float32)
    h = whole_of(cut(correlated(rng, 20), [12, 8]))
    nearest = quantize_weight(weight, 0, exact=True)
    parts = round_by_moments(weight, nearest, cut(h, [12, 8]), MANY, exact=True)
    whole = round_by_moments(weight, nearest, [h], MANY, exact=True)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize("lazy", [2, 4, 6])
def test_updating_columns_in_blocks_changes_nothing(lazy, monkeypatch):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 21)).astype(np.float32)
    h = correlated(rng, 21)
    nearest = quantize_weight(weight, 0, exact=True)
    whole = round_by_moments(weight, nearest, [h], MANY, exact=True)
    monkeypatch.setattr(gptq, "UPDATE_COLUMNS", lazy)
    bunches = round_by_moments(weight, nearest, [h], MANY, exact=True)
    assert np.mean(bunches.values != whole.values) < 0.01, "but for ties"


@pytest.mark.parametrize("exact", [True, False])
def test_inputs_that_are_always_zero(exact):
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    nearest = quantize_weight(weight, 0, exact=exact)
    with np.errstate(all="raise", under="ignore"):
        quant = round_by_moments(weight, nearest, [np.zeros((1, 6, 6))], 100, exact=exact)
    assert np.isfinite(quant.scales).all()
    assert pairs_are_bounded(quant) or not exact


def test_overflow_free_of_the_nearest_weight_is_kept():
    """Depthwise weights are free of overflow whatever their pairs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 1, 3, 3)).astype(np.float32)
    nearest = replace(quantize_weight(weight, 0, exact=False), overflow_free=True)
    quant = round_by_moments(weight, nearest, [correlated(rng, 9, groups=4)], MANY, exact=False)
    assert quant.overflow_free
