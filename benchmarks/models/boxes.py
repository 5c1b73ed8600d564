"""Axis-aligned boxes (left, top, right, bottom; pixels): overlap, F1 of detections, and connected regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of [n, 4]; NaN for a box that is NaN."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = overlap.clip(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    ratio: np.ndarray = shared / union
    return ratio


def f1(pairs: Iterable[tuple[Sequence[np.ndarray], np.ndarray]]) -> float:
    """F1 score at an overlap of 0.5.

    A detected box is right if it covers a true box that no detected box before it covers.

    Args:
        pairs: for each image its detected boxes, and its true boxes [n, 4] with NaN in unused rows.
    """
    right = detected = there = 0
    for boxes, truth in pairs:
        free = np.array(truth)
        there += int(np.count_nonzero(~np.isnan(free[:, 0])))
        detected += len(boxes)
        for box in boxes:
            match = np.nan_to_num(iou(box, free))
            if match.max() >= 0.5:
                right += 1
                free[match.argmax()] = np.nan
    return 2 * right / max(1, detected + there)


def blobs(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The connected regions of a bool image (8-connectivity), each as its runs (rows, starts, stops) from the top.

    Runs of neighbouring rows that touch are united (union-find).
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    root = list(range(len(rows)))

    def find(run: int) -> int:
        while root[run] != run:
            root[run] = root[root[run]]
            run = root[run]
        return run

    first = np.searchsorted(rows, np.arange(len(mask) + 1))
    for row in range(1, len(mask)):
        above, below = first[row - 1], first[row]
        while above < first[row] and below < first[row + 1]:
            if starts[above] <= stops[below] and starts[below] <= stops[above]:
                root[find(below)] = find(above)
            if stops[above] < stops[below]:
                above += 1
            else:
                below += 1
    label = np.array([find(run) for run in range(len(rows))], int)
    return [(rows[label == one], starts[label == one], stops[label == one]) for one in np.unique(label)]
