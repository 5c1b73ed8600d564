"""waifu2x's residual network: photographs at twice their size, compared with the originals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.models import images, store
from toolchain.data.tensors import Array, Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "waifu2x_resnet"
KIND = "super-resolution CNN with squeeze-excite"
PACKAGE = "waifu2x 2024.0.1"
LICENSE = "MIT"
METRIC = "PSNR, in units of 100 dB (100 photographs)"
REQUIRES = ("pypi/waifu2x", "deb/mate-backgrounds")

CONTEXT = 13  # pixels on each side of the input that only help
SIDE = 96 + 2 * CONTEXT


def module() -> nets.UpResNet10:
    from benchmarks.models import nets

    weights = "waifu2x/models/upresnet10/anime_style_scale_rgb.npz"
    return nets.loaded(nets.UpResNet10(), store.path(REQUIRES[0], weights))


def onnx_path() -> Path:
    return store.exported(NAME, module, {"image": np.zeros((2, 3, SIDE, SIDE), np.float32)}, "larger")


def _photograph(rng: np.random.Generator, part: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph at half its size, uint8 [122, 122, 3], and the middle of the original, uint8 [192, 192, 3]."""
    original = images.wallpaper(rng, 2 * SIDE, 2 * SIDE, part)
    small = original.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small), np.asarray(original)[2 * CONTEXT : -2 * CONTEXT, 2 * CONTEXT : -2 * CONTEXT]


def _samples(n: int, part: int) -> Path:
    def make() -> store.Arrays:
        return store.stack(_photograph(np.random.default_rng([100, part, index]), part) for index in range(n))

    return store.samples(f"{NAME}-{part}-{n}", make)


def _feed(pixels: Array) -> Feed:
    return {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255}


def calibration(n: int) -> Iterator[Feed]:
    return map(_feed, store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _psnr(image: np.ndarray, original: np.ndarray) -> float:
    """Peak signal to noise in dB, of a float image [1, 3, h, w] in 0..1 and a uint8 one [h, w, 3]."""
    error = image[0].clip(0, 1) - original.transpose(2, 0, 1) / 255
    return float(-10 * np.log10(np.mean(error**2)))


def evaluate(run: store.Run) -> float:
    """Mean PSNR over 100, so that a perfect enlargement by a good model stays within 0 to 1."""
    test = _samples(100, 0)
    pairs = zip(store.rows(test), store.field(test), strict=True)
    return float(np.mean([_psnr(run(_feed(small))[0], original) for small, original in pairs])) / 100
