"""The numbers of a plan: weights, biases and grids."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import quantize_by_hand as by_hand
import small_models
from quantizable_nets import IMAGE, build, draw_feeds
from small_models import weights

from toolchain.formats.recipe import Quantize
from toolchain.quantization.plan import Plan, plan_quantization
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import select


def same(one: Plan, other: Plan):
    assert one.choices == other.choices
    assert one.activations == other.activations
    assert list(one.activations) == list(other.activations)
    assert one.inexact == other.inexact
    assert list(one.products) == list(other.products)
    for name, product in one.products.items():
        for ours, theirs in (
            (product.weight.values, other.products[name].weight.values),
            (product.weight.scales, other.products[name].weight.scales),
            (product.bias, other.products[name].bias),
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_the_same_inputs_give_the_same_plan():
    feeds = draw_feeds(build("gate"))
    same(by_hand.planned(build("gate"), feeds), by_hand.planned(build("gate"), feeds))


def test_a_plan_does_not_depend_on_a_target():
    asked = ["model", "selection", "observation", "settings", "weights", "grids"]
    assert list(inspect.signature(plan_quantization).parameters) == asked
    assert not {"target", "encoding"} & set(Plan.__dataclass_fields__)
    assert all(
        0 <= grid.zero_point <= 255
        for grid in by_hand.planned(build("gate"), draw_feeds(build("gate"))).activations.values()
    )


@pytest.mark.parametrize(
    "name", ["two outputs a group", "gray image", "grouped conv", "sound", "odd contraction", "volume"]
)
def test_products_that_are_sums_of_pairs_are_overflow_free(name):
    """One input channel alone is no depthwise convolution: its kernel positions are paired."""
    model = build(name)
    plan = by_hand.planned(model, draw_feeds(model))
    assert plan.overflow_free
    [product] = plan.products.values()
    weight = np.moveaxis(product.weight.values, product.weight.axis, 0).astype(int)
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    assert np.maximum(rows, 0).sum(axis=2).max() <= 128
    assert np.minimum(rows, 0).sum(axis=2).min() >= -128
    plain = by_hand.planned(model, draw_feeds(model), exact=False)
    assert not plain.overflow_free


def test_depthwise_weights_use_their_whole_range():
    constants = {"w": np.full((4, 1, 3, 3), 0.5, np.float32)}
    model = by_hand.named("y = Conv<group = 4>(x, w)", IMAGE, "y", constants)
    plan = by_hand.planned(model, draw_feeds(model))
    assert plan.overflow_free, "their kernel sums in int32"
    assert np.abs(plan.products["y"].weight.values).max() > 100


@pytest.mark.parametrize("body", ["y = Conv(x, w, b)", "y = Conv<group = 4>(x, w, b)"])
def test_a_huge_bias_on_tiny_weights_survives(body):
    """b / (s_x s_w) would be 1e12: int32 ends at 2e9, and onnxruntime would wrap around silently."""
    group = 4 if "group" in body else 1
    w = np.random.default_rng(0).standard_normal((4, 4 // group, 1, 1)).astype(np.float32) * np.float32(1e-9)
    b = np.array([5.0, -3.0, 1e-9, 0.0], np.float32)
    model = by_hand.named(body, IMAGE, "y", {"w": w, "b": b})
    feeds = draw_feeds(model)
    plan, written = by_hand.quantized(model, feeds)
    assert np.abs(plan.products["y"].bias).max() <= 2**30
    step = plan.activations["y"].scale
    for fused in (False, True):
        found = small_models.plain(written, feeds[0], fused=fused)["y"]
        assert np.abs(found - small_models.plain(model, feeds[0])["y"]).max() <= 0.51 * step


def test_a_channel_without_weights_gives_its_bias():
    w, b = weights(w=(4, 4, 1, 1))["w"], np.array([1, -2, 3, 0], np.float32)
    w[1] = w[3] = 0
    model = by_hand.named("y = Conv(x, w, b)", IMAGE, "y", {"w": w, "b": b})
    feeds = draw_feeds(model)
    plan, written = by_hand.quantized(model, feeds)
    found = small_models.plain(written, feeds[0], fused=True)["y"]
    assert np.abs(found[:, 1] + 2).max() <= 0.51 * plan.activations["y"].scale
    assert np.abs(found[:, 3]).max() == 0


CORRECTED = {
    "Gemm": ("y = Gemm(x, w)", "float[64, 8] x", (8, 6), 1),
    "Gemm, transposed": ("y = Gemm<transB = 1>(x, w)", "float[64, 8] x", (6, 8), 1),
    "conv": ("y = Conv(x, w)", "float[8, 4, 6, 6] x", (6, 4, 3, 3), 1),
    "grouped conv": ("y = Conv<group = 2>(x, w)", "float[8, 4, 6, 6] x", (6, 2, 3, 3), 1),
}


@pytest.mark.parametrize("name", CORRECTED)
def test_bias_correction_takes_the_mean_error_out(name):
    body, inputs, shape, axis = CORRECTED[name]
    model = by_hand.named(body, inputs, "y", {"w": weights(w=shape)["w"] ** 3})
    rng = np.random.default_rng(0)
    feeds = [
        {"x": (rng.exponential(size=[int(d) for d in model.graph.inputs[0].shape]) + 1).astype(np.float32)}
        for _ in range(8)
    ]

    def mean_error(correct):
        plan = by_hand.planned(model, feeds, bias_correction=correct, ranges="minmax")
        # Without rounding of activations, so that the weights' error stands alone.
        fine = replace(plan, activations={})
        errors = []
        for feed in feeds:
            found, exact = by_hand.simulate(model, fine, feed)["y"], small_models.plain(model, feed)["y"]
            errors.append((found - exact).mean(axis=tuple(a for a in range(exact.ndim) if a != axis)))
        return np.abs(np.mean(errors, axis=0))

    before, after = mean_error(False), mean_error(True)
    assert after.max() < 0.05 * before.max()
    assert after.mean() < 0.05 * before.mean()


def test_means_along_another_axis_are_not_mistaken_for_channels():
    """A tensor [1, 6, 6] read by a Conv (channels at 1) and by a MatMul with bias (at 2)."""
    model = by_hand.named("c = Conv(x, w) m = MatMul(x, v)", "float[1, 6, 5] x", "c, m", weights(w=(6, 6, 1), v=(5, 4)))
    ramp = np.arange(30, dtype=np.float32).reshape(1, 6, 5) / 8
    plan, written = by_hand.quantized(model, [{"x": ramp}])
    assert set(plan.products) == {"c", "m"}
    expected, found = small_models.plain(model, {"x": ramp}), small_models.plain(written, {"x": ramp}, fused=True)
    for name in ("c", "m"):
        assert np.abs(found[name] - expected[name]).max() < 0.03 * np.abs(expected[name]).max()


def test_fixed_images_have_fixed_grids():
    model = build("gate")
    plan = by_hand.planned(model, draw_feeds(model))
    assert plan.activations["s"].scale == 1 / 256
    assert plan.activations["s"].zero_point == 0


def test_a_tensor_never_computed_still_has_a_grid():
    model = build("shortcut")
    selection = select(model)
    seen = by_hand.observation(model, draw_feeds(model), {"x": 1})
    plan = plan_quantization(model, selection, seen, Quantize())
    assert set(plan.activations) == set(selection.tensors)
    apply_quantization(model, plan, "s8")


LAST = {
    # name: (what follows the convolution, range seen, range that must be representable)
    "both sides seen": ("", (-8.0, 10.0), (-8.9, 10.9)),
    "never above zero": ("", (-9.0, -1.0), (-9.45, 4.725)),
    "never below zero": ("", (1.0, 20.0), (-10.5, 21.0)),
    "rectified": ("r = Relu(c)", (0.0, 20.0), (0.0, 21.0)),
    "limited on both sides": ("r = Clip(c, zero, six)", (0.0, 6.0), (0.0, 6.0)),
}


@pytest.mark.parametrize("name", LAST)
def test_the_grid_of_a_last_convolution_has_room(name):
    """One that a later product reads has none: its range is what was seen."""
    follower, (low, high), expected = LAST[name]
    constants = {**weights(w=(1, 1, 1, 1), v=(1, 1, 1, 1)), "zero": np.float32(0), "six": np.float32(6)}
    constants["w"][:] = 1
    feeds = [{"x": np.linspace(low, high, 16, dtype=np.float32).reshape(1, 1, 4, 4)}]
    result = "r" if follower else "c"
    last = by_hand.named(f"c = Conv(x, w) {follower} y = Neg({result})", "float[1, 1, 4, 4] x", "y", constants)
    grid = by_hand.planned(last, feeds, ranges="mse").activations[result]
    np.testing.assert_allclose((grid.low, grid.high), expected, atol=grid.scale)
    gate = by_hand.named(f"c = Conv(x, w) {follower} y = HardSigmoid({result})", "float[1, 1, 4, 4] x", "y", constants)
    grid = by_hand.planned(gate, feeds, ranges="mse").activations[result]
    np.testing.assert_allclose((grid.low, grid.high), np.clip(expected, -2.5, 2.5), atol=grid.scale)
    inner = by_hand.named(f"c = Conv(x, w) {follower} y = Conv({result}, v)", "float[1, 1, 4, 4] x", "y", constants)
    grid = by_hand.planned(inner, feeds, ranges="minmax").activations[result]
    np.testing.assert_allclose((grid.low, grid.high), (min(low, 0), max(high, 0)), atol=grid.scale)
