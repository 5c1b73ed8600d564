"""Decisions, counted by hand."""

import numpy as np
import pytest

from toolchain.evaluation import decisions
from toolchain.evaluation.floor import index_floors_db, lost_decision
from toolchain.evaluation.parts import OutputParts, Piece
from toolchain.formats.verdict import Decision


def of(op, expected, got, *others, axis=1):
    """Compare one output of shape [places, features] whose piece is computed by `op`."""
    count = expected.shape[1]
    piece = Piece("t", op, "node", axis, 1, count)
    layout = OutputParts("t", (piece, *others), None, ())
    labels = np.broadcast_to(np.arange(1, count + 1), expected.shape).ravel()
    found = decisions.of_pieces(layout, [labels], {1: "y", 99: "z"}, [expected], [got])
    return {decision.kind: decision for decision in found}


def test_classes_are_compared_by_the_best_and_the_five_best():
    scores = np.eye(8)
    other = scores.copy()
    other[0, :6] = [0.5, 0.9, 0.8, 0.7, 0.6, 0.55]  # class 0 is the sixth
    other[1, 2] = 2.0  # class 1 is the second
    found = of("Softmax", scores, other)
    assert found["top-1"].kept == 6 / 8
    assert found["top-5"].kept == 7 / 8


def test_positives_are_counted_at_the_threshold_where_most_change():
    a = np.linspace(0, 1, 100)[:, None]
    b = np.where(a > 0.6, a, np.minimum(a, 0.2))
    # above 0.25, float has 75 positives and the other model the 40 above 0.6
    found = of("Sigmoid", a, b)
    assert found["positives"].kept == pytest.approx(2 * 40 / (75 + 40))
    assert found["order"].kept > 0.9


def test_scores_that_became_constant_have_no_order():
    a = np.linspace(0, 1, 100)[:, None]
    assert of("Sigmoid", a, np.zeros_like(a))["order"].kept == 0


def test_embeddings_are_compared_by_their_neighbours():
    a = np.eye(4)[[0, 0, 1, 1]] + 1e-3 * np.arange(16).reshape(4, 4)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    found = of("Div", a, a[[0, 2, 1, 3]])
    assert found["nearest neighbour"].kept == 0
    assert found["cosine"].kept == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("corners", [True, False])
def test_boxes_overlap_as_corners_and_as_centres(corners):
    """Boxes of 2 by 2, the second moved by 1 along one axis: 2 in common of 6."""
    start = np.arange(40.0).reshape(20, 2) * 10
    a = np.concatenate([start, start + 2 if corners else np.full((20, 2), 2.0)], axis=1)
    moved = a + np.array([1, 0, 1, 0] if corners else [1, 0, 0, 0])
    scores = Piece("s", "Sigmoid", "scores", 1, 99, 1)
    assert of("Mul", a, moved, scores)["boxes"].kept == pytest.approx(2 / 6)


def test_chosen_rows_are_compared_in_any_order():
    rows = np.random.default_rng(0).standard_normal((1, 20, 5))
    (same,) = decisions.of_selected("y", [rows], [rows[:, ::-1]])
    (other,) = decisions.of_selected("y", [rows], [rows + 10])
    (fewer,) = decisions.of_selected("y", [rows], [rows[:, :10]])
    assert (same.kind, same.kept) == ("set", 1)
    assert other.kept == 0
    assert fewer.kept == pytest.approx(0.75)


def test_integers_and_texts_are_compared_exactly():
    (classes,) = decisions.of_selected("y", [np.array([1]), np.array([2])], [np.array([1]), np.array([3])])
    (texts,) = decisions.of_selected("y", [np.array(["cat", "dog"])], [np.array(["cat", "cow"])])
    assert (classes.kind, classes.kept) == ("exact", 0.5)
    assert (texts.kind, texts.kept) == ("text", 0)


def test_sequences_merge_repetitions():
    a = np.eye(3)[[0, 0, 1, 2, 2]]
    b = np.eye(3)[[0, 1, 1, 1, 2]]
    piece = Piece("t", "Softmax", "node", 1, 1, 3)
    layout = OutputParts("t", (piece,), None, ())
    labels = [np.tile([1, 2, 3], 5)] * 2
    found = {d.kind: d for d in decisions.of_pieces(layout, labels, {1: "y"}, [a, a], [b, np.eye(3)[[0, 2, 2, 2, 1]]])}
    assert found["sequence"].kept == 0.5


def test_few_decisions_are_not_held_against_a_model():
    def change(kept, count):
        return lost_decision(Decision(part="y", kind="top-1", kept=kept, count=count))

    assert change(0.0, 5) is None
    assert change(0.3, 16) is None  # two standard deviations are a quarter
    assert "30% of 1600 decisions (top-1) are kept" in change(0.3, 1600)
    assert lost_decision(Decision(part="y", kind="order", kept=0.0, count=10**6)) is None


def test_the_floor_of_an_index_falls_with_the_number_of_samples():
    many, few, one = (index_floors_db(np.full(5, n))[0] for n in (1e9, 16, 1))
    assert many == pytest.approx(10, abs=0.01)
    assert one < 0 < few < many
