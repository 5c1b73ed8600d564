"""A weight that several nodes read is rounded once and stored once, or left float where int8 would store it twice."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from onnx import TensorProto, helper, numpy_helper
from small_models import weights

from toolchain.calibration.moments import joint_moments, second_moments
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.selection import select
from toolchain.quantization.shared_weights import stored_twice

UNROLLED = """[g0] a = Gemm<transB = 1>(x, w, b) c = Relu(a) [g1] d = Gemm<transB = 1>(c, w, b) e = Relu(d)
[g2] y = Gemm<transB = 1>(e, w, k)"""


def unrolled(scale=1.0):
    constants = weights(w=(8, 8), b=(8,), k=(8,))
    constants["k"] *= np.float32(scale)
    return by_hand.named(UNROLLED, "float[3, 8] x", "y", constants)


def feeds(n=6):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((3, 8)).astype(np.float32)} for _ in range(n)]


def int8_weights(written):
    values = [v for v in written.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT8]
    return [v for v in values if len(v.shape) == 2]


@pytest.mark.parametrize("rounding", [False, True])
def test_an_unrolled_layer_has_one_weight(rounding):
    source = unrolled()
    recipe = Recipe(quantize=Quantize(measure=False, rounding=rounding))
    result = quantize_model(source, open_data(feeds(), io.inputs(source)), recipe)
    assert {"g0", "g1", "g2"} <= result.plan.int8_nodes()
    assert result.audit.clean
    assert len({id(product.weight) for product in result.plan.products.values()}) == 1
    written = result.write("u8")
    assert len(int8_weights(written)) == 1
    expected, found = (small_models.plain(each, feeds()[0], fused=True)["y"] for each in (source, written))
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.05


def test_the_largest_bias_decides_the_scales_of_all():
    """One reader's bias would overflow int32 with the scales that suit the weight alone."""
    plan = by_hand.planned(unrolled(scale=1e12), feeds())
    [first, *others] = plan.products.values()
    assert all(other.weight is first.weight for other in others)
    last = plan.products["g2"]
    assert np.abs(last.bias).max() <= 2**30
    real = last.bias * last.bias_scales.astype(np.float64)
    np.testing.assert_allclose(real, weights(w=(8, 8), b=(8,), k=(8,))["k"] * 1e12, rtol=1e-6)


def test_moments_of_nodes_that_share_a_weight_are_those_of_all_their_inputs():
    source = unrolled()
    data = open_data(feeds(), io.inputs(source))
    nodes = [node for node in source.graph if node.op_type == "Gemm"]
    [(readers, joint)] = joint_moments(source, data, [nodes])
    assert list(readers) == nodes
    values = [small_models.every_value(ir.to_proto(source), feed) for feed in feeds()]
    rows = np.concatenate([value[name] for value in values for name in ("x", "c", "e")]).astype(np.float64)
    assert joint.positions == len(rows)
    np.testing.assert_allclose(joint.blocks[0][0], rows.T @ rows / len(rows), rtol=1e-5)
    alone = [moments for _, moments in second_moments(source, data, nodes[:1])]
    [(_, single)] = joint_moments(source, data, [nodes[:1]])
    np.testing.assert_array_equal(single.blocks[0], alone[0].blocks[0])


# --- a weight that a float operator reads as well ---


def loop_model(more=()):
    """Make a product whose weight a Loop reads, with further products of their own weights behind it."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["m"], "inner"), helper.make_node("Identity", ["go"], ["on"], "on")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("h", TensorProto.FLOAT, [2, 8])],
        [info("on", TensorProto.BOOL, []), info("m", TensorProto.FLOAT, [2, 8])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "outer"),
        helper.make_node("Loop", ["n", "true", "a"], ["b"], "loop", body=body),
    ]
    constants = {"w": weights(w=(8, 8))["w"], "n": np.int64(2), "true": np.bool_(True)}
    last = "b"
    for number, width in enumerate(more):
        constants[f"v{number}"] = weights(v=(8, width))["v"]
        nodes.append(helper.make_node("MatMul", [last, f"v{number}"], [f"p{number}"], f"p{number}"))
        last = f"p{number}"
    nodes.append(helper.make_node("Identity", [last], ["y"], "end"))
    graph = helper.make_graph(
        nodes, "rnn", [info("x", TensorProto.FLOAT, [2, 8])], [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(c), n) for n, c in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_a_weight_that_a_loop_reads_is_not_stored_a_second_time():
    model = loop_model()
    reason = "MatMul 'inner' reads its weight in float, so int8 would store it twice and the file would grow"
    assert stored_twice(model, {"outer"}) == {"outer": reason}
    [outer] = [choice for choice in select(model).choices if choice.node == "outer"]
    assert (outer.int8, outer.reason) == (False, reason)


def test_it_is_int8_where_the_other_weights_save_more_than_it_adds():
    assert stored_twice(loop_model([8]), {"outer", "p0"}) == {}, "64 bytes more, 192 bytes less"
    assert stored_twice(loop_model([2]), {"outer", "p0"}), "64 bytes more, 48 bytes less"
    assert "outer" in select(loop_model([8])).int8_nodes()


def test_weights_that_only_int8_products_read_are_no_matter():
    assert stored_twice(unrolled(), {"g0", "g1", "g2"}) == {}
    assert stored_twice(unrolled(), {"g0", "g1"}), "the third product reads it in float"
