"""PP-OCRv4's mobile text detector (DBNet, arXiv 1911.08947): a segmentation, read as boxes around lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.models import boxes, images, store, text
from toolchain.data.tensors import Array, Feed

NAME = "ppocr_det"
KIND = "segmentation with a feature pyramid, OCR"
PACKAGE = "rapidocr-onnxruntime 1.4.4"
LICENSE = "Apache-2.0"
METRIC = "F1 at IoU 0.5 (100 pages)"
REQUIRES = ("pypi/rapidocr-onnxruntime", *text.REQUIRES)

SIDE = 480
MOST = 9  # lines of a page
MARGIN = 2  # pixels that an annotator leaves around a line
INK, SURE, UNCLIP = 0.3, 0.5, 1.6  # DBNet's thresholds of a pixel and a box; growth of a box over area / perimeter


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")


def _page(rng: np.random.Generator, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 9 lines of text below each other, uint8 [3, 480, 480] BGR; their boxes [9, 4], NaN if unused."""
    ground, ink = text.colours(rng)
    page = Image.new("RGB", (SIDE, SIDE), ground)
    if rng.random() < 0.5:
        page = Image.blend(page, images.wallpaper(rng, SIDE, SIDE, part), rng.uniform(0.3, 0.8))
    draw, places = ImageDraw.Draw(page), np.full((MOST, 4), np.nan)
    y, used = int(rng.integers(10, 40)), 0
    while y < SIDE - 50 and used < MOST:
        face, words = text.font(rng, 10, 30), text.phrase(rng, 18)
        left, top, right, bottom = map(int, face.getbbox(words))
        width, height = right - left, bottom - top
        if width < SIDE - 20 and y + height < SIDE - 5:
            x = int(rng.integers(8, SIDE - 8 - width))
            draw.text((x - left, y - top), words, ink, face)
            places[used] = x - MARGIN, y - MARGIN, x + width + MARGIN, y + height + MARGIN
            used += 1
        y += height + int(rng.integers(14, 50))
    page = text.degrade(page, rng, noise=(5, 60), blur=1.6)
    return np.asarray(page)[:, :, ::-1].transpose(2, 0, 1), places


def _samples(n: int, part: int) -> Path:
    def make() -> store.Arrays:
        return store.stack(_page(np.random.default_rng([30, part, index]), part) for index in range(n))

    return store.samples(f"{NAME}-{part}-{n}", make)


def _feed(pixels: Array) -> Feed:
    return {"x": pixels[None].astype(np.float32) / 127.5 - 1}


def calibration(n: int) -> Iterator[Feed]:
    return map(_feed, store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _boxes(probability: np.ndarray) -> list[np.ndarray]:
    """Read [480, 480] probabilities of text as boxes: connected regions that are likely enough, grown back.

    DBNet learns shrunken lines; growing by area / perimeter undoes that.
    """
    grown = []
    for rows, starts, stops in boxes.blobs(_thickened(probability > INK)):
        left, top, right, bottom = starts.min(), rows.min(), stops.max(), rows.max() + 1
        inside = [probability[row, start:stop] for row, start, stop in zip(rows, starts, stops, strict=True)]
        width, height = right - left, bottom - top
        if min(width, height) >= 3 and np.concatenate(inside).mean() >= SURE:
            grow = UNCLIP * width * height / (2 * (width + height))
            grown.append(np.array([left - grow, top - grow, right + grow, bottom + grow]))
    return grown


def _thickened(mask: np.ndarray) -> np.ndarray:
    """Extend every pixel to the left and upwards, which joins the letters of thin lines."""
    wide = mask.copy()
    wide[:, :-1] |= mask[:, 1:]
    wide[:-1] |= wide[1:].copy()
    return wide


def evaluate(run: store.Run) -> float:
    test = _samples(100, 0)
    truths = zip(store.rows(test), store.field(test), strict=True)
    return boxes.f1((_boxes(run(_feed(pixels))[0][0, 0]), truth) for pixels, truth in truths)
