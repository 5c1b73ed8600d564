"""Types and shapes: by onnx's rules, and by onnxruntime's behind operators that onnx does not know."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import TensorProto, helper, numpy_helper

from toolchain.graph import query, shapes

INFO = helper.make_tensor_value_info


def model(nodes, shape, constants=None):
    """A model of float ``x`` to ``y``, whose shape is not given."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    inputs, outputs = [INFO("x", TensorProto.FLOAT, shape)], [INFO("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def inferred(*args):
    result = model(*args)
    shapes.infer_shapes(result)
    return {value.name: value for value in query.activations(result)}


def test_behind_an_operator_of_onnxruntime():
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["g"], "quick", domain="com.microsoft"),
        helper.make_node("Conv", ["g", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    arguments = nodes, ["N", 3, 8, 8], {"w": np.ones((5, 3, 3, 3), np.float32)}
    values = inferred(*arguments)
    assert [value.dtype for value in values.values()] == [ir.DataType.FLOAT] * 4
    assert [str(size) for size in values["g"].shape] == ["N", "3", "8", "8"]
    assert [str(size) for size in values["c"].shape] == ["N", "5", "6", "6"]
    by_onnx = model(*arguments)
    common.ShapeInferencePass()(by_onnx)
    assert by_onnx.graph[0].outputs[0].dtype is None, "onnx knows it by now, and the test needs another operator"


def test_a_number_of_axes_that_only_a_run_shows():
    nodes = [helper.make_node("Squeeze", ["x"], ["s"], "squeeze"), helper.make_node("Relu", ["s"], ["y"], "relu")]
    values = inferred(nodes, [1, 1, 4, "W"])
    assert [query.rank(values[name]) for name in ("s", "y")] == [2, 2]
    assert query.sizes(values["y"], dynamic=-1) == (-1, -1)


def test_a_scalar_is_not_taken_for_unknown():
    nodes = [helper.make_node("Squeeze", ["x"], ["y"], "squeeze")]
    assert query.rank(inferred(nodes, [1, 1])["y"]) == 0


def test_types_other_than_float():
    nodes = [
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "one", "one"], ["y"], "product", domain="com.microsoft"),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], "quantize"),
    ][::-1]
    constants = {"w": np.ones((4, 3), np.int8), "one": np.ones((), np.float32)}
    values = inferred(nodes, [2, 4], constants)
    assert (values["q"].dtype, values["y"].dtype) == (ir.DataType.UINT8, ir.DataType.FLOAT)
    assert query.sizes(values["y"]) == (2, 3)


def test_a_model_that_onnxruntime_refuses_keeps_what_is_known():
    nodes = [
        helper.make_node("NoSuch", ["x"], ["n"], "odd", domain="com.microsoft"),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    assert inferred(nodes, [2, 4])["n"].dtype is None
