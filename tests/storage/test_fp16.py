"""Float16 storage: half the bytes, the rounding that is promised, nothing left of it at run time."""

import numpy as np
import onnxruntime as ort
import pytest
import small_models

from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Recipe
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.qdq.fusion_audit import optimized_graph
from toolchain.storage.fp16 import MAX_RELATIVE_ERROR, halve_weights

SIZE = 64
LINE = f"float[2, {SIZE}] x"
FEED = {"x": np.random.default_rng(1).standard_normal((2, SIZE)).astype(np.float32)}


def build(weight, body="y = MatMul(x, w)"):
    return small_models.model(body, LINE, "float[?, ?] y", {"w": weight})


def weight(scale=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal((SIZE, SIZE)) * scale).astype(np.float32)


def test_it_computes_with_the_rounded_weight():
    halved = halve_weights(build(weight()))
    expected = FEED["x"].astype(np.float64) @ weight().astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(small_models.plain(halved.model, FEED)["y"], expected, rtol=1e-5, atol=1e-5)
    assert (halved.tensors, halved.saved_bytes, halved.kept) == (1, SIZE * SIZE * 2, ())
    assert 1e-5 < halved.error < 2**-11
    assert "1 float weight is stored as float16" in str(halved)


def test_the_file_is_half_and_the_source_as_it_was():
    source = build(weight())
    halved = halve_weights(source)
    assert io.weight_bytes(halved.model) == io.weight_bytes(source) // 2
    assert small_models.ops(source) == ["MatMul"]


def test_the_runtime_folds_it_when_loading():
    graph = optimized_graph(halve_weights(build(weight())).model)
    assert [node.op_type for node in graph.node] == ["MatMul"]


def test_a_weight_of_two_readers_is_stored_once():
    halved = halve_weights(build(weight(), "a = MatMul(x, w) y = MatMul(a, w)"))
    assert small_models.ops(halved.model) == ["Cast", "MatMul", "MatMul"]


REFUSED = {
    "too large": weight(1e6),
    "one number too large": np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) == 7, np.float32(7e4), weight()),
    "too small": weight(1e-7),
    "not finite": np.where(weight() > 2, np.float32(np.nan), weight()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_float16_cannot_hold_stays(case):
    halved = halve_weights(build(REFUSED[case]))
    assert (halved.tensors, halved.kept) == (0, ("w",))
    assert small_models.ops(halved.model) == ["MatMul"]
    assert "no float weight" in str(halved)


def test_the_error_bound_is_that_of_the_tensor():
    """Numbers of 1e-6 lie on a grid of 6e-8: 2 % off, which large neighbours make up for."""
    assert halve_weights(build(weight(1e-6))).kept == ("w",)
    mixed = np.where(np.arange(SIZE) % 2, weight(), weight(1e-6))
    assert halve_weights(build(mixed)).error < MAX_RELATIVE_ERROR


def test_small_constants_and_scales_stay():
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, k)"
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "k": weight()[0]}
    model = small_models.model(body, LINE, "float[?, ?] y", constants)
    assert halve_weights(model).tensors == 0
    rows = np.linspace(0.1, 1, 2000, dtype=np.float32)
    body = "q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z)"
    model = small_models.model(body, "float[2, 2000] x", "float[?, ?] y", {"s": rows, "z": np.zeros(2000, np.uint8)})
    assert halve_weights(model).tensors == 0


def test_a_quantized_model_halves_what_stays_float():
    body = "c = Conv(x, w) t = Tanh(c) y = ConvTranspose(t, v)"
    constants = small_models.weights(w=(16, 4, 3, 3), v=(16, 8, 3, 3))
    source = optimize(
        small_models.model(body, "float[1, 4, 8, 8] x", "float[?, ?, ?, ?] y", constants), verify=False
    ).model
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 4, 8, 8)).astype(np.float32)} for i in range(2)]
    made = {}
    for fp16 in (False, True):
        recipe = Recipe.parse({"quantize": {"measure": False, "fp16_weights": fp16}})
        made[fp16] = quantize_model(source, open_data(feeds, io.inputs(source)), recipe)
    saved = io.weight_bytes(made[False].write("u8")) - io.weight_bytes(made[True].write("u8"))
    assert saved == constants["v"].nbytes // 2
    assert made[True].plan.products.keys() == made[False].plan.products.keys() == {made[True].plan.choices[0].node}
    assert any("1 float weight is stored as float16" in note for note in made[True].notes)
    assert made[False].notes == ()
    a, b = (ort.InferenceSession(io.to_bytes(made[f].write("u8"))).run(None, feeds[0])[0] for f in (False, True))
    assert 0 < np.abs(a - b).max() < 1e-3 * np.abs(a).max()
