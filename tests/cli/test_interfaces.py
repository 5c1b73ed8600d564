"""The inputs and outputs of a file stay as they are, name by name and in order, whatever is done to it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import proto, weights

X, Y = "float[2, 4] x", "float[2, 4] y"
W = weights(w=(4, 4))
STATE = "float[1, 4] s"
Z = "float[2, 4] z"

CASES = {
    "an output is an input": ("y = MatMul(x, w)", f"{X}, {STATE}", f"{Y}, {STATE}", W),
    "an input passed through Identity": ("y = MatMul(x, w) t = Identity(s)", f"{X}, {STATE}", f"{Y}, float[1, 4] t", W),
    "an output listed twice": ("y = MatMul(x, w)", X, f"{Y}, {Y}", W),
    "two outputs of one value": ("a = MatMul(x, w) y = Identity(a) z = Identity(a)", X, f"{Z}, {Y}", W),
    "two outputs computed alike": ("y = MatMul(x, w) z = MatMul(x, w)", X, f"{Z}, {Y}", W),
    "an output of another output": ("y = MatMul(x, w) z = Dropout(y)", X, f"{Z}, {Y}", W),
    "an input without effect": ("y = MatMul(x, w) z = Cast<to = 1>(x)", X, f"{Z}, {Y}", W),
    "a constant computed": ("y = MatMul(x, w) z = Add(w, w)", X, f"float[4, 4] z, {Y}", W),
    "a weight": ("y = MatMul(x, w)", X, f"float[4, 4] w, {Y}", W),
    "inputs and outputs only": ("y = Relu(x)", X, f"{X}, {Y}, {X}, {Y}", {}),
}


def run(path, feed):
    engine = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ports = [[port.name for port in side] for side in (engine.get_inputs(), engine.get_outputs())]
    return ports, engine.run(None, {name: feed[name] for name in ports[0]})


@pytest.mark.parametrize("case", CASES)
def test_inputs_and_outputs_keep_names_order_and_values(toolchain, workplace, case):
    onnx.save(proto(*CASES[case]), "m.onnx")
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((16, 2, 4)), "s": rng.standard_normal((16, 1, 4))}
    feed = {name: array[0].astype(np.float32) for name, array in arrays.items()}
    ports, expected = run("m.onnx", feed)
    np.savez("s.npz", **{name: arrays[name].astype(np.float32) for name in ports[0]})
    assert toolchain("optimize m.onnx -o o.onnx").code == 0
    assert toolchain("quantize m.onnx -c s.npz -o q.onnx --recipe fast.toml").code == 0
    for path, tolerance in (("o.onnx", 1e-6), ("q.onnx", 0.05)):  # int8: a few steps of 1/255 of the range
        found, got = run(path, feed)
        assert found == ports
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a, atol=tolerance * np.abs(a).max(), err_msg=path)
