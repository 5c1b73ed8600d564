"""The scales that equalization chooses: less noise, room below a Clip, and only for observed tensors."""

import numpy as np
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from small_models import weights

from toolchain.quantization.accuracy.cross_layer_equalization import (
    _candidate_scales,
    _ChannelRanges,
    _noise,
    _Reader,
    apply_equalization,
    plan_equalization,
)
from toolchain.quantization.accuracy.scale_groups import MIN_CHANNEL_SHARE, ScaleGroup, scale_groups
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
    assert s[-1] < 0.35
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
    ranges = _ChannelRanges(low, high, square, np.ones(2))
    weight = np.array([2.0, -2.0]).reshape(1, 1, 2, 1)
    energy = 2**2 * 1 + 2**2 * 2
    step, weight_step = 5 / 255, 2 / 127
    expected = (step**2 * (1 + 4) + weight_step**2 * (4 * 1 + 2)) / (12 * energy)
    both = np.arange(2)
    assert _noise(s, ranges, _Reader(weight, energy, both, both)) == pytest.approx(expected)
    alone = _Reader(weight[:, :, :1], 4.0, both[:1], both)
    expected = (step**2 * 1 + (1 / 127) ** 2 * 4) / (12 * 4)
    assert _noise(s, ranges, alone) == pytest.approx(expected), "one channel of a tensor that a Split took apart"


def joined(ratio, body="c = Concat<axis = 1>(r, q)"):
    """Two branches of ranges 1 : ratio that a Concat joins, read by weights that make up for it."""
    rng = np.random.default_rng(3)
    constants = {n: rng.standard_normal((8, 4, 1, 1)).astype(np.float32) for n in "wv"}
    constants["v"] *= np.float32(ratio)
    constants["u"] = rng.standard_normal((4, 16, 1, 1)).astype(np.float32)
    constants["u"][:, :8] *= np.float32(ratio)
    return groups_of(f"a = Conv(x, w) r = Relu(a) b = Conv(x, v) q = Relu(b) {body} y = Conv(c, u)", constants)


@pytest.mark.parametrize("ratio", [1, 30, 200])
def test_operands_of_a_concat_are_brought_to_one_range(ratio):
    model, groups = joined(ratio)
    feeds = [image_feed(seed) for seed in range(6)]
    even = error_db(joined(1)[0], feeds, joined(1)[0])
    result = apply_equalization(model, planned(model, groups, feeds))
    for feed in feeds:
        close(small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"])
    assert error_db(result, feeds, model) > even - 3
    if ratio > 1:
        assert error_db(model, feeds, model) < even - 15


def test_the_operand_that_can_be_divided_is_brought_to_the_range_of_the_other():
    """A Tanh in front keeps its range; the convolution's result, a hundredth of it, is enlarged."""
    constants = {**weights(w=(4, 4, 1, 1), u=(4, 8, 1, 1))}
    constants["w"] /= np.float32(100)
    constants["u"][:, 4:] *= np.float32(100)
    body = "t = Conv(x, k) h = Tanh(t) a = Conv(h, w) s = Sigmoid(t) c = Concat<axis = 1>(s, a) y = Conv(c, u)"
    model, groups = groups_of(body, {**constants, **weights(k=(4, 4, 1, 1))})
    feeds = [image_feed(seed) for seed in range(6)]
    scales = planned(model, groups, feeds)
    [(group, s)] = scales.items()
    assert (s[group.fixed] == 1).all()
    result = apply_equalization(model, scales)
    assert error_db(result, feeds, model) > error_db(model, feeds, model) + 10


def test_a_part_of_a_split_tensor_gets_the_step_of_the_whole():
    """Half of a tensor has a hundredth of the range of the other half; the Split passes on integers of one scale."""
    constants = {**weights(w=(4, 4, 1, 1), u=(4, 2, 1, 1), o=(4, 2, 1, 1)), "parts": np.array([2, 2])}
    constants["w"][:2] /= np.float32(100)
    body = """a = Conv(x, w) r = Relu(a) p, q = Split<axis = 1>(r, parts) d = Conv(p, u) e = Conv(q, o)
    y = Concat<axis = 1>(d, e)"""
    model, groups = groups_of(body, constants)
    feeds = [image_feed(seed) for seed in range(6)]
    [(group, s)] = planned(model, groups, feeds).items()
    small, large = s[group.members["p"]], s[group.members["q"]]
    assert small.max() < 0.1 * large.min()


def test_a_channel_that_was_rarely_active_keeps_more_room():
    """Two channels of the same small range; one is above zero at every second position, the other at three of 256."""
    ranges = _ChannelRanges(np.zeros(3), np.array([10.0, 0.5, 0.5]), np.ones(3), np.array([2.0**20, 2.0**20, 16.0]))
    group = ScaleGroup({"a": np.arange(3)}, 1, 3, ("a",), ("y",))
    strongest = _candidate_scales(group, ranges)[-1]
    np.testing.assert_allclose(strongest, [1, MIN_CHANNEL_SHARE, 1])
