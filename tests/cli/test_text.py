"""Models that give or take text go through every command."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from command import samples
from onnx import helper
from small_models import proto, weights

CLASSES = np.array([f"class {i}" for i in range(8)], object)


def gives_text():
    """The name of the best class, and the scores."""
    body = """c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) s = Gemm(f, v)
        k = ArgMax<axis = 1, keepdims = 0>(s) label = Gather(names, k)"""
    constants = {**weights(w=(8, 3, 3, 3), v=(8, 8)), "names": CLASSES}
    return proto(body, "float[1, 3, 16, 16] x", "string[1] label, float[1, 8] s", constants), {"x": samples(20)}


def takes_text():
    """An embedding chosen by a word, added to numbers."""
    body = "m = Gather(e, i) a = Add(x, m) r = MatMul(a, w) q = Relu(r) y = MatMul(q, v)"
    constants = weights(e=(4, 16), w=(16, 16), v=(16, 8))
    model = proto(body, "string[n] t, float[n, 16] x", "float[n, 8] y", constants)
    encoder = helper.make_node("LabelEncoder", ["t"], ["i"], domain="ai.onnx.ml", keys_strings=["a", "b", "c"])
    encoder.attribute.append(helper.make_attribute("values_int64s", [0, 1, 2]))
    encoder.attribute.append(helper.make_attribute("default_int64", 3))
    model.graph.node.insert(0, encoder)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return model, {"t": np.array(list("abcd") * 5)[:, None], "x": samples(20, (1, 16))}


@pytest.mark.parametrize("make", [gives_text, takes_text])
def test_text(toolchain, workplace, make):
    model, arrays = make()
    onnx.save(model, "text.onnx")
    np.savez("text.npz", **arrays)
    for command in (
        "inspect text.onnx",
        "optimize text.onnx -o o.onnx",
        "quantize text.onnx -c text.npz --recipe fast.toml -o q.onnx",
        "export text.onnx -c text.npz --recipe fast.toml -t host -o ex",
        "verify ex/host",
    ):
        done = toolchain(command)
        assert done.code == 0, (command, done.err)
    feed = {"x": arrays["x"][:1]} if make is gives_text else {name: array[0] for name, array in arrays.items()}
    expected, cleaned = (
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, feed)
        for name in ("text.onnx", "o.onnx")
    )
    for a, b in zip(expected, cleaned, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b) if a.dtype.hasobject else np.allclose(a, b, atol=1e-5)


def test_numbers_where_the_model_takes_text(toolchain, workplace):
    model, arrays = takes_text()
    onnx.save(model, "text.onnx")
    np.savez("text.npz", x=arrays["x"], t=np.zeros((20, 1), np.float32))
    done = toolchain("quantize text.onnx -c text.npz --recipe fast.toml -o q.onnx")
    assert done.code == 2
    assert "input 't': is float32 where the model takes text; give an array of strings" in done.sentence
