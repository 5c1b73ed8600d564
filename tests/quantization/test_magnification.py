"""Products in front of a logarithm, root or division stay float; those of ordinary networks do not."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.magnification import magnified_products

SOUND = "float[1, 1, 64] x"
ROW = "float[3, 8] x"
IMAGE = "float[1, 4, 6, 6] x"
CONSTANTS = {
    **weights(w_w=(6, 1, 8), w_v=(6, 1, 8), w_m=(6, 5), w_a=(8, 8), w_b=(8, 8), w_k=(4, 4, 1, 1), w_h=(4, 4, 1, 1)),
    "two": np.float32(2), "three": np.float32(3), "half": np.float32(0.5), "tiny": np.float32(1e-9),
    "one": np.float32(1), "six": np.float32(6), "axes": np.array([-1]), "zero": np.array([0]), "first": np.array([1]),
    "ones": np.ones(8, np.float32), "to_pairs": np.array([3, 4, 2]),
}  # fmt: skip
POWER = "[re] r = Conv(x, w_w) [im] i = Conv(x, w_v) rr = Pow(r, two) ii = Mul(i, i) p = Add(rr, ii)"

MAGNIFIED = {
    # name: (body, inputs, the products that must stay float)
    "a log-mel spectrogram": (
        f"{POWER} t = Transpose<perm = [0, 2, 1]>(p) [mel] m = MatMul(t, w_m) f = Clip(m, tiny) y = Log(f)", SOUND,
        {"re", "im", "mel"},
    ),
    "a magnitude spectrogram": (f"{POWER} y = Sqrt(p)", SOUND, {"re", "im"}),
    "a compressed spectrogram": (f"{POWER} q = Add(p, tiny) y = Pow(q, half)", SOUND, {"re", "im"}),
    "one convolution for both parts": (
        "[both] c = MatMul(x, w_a) s = Reshape(c, to_pairs) q = ReduceL2<axes = [-1], keepdims = 0>(s) y = Log(q)", ROW,
        {"both"},
    ),
    "filters behind each other": (
        "[low] l = Conv(x, w_l) [band] b = Conv(l, w_w) q = Abs(b) s = Add(q, tiny) y = Log(s)", SOUND, {"low", "band"},
    ),
    "a logarithm of energies": (
        "[g] g = MatMul(x, w_a) q = Mul(g, g) e = ReduceMean<axes = [-1]>(q) y = Log(e)", ROW, {"g"},
    ),
    "a computed divisor": ("[g] g = MatMul(x, w_a) [d] d = MatMul(x, w_b) y = Div(g, d)", ROW, {"d"}),
    "a reciprocal": ("[d] d = MatMul(x, w_b) q = Abs(d) e = Add(q, tiny) y = Reciprocal(e)", ROW, {"d"}),
    "a normalized spectrogram": (
        f"{POWER} y = InstanceNormalization(p, i6, i6)", SOUND, {"re", "im"},
    ),
    "peaks": (
        """[g] g = Conv(x, w_k) s = Sigmoid(g) p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(s)
        y = Equal(s, p)""", IMAGE, {"g"},
    ),
    "the last product of a network": (
        "[g] g = MatMul(x, w_a) r = Relu(g) [last] h = MatMul(r, w_b) q = Relu(h) e = Add(q, tiny) y = Log(e)", ROW,
        {"last"},
    ),
}  # fmt: skip

ORDINARY = {
    "log of a softmax": ("g = MatMul(x, w_a) s = Softmax(g) y = Log(s)", ROW),
    "log of a softmax, written out": (
        "g = MatMul(x, w_a) e = Exp(g) t = ReduceSum<keepdims = 1>(e, axes) l = Log(t) y = Sub(g, l)", ROW,
    ),
    "softmax, written out": ("g = MatMul(x, w_a) e = Exp(g) t = ReduceSum<keepdims = 1>(e, axes) y = Div(e, t)", ROW),
    "swish, written out": ("g = MatMul(x, w_a) n = Neg(g) e = Exp(n) d = Add(e, one) y = Div(g, d)", ROW),
    "softsign": ("g = MatMul(x, w_a) q = Abs(g) d = Add(q, one) y = Div(g, d)", ROW),
    "softplus, written out": ("g = MatMul(x, w_a) e = Exp(g) d = Add(e, one) y = Log(d)", ROW),
    "LayerNormalization, written out": (
        """g = MatMul(x, w_a) m = ReduceMean<axes = [-1]>(g) d = Sub(g, m) s = Pow(d, two)
        v = ReduceMean<axes = [-1]>(s) e = Add(v, tiny) q = Sqrt(e) n = Div(d, q) y = Mul(n, ones)""", ROW,
    ),
    "length of an embedding": (
        "g = MatMul(x, w_a) l = ReduceL2<axes = [-1]>(g) e = Clip(l, tiny) y = Div(g, e)", ROW,
    ),
    "deviation over positions": (
        """g = Conv(x, w_w) r = Relu(g) m = ReduceMean<axes = [-1]>(r) d = Sub(r, m) s = Mul(d, d)
        v = ReduceMean<axes = [-1]>(s) q = Sqrt(v) y = Concat<axis = 1>(m, q)""", SOUND,
    ),
    "hard swish, written out": (
        "g = MatMul(x, w_a) p = Add(g, three) c = Clip(p, zero_f, six) m = Mul(g, c) y = Div(m, six)", ROW,
    ),
    "gelu by its polynomial": ("g = MatMul(x, w_a) p = Pow(g, three) s = Add(g, p) t = Tanh(s) y = Mul(t, g)", ROW),
    "a scaled score": ("g = MatMul(x, w_a) y = Div(g, six)", ROW),
    "squeeze and excite": (
        "g = Conv(x, w_k) p = GlobalAveragePool(g) e = Conv(p, w_h) s = Sigmoid(e) y = Mul(g, s)", IMAGE,
    ),
    "style": ("g = Conv(x, w_k) y = InstanceNormalization(g, i4, i4)", IMAGE),
    "a generalized mean": (
        "g = Conv(x, w_k) r = Relu(g) q = Pow(r, three) p = GlobalAveragePool(q) y = Pow(p, half)", IMAGE,
    ),
    "inverse of a sigmoid": ("g = MatMul(x, w_a) s = Sigmoid(g) o = Sub(one, s) d = Div(s, o) y = Log(d)", ROW),
}  # fmt: skip


def model(body, inputs):
    constants = {
        **CONSTANTS, **weights(w_l=(1, 1, 3)), "i6": np.ones(6, np.float32), "i4": np.ones(4, np.float32),
        "zero_f": np.float32(0),
    }  # fmt: skip
    used = {n: c for n, c in constants.items() if any(f"{b}{n}{e}" in body for b in " (" for e in ",)")}
    return small_models.model(body, inputs, "y", used)


@pytest.mark.parametrize("name", MAGNIFIED)
def test_products_whose_small_values_count_stay_float(name):
    body, inputs, expected = MAGNIFIED[name]
    found = magnified_products(model(body, inputs))
    products = {n.name or n.outputs[0].name for n in model(body, inputs).graph if n.op_type in ("Conv", "MatMul")}
    assert set(found) & products == expected
    assert all(reason.startswith("feeds a ") for reason in found.values())


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_are_not_touched(name):
    assert magnified_products(model(*ORDINARY[name])) == {}


def test_quiet_sounds_stay_in_a_log_spectrogram():
    """Calibrated on loud sounds, a quiet one must not become a constant."""
    rng = np.random.default_rng(0)
    t = np.arange(32)
    bins = np.arange(1, 9)[:, None]
    waves = {"w_w": np.cos(2 * np.pi * bins * t / 32), "w_v": np.sin(2 * np.pi * bins * t / 32)}
    constants = {name: array[:, None].astype(np.float32) for name, array in waves.items()}
    body = f"{POWER} c = Clip(p, tiny) y = Log(c)"
    constants |= {"two": np.float32(2), "tiny": np.float32(1e-9)}
    source = optimize(small_models.model(body, "float[1, 1, 256] x", "y", constants), verify=False).model
    feeds = [{"x": (1000 * rng.standard_normal((1, 1, 256))).astype(np.float32)} for _ in range(8)]
    recipe = Recipe(quantize=Quantize(measure=False))
    written = quantize_model(source, open_data(feeds, io.inputs(source)), recipe).write("u8")
    quiet = {"x": rng.standard_normal((1, 1, 256)).astype(np.float32)}
    expected, found = (small_models.plain(each, quiet)["y"] for each in (source, written))
    assert expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=1e-3)
