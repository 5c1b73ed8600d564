"""Linear layers as Gemm: the operators that are left, their results, and the cases where it does not apply."""

import numpy as np
import pytest
import small_models
from small_models import ops, weights

from toolchain.optimization import linear_to_gemm

CONSTANTS = {**weights(w=(4, 6), v=(6, 4), b=(6,), c=(4,), s=(6,), g=(4,), m=(1, 5, 6)), "two": np.float32([2.0])}
X = "float[1, 5, 4] x"


def changed(body, inputs=X, outputs="float[?, ?, ?] y"):
    names = {name: array for name, array in CONSTANTS.items() if f"{name})" in body or f"{name}," in body}
    model = small_models.model(body, inputs, outputs, names)
    after = model.clone()
    linear_to_gemm.fold_scale_into_linear(after)
    linear_to_gemm.linear_to_gemm(after)
    linear_to_gemm.merge_reshapes(after)
    linear_to_gemm.edit.remove_unused(after)
    return model, after


def assert_same(before, after, shape=(1, 5, 4)):
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    expected, found = small_models.reference(before, feed), small_models.plain(after, feed)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


LAYER = "h = MatMul(x, w) y = Add(h, b)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (LAYER, ["Reshape", "Gemm", "Reshape"]),
        ("h = MatMul(x, w) i = Add(h, b) y = Mul(i, s)", ["Reshape", "Gemm", "Reshape"]),
        ("h = MatMul(x, w) y = Mul(h, s)", ["MatMul"]),
        ("h = MatMul(x, w) i = Add(h, b) r = Relu(i) k = MatMul(r, v) y = Add(k, c)",
         ["Reshape", "Gemm", "Relu", "Gemm", "Reshape"]),
        ("h = MatMul(x, w) i = Add(h, b) k = MatMul(i, v) l = Add(k, c) a = Add(l, x) y = LayerNormalization(a, g, c)",
         ["Reshape", "Gemm", "Gemm", "Add", "LayerNormalization", "Reshape"]),
        ("h = MatMul(x, w) i = Add(h, b) d = Div(i, two) y = Tanh(d)", ["Reshape", "Gemm", "Div", "Tanh", "Reshape"]),
        ("h = MatMul(x, w) y = Add(h, m)", ["MatMul", "Add"]),
        ("h = MatMul(x, w) i = Add(h, b) y = Softmax<axis = 1>(i)", ["Reshape", "Gemm", "Reshape", "Softmax"]),
        ("h = MatMul(x, w) i = Add(h, b) y = Mul(i, m)", ["Reshape", "Gemm", "Reshape", "Mul"]),
    ],
)  # fmt: skip
def test_what_is_left_and_what_it_computes(body, left):
    before, after = changed(body)
    assert ops(after) == left
    assert_same(before, after)


def test_one_dynamic_axis_stays_dynamic_and_two_are_not_changed():
    before, after = changed(LAYER, "float[N, 5, 4] x")
    assert "Gemm" in ops(after)
    assert_same(before, after, (3, 5, 4))
    before, after = changed(LAYER, "float[N, T, 4] x")
    assert ops(after) == ["MatMul", "Add"]


def test_three_readers_share_one_matrix():
    body = "h = MatMul(x, w) y = Add(h, b) k = MatMul(x, w) z = Add(k, s)"
    before, after = changed(body, outputs="float[?, ?, ?] y, float[?, ?, ?] z")
    assert sorted(ops(after)) == ["Gemm", "Gemm", "Reshape", "Reshape", "Reshape"]
    assert_same(before, after)


def test_products_read_before_the_sum_or_outputs_are_not_changed():
    before, after = changed(LAYER, outputs="float[?, ?, ?] h, float[?, ?, ?] y")
    assert ops(after) == ["MatMul", "Add"]
    assert_same(before, after)
