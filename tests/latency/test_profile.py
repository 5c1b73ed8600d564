"""Times of single operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.errors import ModelError
from toolchain.latency.profile import profile


def test_profile_names_operators_and_domains(tmp_path):
    w = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Sqrt", ["h"], ["s"]),
            helper.make_node("Gelu", ["s"], ["y"], name="curve", domain="com.microsoft"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 256])],
        [numpy_helper.from_array(w, "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    times = profile(path, {"x": np.ones((64, 256), np.float32)}, runs=5)
    assert [(t.op, t.domain) for t in times] == [("MatMul", ""), ("Sqrt", ""), ("Gelu", "com.microsoft")]
    assert (times[0].node, times[2].node) == ("product", "curve")
    assert all(t.median_us >= 0 for t in times)
    assert times[0].median_us > 0
    with pytest.raises(ModelError, match="cannot run it"):
        profile(path, {"x": np.ones((1, 1), np.float32)})
    assert list(Path.cwd().glob("*.json")) == []
