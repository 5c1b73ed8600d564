"""A plan written into a graph computes the plan's numbers, fused or not, in either encoding."""

import numpy as np
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from hypothesis import given, settings
from quantizable_nets import CASES, build, draw_feeds, networks

from toolchain.graph import text
from toolchain.quantization.qdq.writer import apply_quantization


def assert_within_a_step(found, expected, plan, message, share=0.02):
    """Compare arrays that are equal except for elements one step of their grid apart.

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


def test_absorbed_activations_are_removed_and_each_tensor_has_one_pair():
    model = build("shortcut")
    plan, written = by_hand.quantized(model, draw_feeds(model))
    ops = small_models.ops(written)
    assert "Relu" not in ops
    assert set(plan.activations) == {"x", "r", "d", "t", "y"}
    assert ops.count("QuantizeLinear") == 5
    assert ops.count("DequantizeLinear") == 5 + 2 * len(plan.products), "weights and biases have one each"


def test_float_readers_read_the_int8_tensor():
    """They read rounded numbers of a tensor that int8 computes, and float numbers of one that float computes."""
    written = by_hand.quantized(build("float island"), draw_feeds(build("float island")))[1]
    nodes = {node.name: node for node in written.graph}
    assert nodes["t"].inputs[0].producer().op_type == "DequantizeLinear"
    written = by_hand.quantized(build("input read by both"), draw_feeds(build("input read by both")))[1]
    nodes = {node.name: node for node in written.graph}
    assert nodes["r"].inputs[0].is_graph_input()
    assert nodes["c"].inputs[0].producer().op_type == "DequantizeLinear"


def test_activation_that_stays_float_between_two_int8_products():
    """The first product's result stays float, so its Relu becomes a Max; the second product reads that in int8."""
    model = by_hand.named(
        "d = Gemm(x, w, b) r = Relu(d) y = Gemm(r, v, c)", "float[1, 8] x", "float[1, 4] y",
        small_models.weights(w=(8, 8), b=(8,), v=(8, 4), c=(4,)),
    )  # fmt: skip
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)} for seed in range(12)]
    plan, written = by_hand.quantized(model, feeds, keep_float=("r",))
    assert "Max" in small_models.ops(written)
    assert "r" in plan.activations
    expected, found = (np.array([small_models.plain(m, feed)["y"] for feed in feeds]) for m in (model, written))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


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


def test_a_model_with_nothing_quantizable_is_unchanged():
    model = by_hand.named("a = Tanh(x) y = Softmax(a)", "float[2, 3] x", "float[2, 3] y")
    plan, written = by_hand.quantized(model, [{"x": np.ones((2, 3), np.float32)}])
    assert plan.products == plan.activations == {}
    assert plan.overflow_free
    assert text.dump(written) == text.dump(model)
