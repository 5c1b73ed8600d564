"""Parts of an output: every element is traced by hand."""

import numpy as np
import pytest
import quantize_by_hand as by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.evaluation.parts import feature_axis, find_parts, operands_of, pieces_of
from toolchain.graph import run


def laid_out(model, shapes):
    value = model.graph.outputs[0]
    return find_parts(model, value, {name: [shape] for name, shape in shapes.items()}, {})


def test_a_computed_output_is_one_piece_with_an_index_for_each_feature():
    model = by_hand.named("y = MatMul(x, w)", "float[3, 4] x", "y", {"w": np.ones((4, 2), np.float32)})
    found = laid_out(model, {"y": (3, 2)})
    assert [(piece.op, piece.axis, piece.count) for piece in found.pieces] == [("MatMul", 1, 2)]
    assert found.labels({"y": (3, 2)}, {}).tolist() == [[1, 2]] * 3


def test_pieces_are_followed_through_everything_that_moves_elements():
    body = """a = Neg(x) b = Exp(x) j = Concat<axis = 1>(a, b) t = Transpose<perm = [0, 2, 1]>(j)
              s = Slice(t, zero, four, last) y = Reshape(s, flat)"""
    constants = {"zero": np.array([1]), "four": np.array([4]), "last": np.array([2]), "flat": np.array([-1])}
    model = by_hand.named(body, "float[1, 2, 5] x", "y", constants)
    found = laid_out(model, {"a": (1, 2, 5), "b": (1, 2, 5)})
    assert [piece.tensor for piece in found.pieces] == ["a", "b"]
    # channels 1 to 3 of (a0, a1, b0, b1), the channel running fastest
    assert found.labels({"a": (1, 2, 5), "b": (1, 2, 5)}, {}).tolist() == [2, 3, 4] * 5


def test_constants_belong_to_no_piece():
    model = by_hand.named("a = Neg(x) y = Concat<axis = 0>(a, c)", "float[2, 2] x", "y", {"c": np.ones((1, 2), "f4")})
    found = laid_out(model, {"a": (2, 2)})
    assert [piece.tensor for piece in found.pieces] == ["a"]
    assert found.labels({"a": (2, 2)}, {}).tolist() == [[1, 2], [1, 2], [0, 0]]


def test_operands_that_are_computed_are_named():
    model = by_hand.named("a = Neg(x) s = Shape(x) y = Reshape(a, s)", "float[2, 2] x", "y", {})
    output = model.graph.outputs[0]
    assert operands_of(output) == ["s"]
    assert [value.name for value in pieces_of(output)] == ["a"]


@pytest.mark.parametrize(
    ("body", "shapes", "axis"),
    [
        ("y = Conv(x, w)", [(1, 4, 9, 9)], 1),
        ("c = Conv(x, w) r = Relu(c) y = Transpose<perm = [0, 2, 3, 1]>(r)", [(1, 9, 9, 4)], 3),
        ("y = Exp(x)", [(1, 84, 8400)], 1),
        ("y = Exp(x)", [(1, 8400, 6)], 2),
        ("y = Exp(x)", [(1, 7, 6), (1, 5, 6)], 2),
        ("y = Exp(x)", [(1, 5), (1, 6)], None),
        ("y = Exp(x)", [(3,)], None),
    ],
)
def test_the_feature_axis_is_that_of_the_product_or_the_smallest_of_fixed_size(body, shapes, axis):
    rank = len(shapes[0])
    dims = ", ".join(["1", "3", "9", "9"][:rank]) if "Conv" in body else ", ".join("N" * rank)
    model = by_hand.named(body, f"float[{dims}] x", "y", {"w": np.ones((4, 3, 1, 1), np.float32)})
    assert feature_axis(model.graph.outputs[0], shapes) == axis


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(1, 3))
def test_every_element_has_the_number_of_its_piece(order, widths, rows):
    """Pieces that hold their own number are joined and turned; labels and values must then agree everywhere."""
    names = [f"p{i}" for i in range(len(widths))]
    made = " ".join(f"s{i} = Slice(x, a{i}, b{i}, one) p{i} = Exp(s{i})" for i in range(len(widths)))
    ends = np.cumsum(widths)
    constants = {"one": np.array([1])}
    for i, (end, width) in enumerate(zip(ends, widths, strict=True)):
        constants |= {f"a{i}": np.array([end - width]), f"b{i}": np.array([end])}
    body = f"{made} j = Concat<axis = 1>({', '.join(names)}) y = Transpose<perm = {list(order)}>(j)"
    total = int(ends[-1])
    model = by_hand.named(body, f"float[{rows}, {total}, 2] x", "y", constants)
    numbers = np.repeat(np.arange(len(widths)), widths)
    x = np.broadcast_to(np.log(numbers + 1.0)[None, :, None], (rows, total, 2)).astype(np.float32)
    (y,) = run.run(model, [{"x": x}])[0]
    shapes = {name: (rows, width, 2) for name, width in zip(names, widths, strict=True)}
    found = laid_out(model, shapes)
    labels = found.labels(shapes, {})
    firsts = np.array([piece.first for piece in found.pieces])
    assert (np.searchsorted(firsts, labels, side="right") - 1 == np.rint(y - 1)).all()
