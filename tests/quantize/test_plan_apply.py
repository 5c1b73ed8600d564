"""A plan written into a graph computes what the plan says, fused or not, in either spelling."""

import inspect
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import weights

from toolchain.graph import edit, text
from toolchain.quantize import Plan, apply_quantization, plan_quantization, select
from toolchain.recipe import Quantize

IMAGE = "float[1, 4, 8, 8] x"
C44 = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)}
CONV = "[conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)"

CASES = {
    # name: (body, inputs, constants)
    "conv, stride and uneven padding": (
        "y = Conv<pads = [1, 0, 2, 1], strides = [2, 1]>(x, w, b)", IMAGE, weights(w=(6, 4, 3, 3), b=(6,)),
    ),
    "conv without bias, dilated": ("y = Conv<dilations = [2, 2]>(x, w)", IMAGE, weights(w=(6, 4, 3, 3))),
    "conv padded by name": ('y = Conv<auto_pad = "SAME_UPPER">(x, w)', IMAGE, weights(w=(6, 4, 2, 2))),
    "grouped conv": ("y = Conv<group = 2>(x, w, b)", IMAGE, weights(w=(6, 2, 3, 3), b=(6,))),
    "depthwise, clip, pointwise": (
        "d = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w, b) r = Clip(d, zero, six) y = Conv(r, v)", IMAGE,
        {**weights(w=(4, 1, 3, 3), b=(4,), v=(8, 4, 1, 1)), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "two outputs a group": ("y = Conv<group = 4>(x, w, b)", IMAGE, weights(w=(8, 1, 3, 3), b=(8,))),
    "gray image": ("y = Conv(x, w, b)", "float[1, 1, 8, 8] x", weights(w=(8, 1, 3, 3), b=(8,))),
    "sound": ("y = Conv<dilations = [2], pads = [2, 2]>(x, w)", "float[1, 3, 20] x", weights(w=(5, 3, 3))),
    "volume": ("y = Conv(x, w, b)", "float[1, 2, 4, 4, 4] x", weights(w=(3, 2, 2, 2, 2), b=(3,))),
    "Gemm, both ways round": (
        "a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, v, k)", "float[3, 10] x",
        weights(w=(10, 7), b=(7,), v=(5, 7), k=(5,)),
    ),
    "Gemm with a bias row": ("y = Gemm(x, w, b)", "float[3, 10] x", weights(w=(10, 7), b=(1, 7))),
    "MatMul of a sequence": (
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", "float[1, 5, 6] x", weights(w=(6, 9), v=(9, 4)),
    ),
    "odd contraction": ("y = MatMul(x, w)", "float[4, 7] x", weights(w=(7, 5))),
    "shortcut": (
        f"{CONV} r = Relu(c) d = Conv(r, v) s = Add(r, d) t = Relu(s) y = Conv(t, u)", IMAGE,
        weights(w=(4, 4, 3, 3), b=(4,), v=(4, 4, 1, 1), u=(4, 4, 1, 1)),
    ),
    "concatenation": (
        f"{CONV} d = Conv(x, v) e = Concat<axis = 1>(c, d) y = Conv(e, u)", IMAGE,
        weights(w=(4, 4, 3, 3), b=(4,), v=(3, 4, 1, 1), u=(4, 7, 1, 1)),
    ),
    "pool then relu": (
        f"{CONV} p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) r = Relu(p) y = Conv(r, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "relu then padded pool": (
        f"{CONV} r = Relu(c) p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) y = Conv(p, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "averages": (
        f"{CONV} a = AveragePool<kernel_shape = [3, 3]>(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, k)",
        IMAGE, weights(b=(4,), k=(4, 3), **C44),
    ),
    "gate": (
        f"{CONV} p = GlobalAveragePool(c) e = Conv(p, v) s = Sigmoid(e) m = Mul(c, s) y = Conv(m, v)", IMAGE,
        weights(b=(4,), **C44),
    ),
    "leaky": (f"{CONV} l = LeakyRelu<alpha = 0.1>(c) y = Conv(l, v)", IMAGE, weights(b=(4,), **C44)),
    "leaky and clipped": (
        f"{CONV} l = LeakyRelu<alpha = 0.1>(c) q = Clip(l, low, high) y = Conv(q, v)", IMAGE,
        {**weights(b=(4,), **C44), "low": np.float32(-0.2), "high": np.float32(1)},
    ),
    "relu and clip in turn": (
        f"{CONV} r = Relu(c) q = Clip(r, low, high) y = Conv(q, v)", IMAGE,
        {**weights(b=(4,), **C44), "low": np.float32(-1), "high": np.float32(2)},
    ),
    "integers moved about": (
        f"""{CONV} a, k = Split<axis = 1>(c, parts) t = Transpose<perm = [0, 1, 3, 2]>(k)
        s = Reshape(t, shape) e = Concat<axis = 1>(s, a) y = Conv(e, v)""", IMAGE,
        {**weights(w=(4, 4, 3, 3), b=(4,), v=(4, 4, 1, 1)), "parts": np.array([1, 3]), "shape": np.array([1, 3, 8, 8])},
    ),
    "enlarged": (
        f'{CONV} u = Resize<mode = "nearest">(c, , s) y = Conv(u, v)', IMAGE,
        {**weights(b=(4,), **C44), "s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "float island": (f"{CONV} t = Tanh(c) m = Mul(t, c) y = Conv(m, v)", IMAGE, weights(b=(4,), **C44)),
    "float tail": (
        f"{CONV} p = GlobalAveragePool(c) f = Flatten(p) g = Gemm(f, k, h) y = Softmax(g)", IMAGE,
        weights(b=(4,), k=(4, 3), h=(3,), **C44),
    ),
    "input read by both": (
        "r = Tanh(x) c = Conv(x, v) d = Conv(r, v) y = Add(c, d)", IMAGE, weights(v=(4, 4, 1, 1)),
    ),
    "one weight for two": ("a = Conv(x, v) r = Relu(a) y = Conv(r, v)", IMAGE, weights(v=(4, 4, 1, 1))),
    "output read again": (
        f"{CONV} y = Relu(c) z = Conv(y, v)", IMAGE, weights(b=(4,), **C44),
    ),
    "output of a pool and what it reads": (
        f"{CONV} y = MaxPool<kernel_shape = [2, 2]>(c)", IMAGE, weights(b=(4,), **C44),
    ),
}  # fmt: skip

OUTPUTS = {"output read again": "y, z", "output of a pool and what it reads": "y, c"}


def build(name):
    body, inputs, constants = CASES[name]
    return by_hand.named(body, inputs, OUTPUTS.get(name, "y"), constants)


def draw_feeds(model, n=4, seed=0):
    rng = np.random.default_rng(seed)
    [port] = model.graph.inputs
    return [{port.name: rng.standard_normal([int(d) for d in port.shape]).astype(np.float32)} for _ in range(n)]


def assert_within_a_step(found, expected, plan, message, share=0.02):
    """Equal, but for elements a step of their grid apart.

    Unfused kernels add products in float32, fused ones integers, the simulation float64: what lies within 1e-5 of a tie
    rounds either way, about one element in ten thousand a layer, and a flipped step in front moves a few behind it.
    """
    for name, array in expected.items():
        gap = np.abs(found[name].astype(np.float64) - array)
        grid = plan.activations.get(name)
        if grid is None:  # a float result: products of steps, and sums of them
            assert gap.max() <= 0.02 * np.abs(array).max(), f"{message}: {name}"
            continue
        steps = np.rint(gap / grid.scale)
        assert steps.max() <= 1, f"{message}: {name} is {steps.max()} steps off"
        assert np.count_nonzero(steps) <= max(1, share * steps.size), f"{message}: {name}"


# --- the four ways of running ---


@pytest.mark.parametrize("name", CASES)
def test_every_way_of_running_it_computes_what_the_plan_says(name):
    model = build(name)
    feeds = draw_feeds(model)
    plan = by_hand.planned(model, feeds)
    unsigned, signed = (apply_quantization(model, plan, encoding) for encoding in ("u8", "s8"))
    for feed in feeds[:2]:
        expected = by_hand.simulate(model, plan, feed)
        apart = small_models.plain(unsigned, feed)
        assert list(apart) == list(expected), "output names and order"
        assert_within_a_step(apart, expected, plan, "plain against simulated")
        assert_within_a_step(by_hand.reference(unsigned, feed), apart, plan, "onnx's reference against plain")
        assert_within_a_step(small_models.plain(unsigned, feed, fused=True), apart, plan, "fused against plain")
        for output, array in small_models.plain(signed, feed).items():
            np.testing.assert_array_equal(array, apart[output], err_msg=f"{output}: s8 against u8")


@pytest.mark.parametrize("name", CASES)
def test_int8_stays_close_to_float(name):
    model = build(name)
    feeds = draw_feeds(model)
    _, unsigned = by_hand.quantized(model, feeds)
    for feed in feeds:
        expected, found = small_models.plain(model, feed), small_models.plain(unsigned, feed)
        for output, array in expected.items():
            noise = np.sqrt(np.mean((found[output] - array) ** 2) / np.mean(array**2))
            assert noise < 0.05, f"{output}: a step is about 1 % of a bell's deviation, an error of meaning far more"


BLOCKS = {
    "conv": ("{y} = Conv<pads = [1, 1, 1, 1]>({x}, w{i}, b{i})", {"w": (4, 4, 3, 3), "b": (4,)}),
    "pointwise": ("{y} = Conv({x}, w{i})", {"w": (4, 4, 1, 1)}),
    "depthwise": ("{y} = Conv<group = 4, pads = [1, 1, 1, 1]>({x}, w{i}, b{i})", {"w": (4, 1, 3, 3), "b": (4,)}),
    "grouped": ("{y} = Conv<group = 2>({x}, w{i})", {"w": (4, 2, 1, 1)}),
    "relu": ("{y} = Relu({x})", {}),
    "leaky": ("{y} = LeakyRelu({x})", {}),
    "tanh": ("{y} = Tanh({x})", {}),
    "sigmoid": ("{y} = Sigmoid({x})", {}),
    "pool": ("{y} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})", {}),
    "turn": ("{y} = Transpose<perm = [0, 1, 3, 2]>({x})", {}),
    "add": ("{y} = Add({x}, {z})", {}),
    "mul": ("{y} = Mul({x}, {z})", {}),
}


@st.composite
def networks(draw):
    """Up to seven random layers over [1, 4, 6, 6], each reading any earlier values; the last is the output."""
    values, lines, constants = ["x"], [], {}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for i in range(draw(st.integers(2, 7))):
        body, shapes = BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))]
        recent = st.sampled_from(values[-3:])
        lines.append(body.format(x=draw(recent), z=draw(recent), y=f"v{i}", i=i))
        for kind, shape in shapes.items():
            fan_in = np.sqrt(np.prod(shape[1:])) if kind == "w" else 1.0
            constants[f"{kind}{i}"] = (rng.standard_normal(shape) / fan_in).astype(np.float32)
        values.append(f"v{i}")
    model = by_hand.named(" ".join(lines), "float[1, 4, 6, 6] x", values[-1], constants)
    edit.remove_unused(model)
    return model


@given(networks())
@settings(max_examples=25, deadline=None)
def test_random_networks_compute_what_the_plan_says(model):
    feeds = draw_feeds(model, 3)
    plan = by_hand.planned(model, feeds, ranges="minmax")
    unsigned, signed = (apply_quantization(model, plan, encoding) for encoding in ("u8", "s8"))
    feed = feeds[0]
    [expected] = by_hand.simulate(model, plan, feed).values()
    [apart], [fused] = (
        small_models.plain(unsigned, feed).values(),
        small_models.plain(unsigned, feed, fused=True).values(),
    )
    [other] = small_models.plain(signed, feed).values()
    np.testing.assert_array_equal(other, apart)
    # A step that flips early moves everything behind it, by less than a step each on average.
    size = max(np.abs(expected).max(), 1e-6)
    assert np.mean(np.abs(apart - expected)) <= 2e-3 * size
    assert np.mean(np.abs(fused - apart)) <= 2e-3 * size


# --- what is written ---


def test_the_model_is_left_alone_and_outputs_keep_name_shape_and_place():
    model = build("output read again")
    before = ir.to_proto(model).SerializeToString()
    _, written = by_hand.quantized(model, draw_feeds(model))
    assert ir.to_proto(model).SerializeToString() == before
    assert [(v.name, str(v.shape), v.dtype) for v in written.graph.outputs] == [
        (v.name, str(v.shape), v.dtype) for v in model.graph.outputs
    ]


def test_weights_are_s8_biases_s32_and_scales_scalar():
    model = build("depthwise, clip, pointwise")
    plan, written = by_hand.quantized(model, draw_feeds(model))
    arrays = {name: value.const_value.numpy() for name, value in written.graph.initializers.items()}
    assert not {"w", "b", "v", "six"} & set(arrays), "nothing of the float model's constants is left"
    for node in written.graph:
        if node.op_type != "DequantizeLinear" or node.inputs[0].const_value is None:
            continue
        values, scale, zero = (value.const_value.numpy() for value in node.inputs)
        assert values.dtype in (np.int8, np.int32)
        assert scale.shape == zero.shape == (len(values),)
        assert not zero.any()
    for node in written.graph:
        if node.op_type == "QuantizeLinear":
            _, scale, zero = node.inputs
            assert scale.const_value.numpy().shape == zero.const_value.numpy().shape == ()
            assert zero.const_value.numpy().dtype == np.uint8
    bias = plan.products["d"]
    np.testing.assert_allclose(bias.bias_scales, plan.activations["x"].scale * bias.weight.scales, rtol=1e-6)


def test_an_absorbed_activation_is_gone_and_one_pair_stands_behind_each_tensor():
    model = build("shortcut")
    plan, written = by_hand.quantized(model, draw_feeds(model))
    ops = small_models.ops(written)
    assert "Relu" not in ops
    assert set(plan.activations) == {"x", "r", "d", "t", "y"}
    assert ops.count("QuantizeLinear") == 5
    assert ops.count("DequantizeLinear") == 5 + 2 * len(plan.products), "weights and biases have one each"


def test_float_readers_take_what_exists_on_the_device():
    """Of a tensor computed in int8 the rounded numbers, of one computed in float the float ones."""
    written = by_hand.quantized(build("float island"), draw_feeds(build("float island")))[1]
    nodes = {node.name: node for node in written.graph}
    assert nodes["t"].inputs[0].producer().op_type == "DequantizeLinear"
    written = by_hand.quantized(build("input read by both"), draw_feeds(build("input read by both")))[1]
    nodes = {node.name: node for node in written.graph}
    assert nodes["r"].inputs[0].is_graph_input()
    assert nodes["c"].inputs[0].producer().op_type == "DequantizeLinear"


def test_tensors_of_one_scale_share_its_constants():
    model = build("integers moved about")
    plan, written = by_hand.quantized(model, draw_feeds(model))
    assert plan.activations["c"] == plan.activations["k"] == plan.activations["t"] == plan.activations["s"]
    scales = [node.inputs[1].name for node in written.graph if node.op_type == "QuantizeLinear"]
    assert len(scales) == len(plan.activations)
    assert len(set(scales)) == len(set(plan.activations.values()))


def test_unsigned_and_signed_files_differ_in_zero_points_alone():
    model = build("shortcut")
    plan = by_hand.planned(model, draw_feeds(model))
    unsigned, signed = (apply_quantization(model, plan, encoding) for encoding in ("u8", "s8"))
    assert text.dump(unsigned).replace("uint8", "int8") == text.dump(signed)
    for name, value in unsigned.graph.initializers.items():
        ours, theirs = value.const_value.numpy(), signed.graph.initializers[name].const_value.numpy()
        if ours.dtype == np.uint8:
            assert theirs.dtype == np.int8
            assert int(ours) - 128 == int(theirs)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_a_model_with_nothing_quantizable_comes_back_as_it_is():
    model = by_hand.named("a = Tanh(x) y = Softmax(a)", "float[2, 3] x", "float[2, 3] y")
    plan, written = by_hand.quantized(model, [{"x": np.ones((2, 3), np.float32)}])
    assert plan.products == plan.activations == {}
    assert plan.overflow_free
    assert text.dump(written) == text.dump(model)


# --- the numbers of the plan ---


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


def test_a_plan_knows_no_target():
    asked = ["model", "selection", "observation", "recipe", "weights"]
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
    """b / (s_x s_w) would be 1e12: int32 ends at 2e9, and onnxruntime would wrap around without a word."""
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
