"""Models that run on no random input are compared with their source on the user's samples."""

from __future__ import annotations

import numpy as np
import pytest
import small_models

from toolchain.api.request import check_request, open_request
from toolchain.conversion.source import NOT_COMPARED
from toolchain.core.errors import GateError
from toolchain.core.progress import silent
from toolchain.graph import edit, io, query
from toolchain.optimization import passes

SIZE = 12


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a model of an old opset whose second input is a shape: random numbers below 2 are none that it takes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 6)).astype(np.float32), "b": np.ones(6, np.float32), "c": np.array([3, 4])}
    body = "g = Gemm(x, w, b) r = Relu(g) q = Reshape(r, s) t = Neg(q) y = Reshape(t, c)"
    built = small_models.model(body, "float[2, 6] x, int64[1] s", "y", weights, opset=13)
    io.save(built, "net.onnx")
    samples = [{"x": rng.standard_normal((2, 6)).astype(np.float32), "s": np.array([SIZE])} for _ in range(8)]
    return lambda: open_request(check_request("net.onnx", samples, targets=["host"], progress=silent), None)


def test_it_is_compared_on_a_sample(opened):
    prepared = opened().prepared
    assert prepared.converted.parity.samples == 1
    assert prepared.converted.parity.max_rel_error < 1e-6
    assert prepared.optimized.max_relative_error < 1e-6
    assert NOT_COMPARED not in prepared.notes
    assert any("was upgraded" in note for note in prepared.notes)


def test_a_clean_up_that_breaks_it_is_found_on_the_sample(opened, monkeypatch):
    def double_the_bias(model):
        for node in model.graph:
            if node.op_type == "Gemm":
                names = edit.Names(model.graph)
                edit.set_constant(model.graph, names, node, 2, "doubled", 2 * query.constant(node.inputs[2]))

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, double_the_bias))
    with pytest.raises(GateError, match="clean-up pass `double_the_bias` changed it by"):
        opened()
