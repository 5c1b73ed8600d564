"""The oracle says what is true of answers whose loss is known."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.oracle import Answers, parts_left


def answers(arrays):
    return Answers((), (("y", "tensor(float)"),), (arrays,))


def left(old, new, **options):
    """Parts by name."""
    found = parts_left(answers(old), answers(new), options.get("pieces", {}), options.get("channels", {}))
    return {part.name: part.value for part in found}


@pytest.fixture
def boxes_and_scores():
    """Twenty samples [1, 6, 50]: four channels of pixels around 300, two of chances around 0.02."""
    rng = np.random.default_rng(0)
    return [
        np.concatenate([300 + 80 * rng.standard_normal((1, 4, 50)), 0.05 * rng.random((1, 2, 50)) ** 2], 1)
        for _ in range(20)
    ]


def test_constant_answer_has_0_db_in_its_part_alone(boxes_and_scores):
    dead = [np.concatenate([a[:, :4], np.full((1, 2, 50), 0.05 / 3)], 1) for a in boxes_and_scores]
    found = left(boxes_and_scores, dead, pieces={"y": [(1, 0, 4), (1, 4, 6)]})
    assert found["y"] > 50
    assert found["y[axis 1, 0:4]"] == pytest.approx(120)
    assert found["y[axis 1, 4:6]"] == pytest.approx(0, abs=0.1)
    assert found["y[axis 1, 5]"] == pytest.approx(0, abs=0.1)


def test_offset_is_not_counted_as_signal(boxes_and_scores):
    rng = np.random.default_rng(1)
    noisy = [a + 8 * rng.standard_normal(a.shape) for a in boxes_and_scores]
    assert left(boxes_and_scores, noisy)["y[axis 1, 0]"] == pytest.approx(20, abs=0.5)  # 80 against 8


def test_constant_channel_is_left_out(boxes_and_scores):
    still = [np.concatenate([np.full((1, 1, 50), 7.0), a], 1) for a in boxes_and_scores]
    found = left(still, [a + 1 for a in still])
    assert "y[axis 1, 0]" not in found
    assert "y[axis 1, 1]" in found


def test_values_that_are_no_numbers_are_an_error(boxes_and_scores):
    broken = [a * np.nan for a in boxes_and_scores]
    assert left(boxes_and_scores, broken)["y"] < -100


def test_integers_are_compared_one_by_one():
    assert left([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 9])])["y"] == 0.75


def test_rows_whose_number_depends_on_the_data_are_a_set():
    old, new = np.array([[0, 1], [0, 2], [0, 3]]), np.array([[0, 3], [0, 1]])
    assert left([old], [new])["y"] == pytest.approx(0.8)  # F1 of 2 rows in 3 and in 2
