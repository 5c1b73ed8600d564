"""Graphs that a clean-up rule could get wrong: attributes, broadcasting, other readers and the interface.

Each is cleaned up and compared with its source in onnxruntime, on fresh random inputs.
"""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.graph import io, run
from toolchain.optimization.passes import optimize

IMAGE, VECTOR = "float[2, 3, 6, 6] x", "float[2, 4] x"
W = weights(w=(4, 3, 3, 3), u=(4, 3, 3, 3))
NORM = {**weights(g=(4,), e=(4,), m=(4,)), "v": np.array([0.5, 1, 2, 3], np.float32)}
PADS = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}


def num(**numbers):
    return {name: np.float32(number) for name, number in numbers.items()}


def full(number, *shape):
    return {"k": np.full(shape, number, np.float32)}


BN = "y = BatchNormalization(c, g, e, m, v)"
CASES = {
    # batch normalization
    "norm, product is an output": (f"c = Conv(x, w) {BN}", IMAGE, "y, c", W | NORM),
    "norm, product is read twice": (
        "c = Conv(x, w) n = BatchNormalization(c, g, e, m, v) y = Mul(c, n)", IMAGE, "y", W | NORM,
    ),
    "norm, one weight of two products": (
        """c = Conv(x, w) n = BatchNormalization(c, g, e, m, v) d = Conv(x, w) o = BatchNormalization(d, e, g, m, v)
        y = Add(n, o)""", IMAGE, "y", W | NORM,
    ),
    "norm, one bias of two products": (
        "c = Conv(x, w, m) n = BatchNormalization(c, g, e, m, v) d = Conv(x, u, m) y = Add(n, d)", IMAGE, "y", W | NORM,
    ),
    "norm in training mode": (
        "c = Conv(x, w) y, a, b = BatchNormalization<training_mode = 1>(c, g, e, m, v)", IMAGE, "y", W | NORM,
    ),
    "norm of grouped transposed convolution": (
        f"c = ConvTranspose<group = 2>(x, w, e) {BN}", "float[2, 6, 4, 4] x", "y", weights(w=(6, 2, 3, 3)) | NORM,
    ),
    "norm of Gemm with factors": (
        f"c = Gemm<alpha = 0.5, beta = 3.0>(x, w, b) {BN}", VECTOR, "y", weights(w=(4, 4), b=(4,)) | NORM,
    ),
    "norm of Gemm without bias": (f"c = Gemm<alpha = 0.5>(x, w) {BN}", VECTOR, "y", weights(w=(4, 4)) | NORM),
    "norm of Gemm with a number": (f"c = Gemm(x, w, b) {BN}", VECTOR, "y", weights(w=(4, 4)) | num(b=0.7) | NORM),
    "norm of Gemm with a matrix": (f"c = Gemm(x, w, b) {BN}", VECTOR, "y", weights(w=(4, 4), b=(2, 4)) | NORM),
    "norm of Gemm with a column": (f"c = Gemm(x, w, b) {BN}", VECTOR, "y", weights(w=(4, 4), b=(2, 1)) | NORM),
    "norm of transposed Gemm": (
        f"c = Gemm<transA = 1, transB = 1>(x, w, b) {BN}", "float[3, 2] x", "y", weights(w=(4, 3), b=(4,)) | NORM,
    ),
    "norm of a computed weight": (f"c = Conv(x, w) {BN}", f"{IMAGE}, float[4, 3, 3, 3] w", "y", NORM),
    # padding
    "padding by reflection": ('p = Pad<mode = "reflect">(x, pads) y = Conv(p, w)', IMAGE, "y", W | PADS),
    "padding by the border": ('p = Pad<mode = "edge">(x, pads) y = Conv(p, w)', IMAGE, "y", W | PADS),
    "padding with a number": ("p = Pad(x, pads, k) y = Conv(p, w)", IMAGE, "y", W | PADS | num(k=2)),
    "padding with a fed number": ("p = Pad(x, pads, k) y = Conv(p, w)", f"{IMAGE}, float k", "y", W | PADS),
    "padding that crops": (
        "p = Pad(x, pads) y = Conv(p, w)", IMAGE, "y", W | {"pads": np.array([0, 0, -1, 1, 0, 0, 1, -1])},
    ),
    "padding of channels": (
        "p = Pad(x, pads) y = Conv(p, w)", IMAGE, "y",
        weights(w=(4, 5, 3, 3)) | {"pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])},
    ),
    "padding is read twice": ("p = Pad(x, pads) c = Conv(p, w) d = Conv(p, u) y = Add(c, d)", IMAGE, "y", W | PADS),
    "padding is an output": ("p = Pad(x, pads) y = Conv(p, w)", IMAGE, "y, p", W | PADS),
    "padding before auto_pad": (
        'p = Pad(x, pads) y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(p, w)', IMAGE, "y", W | PADS,
    ),
    "padding before unequal pads": (
        "p = Pad(x, pads) y = Conv<pads = [0, 1, 2, 0], strides = [2, 1], dilations = [1, 2]>(p, w)", IMAGE, "y",
        W | {"pads": np.array([0, 0, 2, 1, 0, 0, 0, 3])},
    ),
    # limits
    "limits that miss each other": ("c = Clip(x, a, b) y = Clip(c, l, h)", VECTOR, "y", num(a=-1, b=0.5, l=0.8, h=2)),
    "limits that miss from above": ("c = Clip(x, a, b) y = Clip(c, l, h)", VECTOR, "y", num(a=0.8, b=2, l=-1, h=0.5)),
    "limits in the wrong order": ("c = Clip(x, a, b) y = Clip(c, l, h)", VECTOR, "y", num(a=1, b=-1, l=-2, h=2)),
    "limits left off": ("c = Clip(x, , b) y = Clip(c, l)", VECTOR, "y", num(b=0.5, l=-0.3)),
    "no limits": ("c = Clip(x) y = Clip(c, , h)", VECTOR, "y", num(h=0.5)),
    "limits, the first is read": (
        "c = Clip(x, a, b) d = Clip(c, l, h) y = Sub(c, d)", VECTOR, "y", num(a=-1, b=0.5, l=0, h=2),
    ),
    "limits, the first is an output": (
        "c = Clip(x, a, b) y = Clip(c, l, h)", VECTOR, "y, c", num(a=-1, b=0.5, l=0, h=2),
    ),
    "a fed limit": ("c = Relu(x) y = Clip(c, l, h)", f"{VECTOR}, float l", "y", num(h=0.5)),
    "Relu and negative limits": ("c = Relu(x) y = Clip(c, l, h)", VECTOR, "y", num(l=-2, h=-1)),
    "negative limits and Relu": ("c = Clip(x, l, h) y = Relu(c)", VECTOR, "y", num(l=-2, h=-1)),
    "a lower limit and Relu": ("c = Clip(x, l) y = Relu(c)", VECTOR, "y", num(l=0.5)),
    "Relu and an upper limit": ("c = Relu(x) y = Clip(c, , h)", VECTOR, "y", num(h=0.5)),
    # neutral terms that change the shape, and terms on the other side
    "zero of a higher rank": ("y = Add(x, k)", VECTOR, "y", full(0, 1, 1, 1)),
    "zero that broadcasts": ("y = Add(x, k)", "float[1, 4] x", "y", full(0, 3, 4)),
    "one of a higher rank": ("y = Mul(x, k)", VECTOR, "y", full(1, 1, 1, 1)),
    "one that broadcasts": ("y = Mul(x, k)", "float[1, 4] x", "y", full(1, 3, 1)),
    "one as dividend": ("y = Div(k, x)", VECTOR, "y", num(k=1)),
    "zero as minuend": ("y = Sub(k, x)", VECTOR, "y", num(k=0)),
    "Expand that copies": ("y = Expand(x, s)", "float[1, 4] x", "y", {"s": np.array([3, 1])}),
    "Expand that adds an axis": ("y = Expand(x, s)", VECTOR, "y", {"s": np.array([1, 2, 4])}),
    "Expand of a dynamic axis": ("y = Expand(x, s)", "float[N, 4] x", "y", {"s": np.array([2, 4])}),
    "two turns are not none": (
        "a = Transpose<perm = [2, 0, 1]>(x) y = Transpose<perm = [2, 0, 1]>(a)", "float[2, 3, 4] x", "y", {},
    ),
    "a transpose that only renames": ("y = Transpose<perm = [1, 0]>(x)", "float[1, 4] x", "y", {}),
    # activations
    "hard swish, other divisor": (
        "b = Add(x, k) c = Clip(b, l, h) m = Mul(x, c) y = Div(m, d)", VECTOR, "y", num(k=3, l=0, h=6, d=5),
    ),
    "hard swish, its factor is read": (
        "b = Add(x, k) c = Clip(b, l, h) s = Div(c, h) m = Mul(x, s) y = Add(m, s)", VECTOR, "y", num(k=3, l=0, h=6),
    ),
    "hard sigmoid by its defaults": ("s = HardSigmoid(x) y = Mul(x, s)", VECTOR, "y", {}),
    "a part of Gelu is an output": (
        "d = Div(x, r) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)", VECTOR, "y, m", num(r=2**0.5, o=1, h=0.5),
    ),
    # factors and offsets
    "offset before a padded window": (
        'p = Add(x, k) y = Conv<auto_pad = "SAME_LOWER">(p, w)', IMAGE, "y", W | num(k=2),
    ),
    "offset before a dilated window": ("p = Add(x, k) y = Conv<dilations = [2, 2]>(p, w)", IMAGE, "y", W | num(k=2)),
    "factor before a padded average": (
        "p = Mul(x, k) q = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p) y = Conv(q, w)", IMAGE, "y",
        W | num(k=2),
    ),
    "factor zero": ("p = Mul(x, k) y = Conv(p, w)", IMAGE, "y", W | num(k=0)),
    "factor of a higher rank": ("c = Conv(x, w) y = Mul(c, k)", IMAGE, "y", W | full(2, 1, 1, 1, 1, 1)),
    "Relu behind a Slice backwards": (
        "s = Slice(x, a, b, c, d) y = Relu(s)", VECTOR, "y",
        {"a": np.array([3]), "b": np.array([-9]), "c": np.array([1]), "d": np.array([-1])},
    ),
    # the interface
    "one value twice": ("y = Relu(x) q = Identity(y)", VECTOR, "y, q", {}),
    "equal outputs in another order": ("y = Neg(x) q = Neg(x) s = Add(y, q)", VECTOR, "s, q, y", {}),
    "a chain of outputs": ("p = Identity(x) q = Identity(p) y = Identity(q)", VECTOR, "y, q, p", {}),
    "a constant output": ("y = Relu(x) q = Identity(k)", VECTOR, "y, q", full(2, 3)),
    "an input that nobody reads": ("y = Relu(x)", f"{VECTOR}, float[3] z", "y", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_computes_the_same_and_keeps_its_interface(case):
    body, inputs, outputs, constants = CASES[case]
    source = small_models.model(body, inputs, outputs, constants)
    result = optimize(source).model
    assert [spec.name for spec in io.inputs(result)] == [spec.name for spec in io.inputs(source)]
    for seed in (21, 22):
        feed = run.random_feed(io.inputs(source), np.random.default_rng(seed), dynamic=2)
        expected, found = small_models.plain(source, feed), small_models.plain(result, feed)
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)  # sums of up to 54 terms
