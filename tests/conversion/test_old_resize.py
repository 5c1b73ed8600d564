"""Upsample and Resize below opset 11 keep their meaning: the file itself, run by onnxruntime, is the reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from toolchain.conversion.source import convert
from toolchain.graph import io, query

CASES = [
    ("Upsample", 7, "linear", (1, 1, 2, 2)),
    ("Upsample", 7, "nearest", (1, 1, 1.7, 1.7)),
    ("Upsample", 8, "linear", (1, 1, 1.5, 3)),
    ("Upsample", 9, "linear", (1, 1, 2, 2)),
    ("Upsample", 9, "nearest", (1, 1, 1.7, 2)),
    ("Upsample", 9, "nearest", (1, 1, 2, 2)),
    ("Upsample", 9, "nearest", (1, 1, 2, 2, 2)),
    ("Resize", 10, "linear", (1, 1, 2, 2)),
    ("Resize", 10, "linear", (1, 1, 0.6, 0.7)),
    ("Resize", 10, "nearest", (1, 1, 0.5, 0.6)),
    ("Resize", 10, "nearest", (1, 1, 2.3, 0.6)),
    ("Resize", 10, "nearest", (1, 1, 1.25, 1)),
]


def saved(path, operator, opset, mode, scales, *, computed=False):
    shape = [1, 2, 7, 9, 5][: len(scales)]
    inputs, constants = ["x", "s"], [numpy_helper.from_array(np.array(scales, np.float32), "s")]
    attributes = {}
    if opset < 9:
        inputs, constants, attributes = ["x"], [], {"scales": [float(scale) for scale in scales]}
    nodes = [helper.make_node(operator, inputs, ["u"], mode=mode, **attributes), helper.make_node("Relu", ["u"], ["y"])]
    value = helper.make_tensor_value_info
    ports = [value("x", TensorProto.FLOAT, shape)]
    if computed:
        ports.append(value("s", TensorProto.FLOAT, [len(scales)]))
        constants = []
    graph = helper.make_graph(nodes, "g", ports, [value("y", TensorProto.FLOAT, [None] * len(scales))], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4), path)
    return path


@pytest.mark.parametrize(("operator", "opset", "mode", "scales"), CASES)
def test_the_upgraded_model_computes_the_same(tmp_path, operator, opset, mode, scales):
    path = saved(tmp_path / "m.onnx", operator, opset, mode, scales)
    model = convert(path).model
    assert query.opset(model) == 17
    x = np.random.default_rng(0).standard_normal([1, 2, 7, 9, 5][: len(scales)]).astype(np.float32)
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(small_models.plain(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_scales_that_are_an_input(tmp_path, mode):
    path = saved(tmp_path / "m.onnx", "Upsample", 9, mode, (1, 1, 2, 2), computed=True)
    model = convert(path).model
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 7, 9)).astype(np.float32)}
    feed["s"] = np.array([1, 1, 1.6, 2.2], np.float32)
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    np.testing.assert_allclose(small_models.plain(model, feed)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_resize_of_opset_11_keeps_its_own_attributes(tmp_path):
    body = 'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, r, s)'
    constants = {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    onnx.save(
        small_models.proto(body, "float[1, 1, 3, 3] x", "float[1, 1, 6, 6] y", constants, opset=11, ir_version=6),
        tmp_path / "m.onnx",
    )
    node = convert(tmp_path / "m.onnx").model.graph.node(-1)
    assert query.attribute(node, "coordinate_transformation_mode") == "align_corners"
    assert [spec.dims for spec in io.outputs(convert(tmp_path / "m.onnx").model)] == [(1, 1, 6, 6)]
