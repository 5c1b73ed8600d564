"""No weight is stored twice: tied tables, equal constants of several graphs, and weights that folding leaves unread."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.quantization.selection import select

INFO, NODE = helper.make_tensor_value_info, helper.make_node
SMALL_CHANGE = 3000
"""Bytes that names and the sizes of reshapes may take."""


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes, inputs, outputs, constants):
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


def cleaned(proto, *feeds):
    """The cleaned-up model, after asserting that it is not larger and computes the same."""
    result = optimize(ir.from_proto(proto)).model
    assert len(io.to_bytes(result)) <= proto.ByteSize() + SMALL_CHANGE
    for feed in feeds:
        expected, found = small_models.plain(proto, feed), small_models.plain(result, feed)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)  # sums of 64 terms
    return result


def tied(sizes, *, bias=False, through_identity=False):
    """A language model in small: a table looked up at the start, and its transpose at the end."""
    nodes = [
        NODE("Identity", ["table"], ["same"]),
        NODE("Gather", ["same" if through_identity else "table", "ids"], ["e"]),
        NODE("Relu", ["e"], ["r"]),
        NODE("Transpose", ["table"], ["t"], perm=[1, 0]),
        NODE("MatMul", ["r", "t"], ["m" if bias else "y"]),
        *([NODE("Add", ["m", "b"], ["y"])] if bias else []),
    ][0 if through_identity else 1 :]
    constants = {"table": array(500, 64), **({"b": array(500)} if bias else {})}
    output = INFO("y", TensorProto.FLOAT, [*sizes, 500])
    return model(nodes, [INFO("ids", TensorProto.INT64, sizes)], [output], constants)


@pytest.mark.parametrize("through_identity", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [[3], ["N"], [2, 3], ["N", 3], ["N", "S"]], ids=str)
def test_a_tied_table_stays_one(sizes, bias, through_identity):
    shape = [size if isinstance(size, int) else 4 for size in sizes]
    feed = {"ids": np.random.default_rng(1).integers(0, 500, shape)}
    result = cleaned(tied(sizes, bias=bias, through_identity=through_identity), feed)
    (product,) = [node for node in result.graph if node.op_type == "Gemm"]
    assert product.attributes["transB"].as_int() == 1
    assert len(product.inputs) == 2 + bias
    large = [value.name for value in result.graph.initializers.values() if value.const_value.size > 1000]
    assert large == ["table"]


def test_a_tied_table_read_by_a_gemm():
    proto = tied(["N"])
    proto.graph.node[-1].op_type = "Gemm"
    result = cleaned(proto, {"ids": np.array([3, 7])})
    assert small_models.ops(result) == ["Gather", "Relu", "Gemm"]


def test_a_tied_table_is_int8_in_both_places():
    choices = {choice.op: choice for choice in select(cleaned(tied(["N", 3]))).choices}
    assert choices["Gemm"].precision == "int8"
    assert choices["Gather"].precision == "int8 storage"


def test_a_tied_table_is_float_where_its_product_is_float():
    choices = {choice.op: choice for choice in select(cleaned(tied(["N", 3])), keep_float=["Gemm"]).choices}
    assert choices["Gather"].precision == "float"
    assert "weight of a float product" in choices["Gather"].reason


def test_a_table_without_other_readers_still_folds():
    nodes = [NODE("Transpose", ["w"], ["t"], perm=[1, 0]), NODE("MatMul", ["x", "t"], ["y"])]
    ends = [INFO("x", TensorProto.FLOAT, ["N", 64])], [INFO("y", TensorProto.FLOAT, ["N", 500])]
    result = cleaned(model(nodes, *ends, {"w": array(500, 64)}), {"x": array(3, 64)})
    assert small_models.ops(result) == ["MatMul"]


def branch(name, weight, reordered):
    """A branch that multiplies by a weight of its own, whose halves it exchanges first."""
    constant = lambda label, value: NODE("Constant", [], [label], value=numpy_helper.from_array(np.asarray(value)))  # noqa: E731
    at = {key: f"{name}_{key}" for key in ("w", "zero", "half", "end", "first", "last", "joined", "y")}
    nodes = [constant(at["w"], weight)]
    if reordered:
        nodes += [constant(at[key], [number]) for key, number in (("zero", 0), ("half", 32), ("end", 64))]
        nodes += [
            NODE("Slice", [at["w"], at["zero"], at["half"], at["zero"]], [at["first"]]),
            NODE("Slice", [at["w"], at["half"], at["end"], at["zero"]], [at["last"]]),
            NODE("Concat", [at["last"], at["first"]], [at["joined"]], axis=0),
        ]
    nodes.append(NODE("MatMul", ["x", at["joined" if reordered else "w"]], [at["y"]]))
    return helper.make_graph(nodes, name, [], [INFO(at["y"], TensorProto.FLOAT, ["N", 64])])


def choosing(then_branch, else_branch, constants, *more_nodes):
    nodes = [*more_nodes, NODE("If", ["flag"], ["y"], then_branch=then_branch, else_branch=else_branch)]
    inputs = [INFO("x", TensorProto.FLOAT, ["N", 64]), INFO("flag", TensorProto.BOOL, [])]
    outputs = [INFO("y", TensorProto.FLOAT, ["N", 64])]
    outputs += [INFO(name, TensorProto.FLOAT, ["N", 64]) for node in more_nodes for name in node.output]
    return model(nodes, inputs, outputs, constants)


FLAGS = [{"x": array(3, 64, seed=5), "flag": np.array(flag)} for flag in (True, False)]


def test_weights_that_folding_leaves_unread_go_from_branches():
    proto = choosing(branch("a", array(64, 64), True), branch("b", array(64, 64, seed=1), True), {})
    result = cleaned(proto, *FLAGS)
    for graph in result.graph.subgraphs():
        read = {value for node in graph for value in node.inputs}
        assert set(graph.initializers.values()) <= read


def test_equal_weights_of_branches_and_the_main_graph_are_one():
    weight = array(64, 64)
    outer = NODE("MatMul", ["x", "w"], ["z"])
    proto = choosing(branch("a", weight, False), branch("b", weight, False), {"w": weight}, outer)
    result = cleaned(proto, *FLAGS)
    assert io.weight_bytes(result) == weight.nbytes
    assert set(result.graph.initializers) == {"w"}


def test_equal_weights_of_two_branches_move_to_the_graph_around_them():
    weight = array(64, 64)
    result = cleaned(choosing(branch("a", weight, False), branch("b", weight, False), {}), *FLAGS)
    assert io.weight_bytes(result) == weight.nbytes


def test_a_branch_that_returns_its_constant_keeps_it():
    value = array(3, 64)
    graphs = []
    for name in ("a", "b"):
        node = NODE("Constant", [], [f"{name}_y"], value=numpy_helper.from_array(value))
        graphs.append(helper.make_graph([node], name, [], [INFO(f"{name}_y", TensorProto.FLOAT, [3, 64])]))
    cleaned(choosing(*graphs, {}, NODE("Relu", ["x"], ["z"])), *FLAGS)


def test_a_weight_of_a_loop_and_of_the_main_graph_is_one():
    weight = array(64, 64) / 8
    body = helper.make_graph(
        [NODE("MatMul", ["h", "own"], ["m"]), NODE("Tanh", ["m"], ["next"]), NODE("Identity", ["go"], ["on"])],
        "body",
        [INFO("i", TensorProto.INT64, []), INFO("go", TensorProto.BOOL, []), INFO("h", TensorProto.FLOAT, ["N", 64])],
        [INFO("on", TensorProto.BOOL, []), INFO("next", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weight, "own")],
    )
    nodes = [NODE("MatMul", ["x", "w"], ["start"]), NODE("Loop", ["count", "", "start"], ["y"], body=body)]
    ends = [INFO("x", TensorProto.FLOAT, ["N", 64])], [INFO("y", TensorProto.FLOAT, ["N", 64])]
    result = cleaned(model(nodes, *ends, {"w": weight, "count": np.int64(3)}), {"x": array(2, 64)})
    assert io.weight_bytes(result) < weight.nbytes + 100
