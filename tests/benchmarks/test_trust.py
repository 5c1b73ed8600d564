"""The slower file of the trials computes the same and more; the page counts what was found."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import trust
from benchmarks.trust import Case, Trial
from toolchain.benchmark.stats import Estimate


@pytest.fixture
def net(tmp_path):
    w = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 2), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [w])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_slower_file_computes_the_same_and_more(net, tmp_path):
    slower = trust.slowed(net, 7, tmp_path)
    onnx.checker.check_model(onnx.load(slower), full_check=True)
    x = np.array([[1.0, 2.0]], np.float32)
    (before,) = onnxruntime.InferenceSession(net).run(None, {"x": x})
    after, more = onnxruntime.InferenceSession(slower).run(None, {"x": x})
    assert np.array_equal(before, after)
    assert more.shape == (1, 7)


def found(*slower: tuple[float, bool]) -> list[Trial]:
    return [Trial(value, value - 0.02, value + 0.02, significant, 1.5, 4.0) for value, significant in slower]


def test_the_page_counts_and_the_file_is_read_again(tmp_path):
    case = Case(
        "net fp32", 0.5, 9, Estimate(0.05, 0.04, 0.06),
        same=found((0.0, False), (-0.01, False), (0.03, True)),
        slower=found((0.05, True), (0.01, False), (-0.04, True)),  # the last is called faster: not caught
    )  # fmt: skip
    page = trust.report([case])
    assert "difference* in 2 of 3 trials (66.7%)" in page
    assert "*slower* in 1 of 3 trials (33.3%)" in page
    assert "5.0% [4.0%, 6.0%]" in page
    stored = tmp_path / "trust.json"
    stored.write_text(json.dumps([asdict(case)]))
    assert trust.stored(stored) == [case]
    assert trust.stored(tmp_path / "none.json") == []
