"""Axes of weights, against what the operators compute."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import model, weights

from toolchain.graph import run
from toolchain.ops.weights import WeightAxes, operand_axes, product_weights, weight_axes

PRODUCTS = {
    "Conv": ("y = Conv(x, w)", "1, 6, 5, 5", "1, 4, 3, 3", (4, 6, 3, 3), WeightAxes(0, 1)),
    "Conv, groups": ("y = Conv<group = 2>(x, w)", "1, 6, 5, 5", "1, 4, 3, 3", (4, 3, 3, 3), WeightAxes(0, 1, 2)),
    "ConvTranspose": ("y = ConvTranspose(x, w)", "1, 6, 3, 3", "1, 4, 5, 5", (6, 4, 3, 3), WeightAxes(1, 0)),
    "Gemm": ("y = Gemm(x, w)", "2, 6", "2, 4", (6, 4), WeightAxes(1, 0)),
    "Gemm, transposed": ("y = Gemm<transB = 1>(x, w)", "2, 6", "2, 4", (4, 6), WeightAxes(0, 1)),
    "MatMul": ("y = MatMul(x, w)", "2, 6", "2, 4", (6, 4), WeightAxes(1, 0)),
    "MatMul, stacked": ("y = MatMul(x, w)", "3, 2, 6", "3, 2, 4", (3, 6, 4), WeightAxes(2, 1)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_axes_are_those_the_operator_uses(name):
    """A zero along one place of `out` silences one output channel; zeros at an input channel make it irrelevant."""
    body, x, y, shape, axes = PRODUCTS[name]
    net = model(body, f"float[{x}] x", f"float[{y}] y", weights(w=shape))
    (weight,) = product_weights(net)
    assert weight.axes == weight_axes(net.graph[0]) == axes
    channel = 1 if "Conv" in name else -1
    feed = np.random.default_rng(0).standard_normal([int(n) for n in x.split(",")]).astype(np.float32)

    def output(axis, fed):
        array = weight.array.copy()
        np.moveaxis(array, axis, 0)[1] = 0
        changed = model(body, f"float[{x}] x", f"float[{y}] y", {"w": array})
        return np.moveaxis(run.run(changed, [{"x": fed}])[0][0], channel, 0)

    silenced = output(axes.out, feed)
    assert not silenced[1].any()
    assert silenced[0].any()
    other = np.moveaxis(feed.copy(), channel, 0)
    other[1 :: weight.array.shape[axes.in_]] += 1  # that place of every group
    np.testing.assert_array_equal(output(axes.in_, feed), output(axes.in_, np.moveaxis(other, 0, channel)))


def test_both_operands_of_a_matrix_product():
    net = model("y = Gemm<transA = 1, transB = 1>(a, b)", "float[6, 2] a, float[4, 6] b", "float[2, 4] y")
    assert operand_axes(net.graph[0], 0, 2) == (1, 0)
    assert operand_axes(net.graph[0], 1, 2) == (0, 1)


def test_weights_once_for_every_reader_and_constants_only():
    net = model(
        "a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, a)", "float[3, 3] x", "float[3, 3] y", weights(w=(3, 3))
    )
    assert [(w.node.op_type, w.value.name) for w in product_weights(net)] == [("MatMul", "w"), ("MatMul", "w")]


def test_other_operators_have_no_weight():
    with pytest.raises(ValueError, match="Relu has no weight"):
        weight_axes(model("y = Relu(x)", "float[2] x", "float[2] y").graph[0])
