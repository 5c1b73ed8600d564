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
