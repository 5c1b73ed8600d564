"""The scales that equalization chooses: less noise, room below a Clip, and only for observed tensors."""

import numpy as np
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from small_models import weights

from toolchain.quantization.accuracy.cross_layer_equalization import (
    _noise,
    apply_equalization,
    plan_equalization,
)
from toolchain.quantization.accuracy.scale_groups import MIN_CHANNEL_SHARE, scale_groups
from toolchain.quantization.selection import select

IMAGE = "float[1, 4, 8, 8] x"
ZERO_SIX = {"zero": np.float32(0), "six": np.float32(6)}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max()))


def image_feed(seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32)}


def groups_of(body, constants):
    model = by_hand.named(body, IMAGE, "y", constants)
    return model, scale_groups(model)


def uneven(ratio=100.0):
    """Channels with ranges 1 : ratio whose readers compensate, so that all channels matter equally."""
    sizes = np.geomspace(1, 1 / ratio, 8).astype(np.float32)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((8, 4, 1, 1)).astype(np.float32) * sizes[:, None, None, None]
    second = rng.standard_normal((4, 8, 1, 1)).astype(np.float32) / sizes[:, None, None]
    return groups_of("a = Conv(x, w) r = Relu(a) y = Conv(r, v)", constants={"w": first, "v": second})


def error_db(model, feeds, reference):
    plan = by_hand.planned(model, feeds, ranges="minmax", bias_correction=False)
    pairs = [(small_models.plain(reference, f)["y"], by_hand.simulate(model, plan, f)["y"]) for f in feeds]
    energy, error = (
        sum(np.sum(a) for a in arrays) for arrays in ([y**2 for y, _ in pairs], [(y - q) ** 2 for y, q in pairs])
    )
    return 10 * np.log10(energy / error)


def planned(model, groups, feeds):
    tensors = select(model).tensors
    axes = {name: group.axis for group in groups for name in group.tensors}
    observed = by_hand.observation(model, feeds, {name: axes.get(name, axis) for name, axis in tensors.items()})
    return plan_equalization(model, groups, observed, tensors)


def test_uneven_channels_are_evened_and_the_noise_falls():
    model, groups = uneven()
    feeds = [image_feed(seed) for seed in range(6)]
    scales = planned(model, groups, feeds)
    [s] = scales.values()
    assert s[0] == 1
    assert (np.diff(s) <= 0.05).all(), "smaller channels get smaller scales"
    assert s[-1] < 0.3
    gained = error_db(apply_equalization(model, scales), feeds, model) - error_db(model, feeds, model)
    assert gained > 6, "channels of a hundredth are divided by eight at most: one to three bits"


def test_even_channels_are_left_alone():
    model, groups = groups_of(
        "a = Conv(x, w) r = Relu(a) y = Conv(r, v)", constants=weights(w=(16, 4, 3, 3), v=(4, 16, 1, 1))
    )
    assert planned(model, groups, [image_feed(seed) for seed in range(6)]) == {}


@pytest.mark.parametrize("dead", [slice(0, 3), slice(0, 8)])
def test_channels_that_are_always_zero_are_handled(dead):
    """Either one channel or the whole tensor is zero on every sample."""
    model, groups = uneven()
    value = model.graph.initializers["w"]
    array = value.const_value.numpy().copy()
    array[dead] = 0
    value.const_value = ir.tensor(array, name="w")
    feeds = [image_feed(seed) for seed in range(3)]
    with np.errstate(all="raise", under="ignore"):
        scales = planned(model, groups, feeds)
    assert all(np.isfinite(s).all() and (s >= MIN_CHANNEL_SHARE).all() for s in scales.values())
    assert bool(scales) == (dead.stop < 8)
    result = apply_equalization(model, scales)
    close(small_models.plain(result, feeds[0])["y"], small_models.plain(model, feeds[0])["y"])


def test_a_reader_of_zeros_does_not_count():
    model, groups = groups_of(
        "a = Conv(x, w) r = Relu(a) y = Conv(r, v)",
        constants={**weights(w=(4, 4, 1, 1)), "v": np.zeros((4, 4, 1, 1), np.float32)},
    )
    with np.errstate(all="raise", under="ignore"):
        assert planned(model, groups, [image_feed()]) == {}


def test_tensors_that_were_not_observed_are_passed_over():
    model, groups = uneven()
    empty = by_hand.observation(model, [image_feed()], {"x": 1})
    assert plan_equalization(model, groups, empty, {"x", "r"}) == {}
    without_channels = by_hand.observation(model, [image_feed()], {"r": None})
    assert plan_equalization(model, groups, without_channels, {"r"}) == {}
    assert plan_equalization(model, groups, by_hand.observation(model, [image_feed()], {"r": 1}), ()) == {}


def test_a_clip_that_was_not_observed_forbids_everything_but_one():
    """Here only the mean behind a Clip is int8, and a mean says nothing about values that the Clip cuts off."""
    constants = {**weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1)), **ZERO_SIX}
    constants["w"] *= np.float32([3, 0.3, 0.3, 0.1])[:, None, None, None]
    constants["v"] *= np.float32([1, 10, 10, 30])[:, None, None]
    model, groups = groups_of(
        "a = Conv(x, w) r = Clip(a, zero, six) p = GlobalAveragePool(r) y = Conv(p, v)", constants=constants
    )
    rng = np.random.default_rng(0)
    feeds = [{"x": (rng.standard_normal((1, 4, 8, 8)) ** 5 / 4).astype(np.float32)} for _ in range(4)]
    observed = by_hand.observation(model, feeds, {"p": 1})
    scales = plan_equalization(model, groups, observed, {"p"})
    result = apply_equalization(model, scales)
    for feed in feeds:
        close(small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"])


def test_the_expected_noise_by_hand():
    """Two channels of [0, 2] and [-1, 3], halved and kept: steps of (4 + 1) / 255 and 2 / 127."""
    low, high, square, s = np.array([0.0, -1.0]), np.array([2.0, 3.0]), np.array([1.0, 2.0]), np.array([0.5, 1.0])
    weight = np.array([2.0, -2.0]).reshape(1, 1, 2, 1)
    energy = 2**2 * 1 + 2**2 * 2
    step, weight_step = 5 / 255, 2 / 127
    expected = (step**2 * (1 + 4) + weight_step**2 * (4 * 1 + 2)) / (12 * energy)
    assert _noise(s, low, high, square, weight, energy) == pytest.approx(expected)
