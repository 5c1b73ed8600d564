"""Scores: agreement with the source model, and the user's own metric."""

import numpy as np
import pytest

from toolchain.core.errors import InputError
from toolchain.evaluation.score import agreement_score, evaluate_score


class Answers:
    """A stand-in for a session: returns the n-th list of outputs for the n-th feed."""

    def __init__(self, *outputs):
        self.outputs = outputs

    def run(self, names, feed):
        assert names is None
        return [np.asarray(array) for array in self.outputs[feed["n"]]]


def agreement(expected, got):
    feeds = [{"n": n} for n in range(len(expected))]
    score = agreement_score(Answers(*expected), Answers(*got), feeds)
    assert score.kind == "agreement"
    assert score.samples == len(feeds)
    return score.value


def test_class_scores_agree_where_the_largest_stands_in_one_place():
    expected = [[[[0.1, 0.9, 0.0]]], [[[0.5, 0.2, 0.3]]], [[[1.0, 2.0, 3.0]]], [[[5.0, 4.0, 4.9]]]]
    got = [[[[0.2, 0.3, 0.1]]], [[[0.5, 0.6, 0.3]]], [[[1.0, 2.0, 9.0]]], [[[5.0, 4.0, 4.9]]]]
    assert agreement(expected, got) == 0.75


def test_every_row_of_a_batch_counts():
    expected = [[[[1, 0], [0, 1], [1, 0], [0, 1]]]]
    got = [[[[1, 0], [0, 1], [0, 1], [1, 0]]]]
    assert agreement(expected, got) == 0.5


def test_other_outputs_agree_by_their_angle():
    a, b = np.array([[[3.0, 4.0]]]), np.array([[[4.0, 3.0]]])
    assert agreement([[a], [a]], [[b], [a]]) == pytest.approx((24 / 25 + 1) / 2)
    assert agreement([[a]], [[-a]]) == pytest.approx(-1)
    assert agreement([[a]], [[2 * a]]) == pytest.approx(1)


def test_one_column_is_no_class_score():
    assert agreement([[[[1.0], [2.0]]]], [[[[1.0], [-2.0]]]]) == pytest.approx(-3 / 5)


def test_the_worst_output_counts():
    good, bad = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert agreement([[good, good]], [[good, bad]]) == 0.0


@pytest.mark.parametrize(
    ("expected", "got", "value"),
    [
        (np.zeros(3), np.zeros(3), 1.0),
        (np.zeros(3), np.ones(3), 0.0),
        (np.zeros((0, 5)), np.zeros((0, 5)), 1.0),
        (np.zeros((0, 5)), np.zeros((2, 5)), 0.0),
        (np.ones((3, 5)), np.ones((2, 5)), 0.0),
        (np.ones((1, 4, 5)), np.ones((1, 3, 5)), 0.0),
        (np.array([1, 2, 3]), np.array([1, 2, 3]), 1.0),
        (np.array([1.0, -np.inf]), np.array([1.0, -np.inf]), 1.0),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), 0.0),
    ],
    ids=["zeros", "zeros and ones", "nothing found", "found too much", "fewer rows", "another length", "integers",
         "infinities", "nan"],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_edges_have_a_value(expected, got, value):
    assert agreement([[expected]], [[got]]) == pytest.approx(value)


# --- the user's own figure ---


def evaluated(function):
    return evaluate_score(function, Answers([np.array([7.0])]), "metrics:accuracy")


def test_the_user_gets_a_function_from_feed_to_outputs():
    score = evaluated(lambda run: float(run({"n": 0})[0][0]))
    assert score.kind == "evaluate"
    assert score.value == 7.0


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(3), np.float64(-2)])
def test_numbers_of_any_kind_are_taken(value):
    found = evaluated(lambda run: value).value
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), np.float32("nan"), np.ones(2), [1.0]])
def test_other_values_are_refused(value):
    with pytest.raises(InputError, match=r"metrics:accuracy: returned .*; return one finite number, higher is better"):
        evaluated(lambda run: value)


def test_the_users_own_error_is_named():
    def broken(run):
        raise ZeroDivisionError("no labels")

    with pytest.raises(InputError, match="metrics:accuracy") as caught:
        evaluated(broken)
    assert "no labels" in str(caught.value)
    assert "\n" not in str(caught.value)
