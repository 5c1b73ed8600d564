"""The reason of a Loop or If says what the products in its body cost."""

import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper
from small_models import weights

from toolchain.quantization import bodies
from toolchain.quantization.selection import select

INFO = helper.make_tensor_value_info


def loop(weight=(8, 8), op="MatMul"):
    body = helper.make_graph(
        [helper.make_node(op, ["h", "w"], ["m"], "inner"), helper.make_node("Identity", ["go"], ["on"], "on")],
        "body",
        [INFO("i", TensorProto.INT64, []), INFO("go", TensorProto.BOOL, []), INFO("h", TensorProto.FLOAT, [2, 8])],
        [INFO("on", TensorProto.BOOL, []), INFO("m", TensorProto.FLOAT, [2, 8])],
    )
    node = helper.make_node("Loop", ["n", "true", "x"], ["y"], "loop", body=body)
    constants = [numpy_helper.from_array(weights(w=weight)["w"], "w")]
    inputs = [
        INFO("x", TensorProto.FLOAT, [2, 8]),
        INFO("n", TensorProto.INT64, []),
        INFO("true", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph([node], "rnn", inputs, [INFO("y", TensorProto.FLOAT, [2, 8])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_a_loop_says_what_its_products_cost_at_each_turn():
    expected = "int8 does not reach into its body: 1 product with 128 multiply-accumulates at each turn"
    [choice] = select(loop()).choices
    assert (choice.int8, choice.reason) == (False, expected)


def test_a_body_without_products_keeps_the_ordinary_reason():
    [choice] = select(loop((2, 8), "Add")).choices
    assert choice.reason == "its operator is not in the table"


def test_a_product_of_unknown_rows_counts_at_least_one():
    model = loop()
    [node] = model.graph
    inner = next(n for n in node.attributes["body"].as_graph() if n.op_type == "MatMul")
    inner.outputs[0].shape = None
    assert "with at least 64 multiply-accumulates" in bodies.reason(node)


@pytest.mark.parametrize("op", ["Relu", "Tanh"])
def test_other_operators_have_no_body(op):
    [node] = small_models.model(f"y = {op}(x)", "float[2] x", "float[2] y").graph
    assert bodies.reason(node) is None
