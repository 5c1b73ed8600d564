"""ddddocr's detector (YOLOX, SiLU, one class): finds the characters to click in a captcha."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.models import boxes, images, store, text
from toolchain.data.tensors import Array, Feed

NAME = "ddddocr_yolox"
KIND = "YOLOX detector, SiLU"
PACKAGE = "ddddocr 1.6.1"
LICENSE = "MIT"
METRIC = "F1 at IoU 0.5 (100 scenes)"
REQUIRES = ("pypi/ddddocr", *text.REQUIRES)

SIDE = 416
SCENE = (373, 416)  # width, height; the rest of the square is grey
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
MOST = 6  # letters in a scene
CANDIDATES = 200  # boxes that are examined; only a broken model has more


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "ddddocr/common_det.onnx")


def _letter(rng: np.random.Generator) -> Image.Image:
    """One outlined letter, rotated by up to 35 degrees, cropped."""
    ink = text.rgb(rng.integers(0, 256, 3))
    edge = (255, 255, 255) if sum(ink) < 380 else (0, 0, 0)
    letter, face = LETTERS[rng.integers(len(LETTERS))], text.font(rng, 46, 76)
    layer = Image.new("RGBA", (140, 140))
    ImageDraw.Draw(layer).text((70, 70), letter, ink, face, "mm", stroke_width=2, stroke_fill=edge)
    layer = layer.rotate(rng.uniform(-35, 35), Image.Resampling.BICUBIC)
    return layer.crop(layer.getbbox())


def _scene(rng: np.random.Generator, part: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph with 3 to 6 letters apart from each other, uint8 [3, 416, 416] BGR; boxes [6, 4], NaN if unused."""
    scene = images.wallpaper(rng, *SCENE, part)
    places = np.full((MOST, 4), np.nan)
    for index in range(int(rng.integers(3, MOST + 1))):
        letter = _letter(rng)
        for _ in range(30):  # tries to find a free place
            left, top = (int(rng.integers(most + 1)) for most in np.subtract(scene.size, letter.size))
            box = np.array([left, top, left + letter.width, top + letter.height])
            if not np.any(boxes.iou(box, places[:index]) > 0):
                scene.paste(letter, (left, top), letter)
                places[index] = box
                break
    scene = text.degrade(scene, rng, noise=(1, 8), blur=0.9)
    square = np.full((SIDE, SIDE, 3), 114, np.uint8)
    square[: scene.height, : scene.width] = np.asarray(scene)[:, :, ::-1]
    return square.transpose(2, 0, 1), places


def _samples(n: int, part: int) -> Path:
    def make() -> store.Arrays:
        return store.stack(_scene(np.random.default_rng([80, part, index]), part) for index in range(n))

    return store.samples(f"{NAME}-{part}-{n}", make)


def _feed(pixels: Array) -> Feed:
    return {"images": pixels[None].astype(np.float32)}


def calibration(n: int) -> Iterator[Feed]:
    return map(_feed, store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _boxes(out: np.ndarray) -> list[np.ndarray]:
    """Read YOLOX's [3549, 6] (x, y, log w, log h, objectness, class): boxes above a score of 0.25, without doubles."""
    cells = [np.stack(np.meshgrid(*[np.arange(SIDE // step)] * 2), 2).reshape(-1, 2) for step in (8, 16, 32)]
    steps = np.repeat((8, 16, 32), [len(grid) for grid in cells])[:, None]
    centres, sizes = (out[:, :2] + np.concatenate(cells)) * steps, np.exp(out[:, 2:4]) * steps
    candidates, scores = np.hstack([centres - sizes / 2, centres + sizes / 2]), out[:, 4] * out[:, 5]
    best = np.argsort(-scores)[: min(CANDIDATES, np.count_nonzero(scores > 0.25))]
    return list(candidates[best[boxes.distinct(candidates[best], scores[best], 0.45)]])


def evaluate(run: store.Run) -> float:
    test = _samples(100, 0)
    truths = zip(store.rows(test), store.field(test), strict=True)
    return boxes.f1((_boxes(run(_feed(pixels))[0][0]), truth) for pixels, truth in truths)
