"""Bias correction, against the mean output of rounded weights themselves."""

import numpy as np
import pytest
import quantize_by_hand as by_hand
import small_models
from small_models import weights

from toolchain.formats.recipe import Quantize
from toolchain.graph import query
from toolchain.quantization.plan import _tap_coverage, plan_quantization
from toolchain.quantization.selection import select

CONVS = {
    "no padding": ("strides = [1, 1]", (1, 4, 7, 6), (5, 4, 3, 3)),
    "padding": ("pads = [1, 1, 1, 1]", (1, 4, 7, 6), (5, 4, 3, 3)),
    "uneven, strides, dilations": (
        "pads = [2, 0, 1, 3], strides = [2, 3], dilations = [2, 1]",
        (1, 4, 9, 8),
        (5, 4, 3, 3),
    ),
    "more padding than picture": ("pads = [4, 4, 4, 4]", (1, 4, 2, 3), (5, 4, 3, 3)),
    "same upper": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (1, 4, 8, 7), (5, 4, 3, 4)),
    "same lower": ('auto_pad = "SAME_LOWER", strides = [2, 2]', (1, 4, 8, 7), (5, 4, 3, 4)),
    "valid": ('auto_pad = "VALID"', (1, 4, 8, 7), (5, 4, 3, 4)),
    "groups": ("group = 2, pads = [1, 1, 1, 1]", (1, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise": ("group = 4, pads = [1, 1, 1, 1]", (1, 4, 5, 5), (4, 1, 3, 3)),
    "sound": ("pads = [2, 1]", (1, 4, 9), (5, 4, 3)),
    "volume": ("pads = [1, 0, 1, 0, 1, 1]", (1, 2, 3, 4, 5), (3, 2, 2, 3, 2)),
}


def corrected(model, feeds):
    """Return what correction adds to each product's bias, in real numbers, and the plan."""
    without, plan = (by_hand.planned(model, feeds, ranges="minmax", bias_correction=flag) for flag in (False, True))
    found = {}
    for name, product in plan.products.items():
        before, after = (p.products[name].bias.astype(np.float64) for p in (without, plan))
        found[name] = (after - before) * product.bias_scales
    return found, plan


def constant_feed(shape, seed):
    """Each channel has one value everywhere, so its mean describes it completely."""
    levels = np.random.default_rng(seed).standard_normal((1, shape[1], *[1] * (len(shape) - 2)))
    return {"x": np.broadcast_to(levels, shape).astype(np.float32)}


@pytest.mark.parametrize("name", CONVS)
def test_the_mean_error_is_taken_out_exactly_for_flat_pictures(name):
    """Padding carries no error, so a tap that sometimes lies outside the input counts less."""
    attributes, shape, weight = CONVS[name]
    text = f"float[{', '.join(map(str, shape))}] x"
    constants = weights(w=weight, b=weight[:1])
    model = by_hand.named(f"y = Conv<{attributes}>(x, w, b)", text, "y", constants)
    feeds = [constant_feed(shape, seed) for seed in range(3)]
    found, plan = corrected(model, feeds)
    product = plan.products["y"]
    delta = by_hand.dequantized(product.weight.values, product.weight.scales, 0) - constants["w"]
    shifts = small_models.model(f"y = Conv<{attributes}>(x, w)", text, "y", {"w": delta.astype(np.float32)})
    out = np.mean([np.moveaxis(small_models.plain(shifts, f)["y"], 1, 0).reshape(weight[0], -1) for f in feeds], axis=0)
    # The bias is rounded twice, to half a step each.
    gap = np.abs(found["y"] + out.mean(axis=1, dtype=np.float64))
    assert (gap <= 1.01 * product.bias_scales + 1e-6).all()
    assert np.abs(found["y"]).max() > 10 * gap.max(), "there is something to correct"


@pytest.mark.parametrize("product", ["Gemm(x, w, b)", "Gemm<transB = 1>(x, v, b)"])
def test_the_mean_error_of_a_matrix_product(product):
    w = weights(w=(12, 5))["w"]
    constants = {"b": np.ones(5, np.float32), **({"v": w.T.copy()} if "v" in product else {"w": w})}
    model = by_hand.named(f"y = {product}", "float[7, 12] x", "y", constants)
    rng = np.random.default_rng(0)
    feeds = [{"x": (rng.standard_normal((7, 12)) + 2).astype(np.float32)} for _ in range(3)]
    found, plan = corrected(model, feeds)
    quant = plan.products["y"].weight
    delta = by_hand.dequantized(quant.values, quant.scales, quant.axis)
    delta = (delta.T if "v" in product else delta) - w
    mean = np.mean([f["x"].astype(np.float64) @ delta for f in feeds], axis=(0, 1))
    assert (np.abs(found["y"] + mean) <= 1.01 * plan.products["y"].bias_scales + 1e-6).all()


def test_open_sizes_count_every_tap_whole():
    model = by_hand.named("y = Conv<pads = [1, 1, 1, 1]>(x, w)", "float[1, 2, H, 6] x", "y", weights(w=(3, 2, 3, 3)))
    np.testing.assert_array_equal(_tap_coverage(next(iter(model.graph))), np.ones((3, 3)))


def test_the_share_of_positions_by_hand():
    """Three positions over 1 x 4 with a pad before and a stride of two: -1, 1, 3 and the taps at 0, +1, +2."""
    model = by_hand.named(
        "y = Conv<pads = [0, 1, 0, 2], strides = [1, 2]>(x, w)", "float[1, 1, 1, 4] x", "y", weights(w=(1, 1, 1, 3))
    )
    np.testing.assert_allclose(_tap_coverage(next(iter(model.graph))), [[2 / 3, 2 / 3, 2 / 3]], rtol=1e-6)
    model = by_hand.named("y = Conv<pads = [1, 1]>(x, w)", "float[1, 1, 4] x", "y", weights(w=(1, 1, 3)))
    np.testing.assert_allclose(_tap_coverage(next(iter(model.graph))), [3 / 4, 1, 3 / 4], rtol=1e-6)


def test_nothing_is_corrected_where_no_mean_was_observed():
    model = by_hand.named("y = Conv(x, w, b)", "float[1, 4, 5, 5] x", "y", weights(w=(3, 4, 3, 3), b=(3,)))
    selection = select(model)
    feeds = [constant_feed((1, 4, 5, 5), 0)]
    observed = by_hand.observation(model, feeds, dict.fromkeys(selection.tensors))
    plans = [plan_quantization(model, selection, observed, Quantize(bias_correction=flag)) for flag in (True, False)]
    np.testing.assert_array_equal(*(plan.products["y"].bias for plan in plans))


@pytest.mark.parametrize("length", [6, 4])
def test_a_tensor_whose_readers_disagree_on_its_channels(length):
    """A convolution takes axis 1 of [N, C, L] for the channels, a MatMul axis 2: its means are of no use to either."""
    model = by_hand.named(
        "c = Conv(x, v, b) y = MatMul(x, w)",
        f"float[1, 4, {length}] x",
        "c, y",
        weights(v=(3, 4, 1), w=(length, 5), b=(3,)),
    )
    for order in (list(model.graph), list(model.graph)[::-1]):
        for node in order:
            model.graph.remove(node)
        model.graph.extend(order)
        rng = np.random.default_rng(0)
        feeds = [{"x": rng.standard_normal((1, 4, length)).astype(np.float32) + 1} for _ in range(3)]
        plan = by_hand.planned(model, feeds, bias_correction=True)
        assert set(plan.products) == {query.label(node) for node in order}
        assert select(model).tensors["x"] is None
