"""Files of other kinds of models are refused in words that say what they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.errors import ModelError
from toolchain.graph import io

F = TensorProto.FLOAT
ML = "ai.onnx.ml"
FLOATS = helper.make_tensor_type_proto(F, None)
X = helper.make_tensor_value_info("x", F, ["n", 4])
MAPS = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, FLOATS))


def saved(path, nodes, outputs, inputs=(X,), values=(), **constants):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", list(inputs), outputs, tensors, value_info=list(values))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def trees(count):
    """A TreeEnsembleRegressor of `count` trees with one leaf each."""
    ids = list(range(count))
    return helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain=ML,
        n_targets=1,
        nodes_treeids=ids,
        nodes_nodeids=[0] * count,
        nodes_featureids=[0] * count,
        nodes_modes=["LEAF"] * count,
        nodes_values=[0.0] * count,
        nodes_truenodeids=[0] * count,
        nodes_falsenodeids=[0] * count,
        target_treeids=ids,
        target_nodeids=[0] * count,
        target_ids=[0] * count,
        target_weights=[1.0] * count,
    )


def zipmap(source):
    return helper.make_node("ZipMap", [source], ["z"], domain=ML, classlabels_int64s=[0, 1])


def linear_classifier():
    return helper.make_node(
        "LinearClassifier", ["x"], ["label", "p"], domain=ML, coefficients=[1.0] * 8, classlabels_ints=[0, 1]
    )


Y = helper.make_tensor_value_info("y", F, ["n", 1])
LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
Z = helper.make_value_info("z", MAPS)
LIST = helper.make_value_info("s", helper.make_sequence_type_proto(FLOATS))
OPTIONAL = helper.make_value_info("o", helper.make_optional_type_proto(FLOATS))
W = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "message"),
    [
        ([trees(3)], [X], [Y], r"is a classical machine learning model \(TreeEnsembleRegressor\) without layers"),
        ([linear_classifier(), zipmap("p")], [X], [LABEL, Z], r"\(LinearClassifier, ZipMap\) without layers .* run it"),
        (
            [helper.make_node("Scaler", ["x"], ["s"], domain=ML, offset=[0.0], scale=[1.0]), trees(1)],
            [X],
            [Y],
            r"\(Scaler, TreeEnsembleRegressor\)",
        ),
        (
            [helper.make_node("MatMul", ["x", "w"], ["p"]), zipmap("p")],
            [X],
            [Z],
            r"output 'z': is a list \(Sequence\) of dictionaries \(Map\) made by ZipMap, .*options={'zipmap': False}",
        ),
        (
            [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("SequenceConstruct", ["p"], ["s"])],
            [X],
            [LIST],
            r"output 's': is a list \(Sequence\), and only tensors are supported; export the part",
        ),
        ([helper.make_node("SequenceAt", ["s", "w"], ["y"])], [LIST], [Y], r"input 's': is a list \(Sequence\)"),
        ([helper.make_node("OptionalGetElement", ["o"], ["y"])], [OPTIONAL], [Y], r"input 'o': is an optional value"),
        ([helper.make_node("Optional", ["x"], ["o"])], [X], [OPTIONAL], r"output 'o': is an optional value"),
    ],
)
def test_refused(tmp_path, nodes, inputs, outputs, message):
    path = saved(tmp_path / "m.onnx", nodes, outputs, inputs, w=W)
    with pytest.raises(ModelError, match=message):
        io.load(path)


def test_a_dictionary_inside(tmp_path):
    nodes = [
        helper.make_node("CastMap", ["m"], ["c"], "cast", domain=ML),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    inner = helper.make_value_info("c", helper.make_map_type_proto(TensorProto.INT64, FLOATS))
    path = saved(tmp_path / "m.onnx", nodes, [Y], values=[inner], w=W)
    with pytest.raises(ModelError, match=r"m\.onnx: node 'CastMap': works on dictionaries \(Map\)"):
        io.load(path)


def test_trees_are_refused_before_their_attributes_are_converted(tmp_path, monkeypatch):
    path = saved(tmp_path / "m.onnx", [trees(1000)], [Y])

    def fail(proto):
        raise AssertionError("converted")

    monkeypatch.setattr("onnx_ir.from_proto", fail)
    with pytest.raises(ModelError, match="TreeEnsembleRegressor"):
        io.load(path)


def test_a_network_with_a_scaler_in_front_is_read(tmp_path):
    scaler = helper.make_node("Scaler", ["x"], ["s"], domain=ML, offset=[0.0], scale=[1.0])
    path = saved(tmp_path / "m.onnx", [scaler, helper.make_node("MatMul", ["s", "w"], ["y"])], [Y], w=W)
    assert [node.op_type for node in io.load(path).graph] == ["Scaler", "MatMul"]


def test_lists_inside_a_network_are_read(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("SequenceConstruct", ["p", "p"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1),
    ]
    path = saved(tmp_path / "m.onnx", nodes, [helper.make_tensor_value_info("y", F, ["n", 4])], w=W)
    assert len(list(io.load(path).graph)) == 3
