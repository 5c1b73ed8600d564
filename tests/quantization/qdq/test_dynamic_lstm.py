"""Dynamic int8 LSTM: the operator of onnxruntime computes what its definition says, from our weights."""

import numpy as np
import pytest
import quantize_by_hand as by_hand
import small_models

from toolchain.graph import query
from toolchain.quantization.exactness.certificate import certify, clauses
from toolchain.quantization.qdq.fragments import fragments
from toolchain.quantization.qdq.fusion_audit import audit, optimized_graph
from toolchain.quantization.selection import select
from toolchain.quantization.weights import is_overflow_free

STEPS, BATCH, WIDTH, HIDDEN = 7, 2, 6, 5
INPUTS = f"float[{STEPS}, {BATCH}, {WIDTH}] x"
LSTM = f"[lstm] y, h, c = LSTM<hidden_size = {HIDDEN}>(x, w, r, b)"
OUTPUTS = "float[?, ?, ?, ?] y, float[?, ?, ?] h, float[?, ?, ?] c"


def constants(directions=1, hidden=HIDDEN):
    shapes = {
        "w": (directions, 4 * hidden, WIDTH),
        "r": (directions, 4 * hidden, hidden),
        "b": (directions, 8 * hidden),
    }
    return small_models.weights(**shapes)


def build(body=LSTM, inputs=INPUTS, outputs=OUTPUTS, **options):
    return by_hand.named(body, inputs, outputs, constants(**options))


def draw(seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((STEPS, BATCH, WIDTH)).astype(np.float32)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rounded(x):
    """To u8 over the range it spans with 0 in it, by the definition of DynamicQuantizeLinear, and back."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32(high - low) / np.float32(255) or 1
    zero = np.rint(np.clip(-low / scale, 0, 255))
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * float(scale)


def oracle(x, w, r, b, through=lambda x: x):
    """One direction by ONNX's definition in float64; gates in the order i, o, f, c."""
    h = c = np.zeros((x.shape[1], r.shape[1]))
    bias, inputs = b[: len(w)] + b[len(w) :], through(x.astype(np.float64)) @ w.T
    states = []
    for step in inputs:
        i, o, f, g = np.split(step + through(h) @ r.T + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states), h, c


@pytest.mark.parametrize("encoding", ["u8", "s8"])
@pytest.mark.parametrize("fused", [False, True])
def test_it_computes_what_the_plan_says(encoding, fused):
    model, feed = build(), draw()
    plan, written = by_hand.quantized(model, [feed], encoding)
    w, r = (quant.dequantized().astype(np.float64) for quant in plan.recurrent["lstm"])
    found = small_models.plain(written, feed, fused=fused)
    y, h, c = oracle(feed["x"], w, r, constants()["b"][0].astype(np.float64), rounded)
    np.testing.assert_allclose(found["y"][:, 0], y, atol=1e-5)
    np.testing.assert_allclose(found["h"][0], h, atol=1e-5)
    np.testing.assert_allclose(found["c"][0], c, atol=1e-5)
    weights = constants()
    exact = oracle(feed["x"], weights["w"][0], weights["r"][0], weights["b"][0])[0]
    assert 1e-4 < np.abs(y - exact).max() < 0.05


def test_two_directions_have_scales_of_their_own():
    body = f'[lstm] y, h, c = LSTM<hidden_size = {HIDDEN}, direction = "bidirectional">(x, w, r, b)'
    model, feed = build(body, directions=2), draw()
    plan, written = by_hand.quantized(model, [feed])
    found = small_models.plain(written, feed)["y"]
    for way in (0, 1):
        half = slice(way * 4 * HIDDEN, (way + 1) * 4 * HIDDEN)
        w, r = (quant.dequantized()[half].astype(np.float64) for quant in plan.recurrent["lstm"])
        x = feed["x"][::-1] if way else feed["x"]
        y, _, _ = oracle(x, w, r, constants(2)["b"][way].astype(np.float64), rounded)
        np.testing.assert_allclose(found[:, way], y[::-1] if way else y, atol=1e-5)


def test_outputs_and_inputs_that_are_left_off():
    body = f"[start] s = Neg(i) [lstm] , h = LSTM<hidden_size = {HIDDEN}>(x, w, r, , , s)"
    model = build(body, f"{INPUTS}, float[1, {BATCH}, {HIDDEN}] i", "float[?, ?, ?] h")
    feed = {**draw(), "i": np.full((1, BATCH, HIDDEN), 0.5, np.float32)}
    _, written = by_hand.quantized(model, [feed])
    gap = small_models.plain(written, feed)["h"] - small_models.plain(model, feed)["h"]
    assert 0 < np.abs(gap).max() < 0.05


def test_no_adjacent_pair_along_k_can_saturate():
    model = build(hidden=16, body=LSTM.replace(str(HIDDEN), "16"))
    plan, written = by_hand.quantized(model, [draw()])
    assert plan.overflow_free
    [node] = [node for node in written.graph if node.op_type == "DynamicQuantizeLSTM"]
    for index in (1, 2):
        packed = query.constant(node.inputs[index])[0]  # [K, gates · H]
        assert packed.dtype == np.int8
        assert is_overflow_free(packed.T)
    assert not by_hand.planned(model, [draw()], exact=False).overflow_free


def test_it_is_reported_as_dynamic_int8():
    model = build()
    plan = by_hand.planned(model, [draw()])
    [choice] = plan.choices
    assert (choice.int8, choice.precision) == (False, "int8 dynamic")
    assert "quantized at run time" in choice.reason
    [clause] = clauses(certify(model, plan))
    assert clause.startswith("1 LSTM runs in dynamic int8, so ")


def test_it_is_a_fragment_of_its_own_beside_static_ones():
    body = f"{LSTM.replace('[lstm]', '[lstm]')} [s] s = Squeeze(h, axis) [out] o = Gemm(s, v)"
    extra = {"axis": np.array([0]), **small_models.weights(v=(HIDDEN, 4))}
    model = by_hand.named(
        body, INPUTS, "float[?, ?, ?, ?] y, float[?, ?, ?] c, float[?, ?] o", {**constants(), **extra}
    )
    plan = by_hand.planned(model, [draw()])
    assert [part.nodes for part in fragments(model, plan, "u8")] == [("out",), ("lstm",)]
    [static, dynamic] = fragments(model, plan, "u8")
    assert "DynamicQuantizeLSTM" in small_models.ops(dynamic.int8_model)
    assert "LSTM" in small_models.ops(dynamic.float_model)
    assert "DynamicQuantizeLSTM" not in small_models.ops(static.int8_model)


def test_the_audit_is_clean():
    _, written = by_hand.quantized(build(), [draw()])
    found = audit(optimized_graph(written), set())
    assert found.clean
    assert found.operators == {"com.microsoft::DynamicQuantizeLSTM": 1}


COMPUTED = f"float[1, {4 * HIDDEN}, {WIDTH}] v"
REFUSED = {
    "computed weights": (LSTM.replace("w,", "v,"), f"{INPUTS}, {COMPUTED}", {}, "its weights are not constant"),
    "batch first": (LSTM.replace("<", "<layout = 1, "), INPUTS, {}, "batch axis comes first"),
    "by its name": (LSTM, INPUTS, {"keep_float": ["lstm"]}, "the recipe keeps it float"),
    "by its operator": (LSTM, INPUTS, {"keep_float": ["LSTM"]}, "the recipe keeps it float"),
    "measured slower": (LSTM, INPUTS, {"reasons": {"lstm": "measured slower"}}, "measured slower"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stays_float_says_why(case):
    body, inputs, options, reason = REFUSED[case]
    [choice] = select(build(body, inputs), **options).choices
    assert choice.precision == "float"
    assert reason in choice.reason
