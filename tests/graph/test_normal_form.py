"""Files that onnxruntime reads and onnx's checker does not: unsorted nodes, sparse constants, shared node names."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.errors import ModelError
from toolchain.graph import check, io, normal_form

F = TensorProto.FLOAT
BODY = "a = Relu(x) b = MatMul(a, w) c = Add(a, b) y = Mul(b, c)"
CONSTANTS = {"w": np.arange(16, dtype=np.float32).reshape(4, 4)}
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def net():
    return small_models.proto(BODY, "float[2, 4] x", "float[2, 4] y", CONSTANTS)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::3])
def test_nodes_in_any_order(tmp_path, order):
    model = net()
    expected = small_models.plain(model, {"x": X})["y"]
    nodes = [onnx.NodeProto.FromString(model.graph.node[i].SerializeToString()) for i in order]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    check.check(loaded)
    np.testing.assert_array_equal(small_models.plain(loaded, {"x": X})["y"], expected)


def test_sorted_nodes_keep_their_order():
    model = small_models.proto("a = Relu(x) b = Abs(x) c = Neg(x) y = Sum(c, b, a)", "float[4] x", "float[4] y")
    normal_form.sort_nodes(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Abs", "Neg", "Sum"]


def test_a_value_that_only_a_branch_reads(tmp_path):
    """The If stands before the node whose result its branch reads, and the branch itself is unsorted."""
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Neg", ["t0"], ["t"]), helper.make_node("Abs", ["late"], ["t0"])],
        "then",
        [],
        [value("t", F, None)],
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [value("e", F, None)])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["x", "w"], ["late"]),
    ]
    ports = [value("x", F, [2, 4]), value("c", TensorProto.BOOL, [])]
    weights = [numpy_helper.from_array(CONSTANTS["w"], "w")]
    graph = helper.make_graph(nodes, "g", ports, [value("y", F, [2, 4])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    check.check(loaded)
    got = small_models.plain(loaded, {"x": X, "c": np.array(True)})["y"]
    np.testing.assert_allclose(got, -np.abs(X @ CONSTANTS["w"]), rtol=1e-6)


def test_a_circle_is_refused(tmp_path):
    model = small_models.proto("a = Relu(x) y = Add(a, x)", "float[4] x", "float[4] y")
    model.graph.node[0].input[0] = "y"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="before it is computed"):
        check.check(io.load(tmp_path / "m.onnx"))


def test_a_long_chain_backwards():
    count = 3000
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in reversed(range(count))]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("v0", F, [1])], [helper.make_tensor_value_info(f"v{count}", F, [1])]
    )
    normal_form.sort_nodes(graph)
    assert [node.input[0] for node in graph.node] == [f"v{i}" for i in range(count)]


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_sparse_initializers(tmp_path, coordinates, dtype):
    indices = np.array([[0, 0], [2, 1]]) if coordinates else np.array([0, 9])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([5, -7], dtype), "w"), numpy_helper.from_array(indices), [4, 4]
    )
    kind = "float" if dtype == np.float32 else "int64"
    model = small_models.proto("y = Add(x, w)", f"{kind}[4, 4] x", f"{kind}[4, 4] y")
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, tmp_path / "m.onnx")
    loaded, notes = io.read(tmp_path / "m.onnx")
    assert notes == ("sparse constants (1) became dense ones",)
    expected = np.zeros((4, 4), dtype)
    expected[0, 0], expected[2, 1] = 5, -7
    np.testing.assert_array_equal(small_models.plain(loaded, {"x": np.zeros((4, 4), dtype)})["y"], expected)


def test_a_sparse_constant_node(tmp_path):
    model = net()
    values = numpy_helper.from_array(np.array([3.0], np.float32))
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([5])), [4, 4])
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    onnx.save(model, tmp_path / "m.onnx")
    loaded, notes = io.read(tmp_path / "m.onnx")
    assert len(notes) == 1
    product = np.zeros_like(X)
    product[:, 1] = 3 * np.maximum(X, 0)[:, 1]
    expected = product * (np.maximum(X, 0) + product)
    np.testing.assert_allclose(small_models.plain(loaded, {"x": X})["y"], expected, rtol=1e-6)


def test_sparse_indices_outside_the_shape(tmp_path):
    model = small_models.proto("y = Add(x, w)", "float[4] x", "float[4] y")
    values = numpy_helper.from_array(np.array([1.0], np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([3])), [4])
    )
    model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([40])))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"sparse constant 'w': has 1 values at positions that do not fit its shape"):
        io.load(tmp_path / "m.onnx")


def test_nodes_that_share_a_name(tmp_path):
    """The second one gets a number; a name that another node or value has is passed over."""
    model = small_models.proto(
        "a = Relu(x) same_1 = Abs(a) c = Neg(same_1) d = Exp(c) y = Abs(d)", "float[4] x", "float[4] y"
    )
    names = ["same", "same", "same_2", "same", ""]
    expected = small_models.plain(model, {"x": X[0]})["y"]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    onnx.save(model, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    check.check(loaded)
    assert [node.name or "" for node in loaded.graph][:4] == ["same", "same_3", "same_2", "same_4"]
    np.testing.assert_array_equal(small_models.plain(loaded, {"x": X[0]})["y"], expected)


def test_a_branch_that_shares_a_name_with_the_graph():
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x, bool c) => (float[4] y)
        {
            [one] a = Relu (x)
            y = If (c) <
                then_branch = t () => (float[4] p) { [one] p = Neg (a) },
                else_branch = e () => (float[4] q) { [one] q = Abs (a) }
            >
        }
    """
    graph = onnx.parser.parse_model(text).graph
    normal_form.separate_names(graph)
    branches = [attribute.g.node[0].name for attribute in graph.node[1].attribute]
    assert (graph.node[0].name, *branches) == ("one", "one_1", "one_2")
