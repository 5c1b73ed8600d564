"""Axis-aligned boxes (left, top, right, bottom; pixels): overlap, F1 and mAP of detections, and connected regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

OVERLAPS = np.linspace(0.5, 0.95, 10)  # of a box and the true one, as COCO counts it: mAP@0.5:0.95
RECALLS = np.linspace(0, 1, 101)


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of [n, 4]; NaN for a box that is NaN, 0 for two without an area."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = overlap.clip(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros(len(boxes)), where=union != 0)
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


def distinct(boxes: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
    """Non-maximum suppression: the positions of the boxes [n, 4] that overlap no better one by `most`, best first."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not kept or iou(boxes[index], boxes[kept]).max() < most:
            kept.append(int(index))
    return kept


def detections(boxes: np.ndarray, scores: np.ndarray, least: float, most: float, candidates: int = 1000) -> np.ndarray:
    """Read a detector's cells as detections, [found, 6]: kind, score, box; doubles of a kind are left out.

    Args:
        boxes: [cells, 4].
        scores: [cells, kinds].
        least: score that counts.
        most: overlap of two boxes of the same kind.
        candidates: the best of each kind that are examined; only a broken model has more.
    """
    found = [np.empty((0, 6))]
    for kind, column in enumerate(scores.T):
        best = np.argsort(-column, kind="stable")[: min(candidates, np.count_nonzero(column > least))]
        chosen = best[distinct(boxes[best], column[best], most)]
        found.append(np.column_stack([np.full(len(chosen), kind), column[chosen], boxes[chosen]]))
    return np.concatenate(found)


def mean_average_precision(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], overlaps: Sequence[float] | np.ndarray = OVERLAPS
) -> float:
    """COCO's mAP: the mean over kinds and overlaps of the area under the curve of precision over recall.

    Detections are taken from the highest score down. One is right if it overlaps a true box of its kind in its image
    that no detection before it took. Precision at a recall is the best one at this or a higher recall, read at 101
    points. Kinds without a true box do not count.

    Args:
        pairs: for each image its detections [n, 6] (kind, score, box), and its true boxes [m, 5] (kind, box) with NaN
            in unused rows.
        overlaps: the least intersections over union that count as right.
    """
    images = [(found[np.argsort(-found[:, 1], kind="stable")], truth) for found, truth in pairs]
    kinds = np.unique(np.concatenate([truth[:, 0] for _, truth in images]))
    precisions = []
    for kind in kinds[~np.isnan(kinds)]:
        own = [(found[found[:, 0] == kind], truth[truth[:, 0] == kind, 1:]) for found, truth in images]
        there = sum(len(truth) for _, truth in own)
        scores = np.concatenate([found[:, 1] for found, _ in own])
        ratios = [[iou(box, truth) for box in found[:, 2:]] for found, truth in own]
        for overlap in overlaps:
            right = np.concatenate([_right(image, overlap) for image in ratios])
            precisions.append(_average_precision(scores, right, there))
    return float(np.mean(precisions))


def _right(ratios: Sequence[np.ndarray], overlap: float) -> np.ndarray:
    """True for an image's right detections, given each one's overlaps with the true boxes, best score first."""
    right, taken = np.zeros(len(ratios), bool), set[int]()
    for index, own in enumerate(ratios):
        free = [place for place in np.argsort(-own, kind="stable") if place not in taken]
        if free and own[free[0]] >= overlap:
            right[index] = True
            taken.add(int(free[0]))
    return right


def _average_precision(scores: np.ndarray, right: np.ndarray, there: int) -> float:
    """Mean of the precisions at 101 recalls. there: the number of true boxes."""
    count = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = count / np.arange(1, len(count) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(count / there, RECALLS)].mean())


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
