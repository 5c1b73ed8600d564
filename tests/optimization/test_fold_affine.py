"""Factors and offsets are folded into neighbouring products, and nothing else changes."""

import numpy as np
import pytest
import small_models

from toolchain.graph import edit
from toolchain.graph.check import check
from toolchain.optimization import fold_affine

IMAGE = "float[2, 4, 6, 6] x"
OUT = "float[?, ?, ?, ?] y"


def constants():
    shapes = {
        "w": (4, 4, 3, 3), "p": (4, 4, 1, 1), "d": (4, 1, 3, 3), "b": (4,), "one": (1,), "two": (1,), "many": (4, 1, 1),
        "also": (1, 4, 1, 1), "wide": (1, 1, 1, 6), "five": (1, 1, 1, 1, 1),
    }  # fmt: skip
    return {**small_models.weights(**shapes), "zero": np.zeros(1, np.float32)}


def changed(body, outputs=OUT, constants=constants):
    """Operators left, after asserting that the outputs are what they were."""
    model = small_models.model(body, IMAGE, outputs, constants())
    feed = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    expected = small_models.plain(model, feed)
    fold_affine.fold_affine_after_conv(model)
    fold_affine.fold_affine_before_conv(model)
    edit.remove_unused(model)
    check(model)
    for name, array in small_models.plain(model, feed).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)
    return small_models.ops(model)


FOLDED = {
    "a factor behind": ("c = Conv(x, w, b) y = Mul(c, one)", ["Conv"]),
    "a factor behind, no bias": ("c = Conv(x, w) y = Mul(c, many)", ["Conv"]),
    "an offset a channel behind": ("c = Conv(x, w) y = Add(c, also)", ["Conv"]),
    "a chain behind": ("c = Conv(x, w, b) m = Mul(c, one) a = Add(m, two) n = Mul(a, many) y = Add(n, also)", ["Conv"]),
    "a zero factor behind": ("c = Conv(x, w, b) y = Mul(c, zero)", ["Conv"]),
    "a factor in front of padding": ("m = Mul(x, one) r = Tanh(m) n = Mul(r, two) y = Conv<pads = [1, 1, 1, 1]>(n, w)",
                                     ["Mul", "Tanh", "Conv"]),
    "an offset in front": ("t = Tanh(x) a = Add(t, one) y = Conv(a, p, b)", ["Tanh", "Conv"]),
    "both in front of depthwise": ("t = Tanh(x) m = Mul(t, one) a = Add(m, two) y = Conv<group = 4>(a, d)",
                                   ["Tanh", "Conv"]),
    "both in front of padding": (
        "t = Tanh(x) m = Mul(t, one) a = Add(m, two) y = Conv<group = 4, pads = [1, 1, 1, 1]>(a, d)",
        ["Tanh", "Add", "Conv"],
    ),
    "through a squeeze and excitation": (
        """t = Tanh(x) m = Mul(t, one) a = Add(m, two) g = GlobalAveragePool(a) e = Conv(g, p) s = Sigmoid(e)
        k = Mul(a, s) y = Conv<pads = [1, 1, 1, 1]>(k, w)""",
        ["Tanh", "Add", "GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv"],
    ),
}  # fmt: skip

KEPT = {
    "read twice": ("c = Conv(x, w) y = Mul(c, one) z = Tanh(c)", f"{OUT}, float[?, ?, ?, ?] z"),
    "a factor a column": ("c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Mul(c, wide)", OUT),
    "a constant of more axes": ("c = Conv(x, w) y = Mul(c, five)", "float[?, ?, ?, ?, ?] y"),
    "leaves the graph": ("t = Tanh(x) y = Mul(t, one) z = Conv(y, w)", f"{OUT}, float[?, ?, ?, ?] z"),
    "read by another": ("t = Tanh(x) m = Mul(t, one) y = Conv(m, w) z = Tanh(m)", f"{OUT}, float[?, ?, ?, ?] z"),
    "an offset that is padded around": ("t = Tanh(x) a = Add(t, one) y = Conv<pads = [1, 1, 1, 1]>(a, w)", OUT),
    "an offset padded by name": ('t = Tanh(x) a = Add(t, one) y = Conv<auto_pad = "SAME_UPPER">(a, w)', OUT),
    "a factor of zero in front": ("t = Tanh(x) m = Mul(t, zero) y = Conv(m, w)", OUT),
    "not linear": ("t = Tanh(x) m = Mul(t, one) s = Sigmoid(m) y = Conv(s, w)", OUT),
    "a factor of both sides": ("t = Tanh(x) m = Mul(t, one) k = Mul(m, m) y = Conv(k, w)", OUT),
    "a weight that is computed": ("t = Tanh(x) m = Mul(t, one) v = Relu(w) y = Conv(m, v)", OUT),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case):
    body, left = FOLDED[case]
    assert changed(body) == left


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case):
    body, outputs = KEPT[case]
    before = small_models.ops(small_models.model(body, IMAGE, outputs, constants()))
    assert changed(body, outputs) == before


def test_two_convolutions_that_share_a_weight_are_changed_separately():
    assert changed("c = Conv(x, p) m = Mul(c, one) y = Conv(m, p)") == ["Conv", "Conv"]
