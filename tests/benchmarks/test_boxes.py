"""Boxes: what hangs together in an image, and how found boxes are counted. Oracles: a flood fill, cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.models import boxes


def flooded(mask):
    """The sets of pixels that hang together, corners included."""
    left, parts = {tuple(map(int, place)) for place in np.argwhere(mask)}, []
    while left:
        part, reached = set(), [left.pop()]
        while reached:
            y, x = reached.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            reached += near
        parts.append(frozenset(part))
    return set(parts)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.35, 0.5, 0.8, 1.0])
def test_blobs_are_what_a_flood_reaches(density):
    mask = np.random.default_rng(3).random((23, 31)) < density
    parts = [
        frozenset((int(row), x) for row, start, stop in zip(*runs, strict=True) for x in range(int(start), int(stop)))
        for runs in boxes.blobs(mask)
    ]
    assert len(parts) == len(set(parts))
    assert set(parts) == flooded(mask)


def test_arms_that_meet_late_are_one():
    mask = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0]], bool)
    assert len(boxes.blobs(mask)) == 1


def test_f1_counts_a_box_once():
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [np.nan] * 4])
    first, second = truth[0], truth[1]
    assert boxes.f1([([first, second], truth)]) == 1
    assert boxes.f1([([first, first], truth)]) == pytest.approx(0.5)
    assert boxes.f1([([first + 6], truth)]) == 0  # overlaps by 16 of 184
    assert boxes.f1([([], truth), ([first], np.full((1, 4), np.nan))]) == 0


def test_iou_by_hand():
    assert boxes.iou(np.array([0, 0, 4, 4]), np.array([[2, 0, 6, 4], [5, 5, 6, 6], [0, 0, 4, 4]])) == pytest.approx(
        [8 / 24, 0, 1]
    )


def test_boxes_without_an_area_overlap_nothing():
    point = np.array([3.0, 3, 3, 3])
    np.testing.assert_array_equal(boxes.iou(point, np.array([point, [0, 0, 9, 9], [np.nan] * 4])), [0, 0, np.nan])


def test_doubles_are_worse_boxes_of_the_same_place():
    places = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [1, 0, 11, 10], [0, 0, 10, 5]])  # 90 / 110 and 50 / 100 of [0]
    scores = np.array([0.8, 0.5, 0.9, 0.1])
    assert boxes.distinct(places, scores, 0.7) == [2, 1, 3]
    assert boxes.distinct(places, scores, 0.4) == [2, 1]
    assert boxes.distinct(places, scores, 0.9) == [2, 0, 1, 3]
    assert boxes.distinct(places[:0], scores[:0], 0.5) == []


def test_detections_are_read_kind_by_kind():
    places = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    scores = np.array([[0.9, 0.2], [0.6, 0.3], [0.05, 0.04]])
    rows = [[0, 0.9, 0, 0, 10, 10], [1, 0.3, 0, 0, 10, 9]]
    np.testing.assert_array_equal(boxes.detections(places, scores, 0.1, 0.5), rows)
    assert boxes.detections(places, scores, 0.95, 0.5).shape == (0, 6)
    assert len(boxes.detections(places, scores, 0.01, 0.5, candidates=1)) == 2


BOX, OTHER = (0, 0, 10, 10), (20, 0, 30, 10)
TRUTH = np.array([[3, *BOX], [3, *OTHER], [np.nan] * 5])


def detections(*rows):
    """From (score, box), all of kind 3."""
    return np.array([[3, score, *box] for score, box in rows]).reshape(-1, 6)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (detections((0.9, BOX), (0.2, OTHER)), TRUTH, 1.0),
        (detections((0.2, OTHER), (0.9, BOX)), TRUTH, 1.0),  # in any order
        (detections(), TRUTH, 0.0),
        # one of two boxes: precision 1 at the 51 recalls from 0 to 0.5, 0 at the other 50
        (detections((0.9, BOX)), TRUTH, 51 / 101),
        # right, wrong, right: precision 1 at the 51 recalls from 0 to 0.5, 2 / 3 at the other 50
        (detections((0.9, BOX), (0.8, (50, 0, 60, 10)), (0.7, OTHER)), TRUTH, (51 + 50 * 2 / 3) / 101),
        (detections((0.9, BOX), (0.8, BOX), (0.7, OTHER)), TRUTH, (51 + 50 * 2 / 3) / 101),  # a double is wrong
        # wrong, right: precision 1 / 2 at the 51 recalls from 0 to 0.5
        (detections((0.9, (50, 0, 60, 10)), (0.8, BOX)), TRUTH, 51 / 2 / 101),
        # two boxes that cover both true ones: the second takes the one that is left
        (detections((0.9, BOX), (0.8, BOX)), np.array([[3, *BOX], [3, 0, 0, 10, 8]]), 1.0),
        # kind 5 is not found; kind 4 has no true box and does not count
        (np.array([[3, 0.9, *BOX], [4, 0.9, *OTHER]]), np.array([[3, *BOX], [5, *OTHER]]), 0.5),
    ],
)
def test_map_by_hand(found, truth, expected):
    assert boxes.mean_average_precision([(found, truth)], [0.5]) == pytest.approx(expected)


def test_map_orders_the_detections_of_all_images():
    """Right at 0.9, wrong at 0.8, right at 0.7, in three images."""
    images = [
        (detections((0.7, BOX)), TRUTH[:1]),
        (detections((0.8, OTHER)), TRUTH[2:]),
        (detections((0.9, BOX)), TRUTH[:1]),
    ]
    assert boxes.mean_average_precision(images, [0.5]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_map_is_the_mean_over_ten_overlaps():
    found = detections((0.9, (0, 0, 10, 7.2)))  # overlaps by 0.72: right at 0.5, 0.55, 0.6, 0.65 and 0.7
    assert boxes.mean_average_precision([(found, TRUTH[:1])]) == pytest.approx(0.5)
    np.testing.assert_allclose(boxes.OVERLAPS, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
