"""PP-OCR's text orientation classifier (MobileNetV3-small 0.35 with squeeze-excite): upright or upside down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.models import store, text
from toolchain.data.tensors import Feed

NAME = "ppocr_cls"
KIND = "MobileNetV3 with squeeze-excite"
PACKAGE = "rapidocr-onnxruntime 1.4.4"
LICENSE = "Apache-2.0"
METRIC = "accuracy (600 lines)"
REQUIRES = ("pypi/rapidocr-onnxruntime", *text.REQUIRES)


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")


def _samples(n: int, part: int) -> Path:
    def sample(index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng([10, part, index])
        image = text.line(rng, text.phrase(rng, 9), part, noise=(8, 40), blur=1.4)  # long clean lines are too easy
        turned = index % 2
        return text.padded(image.transpose(Image.Transpose.ROTATE_180) if turned else image, 192), turned

    return store.samples(f"{NAME}-{part}-{n}", lambda: store.stack(map(sample, range(n))))


def calibration(n: int) -> Iterator[Feed]:
    return ({"x": line[None]} for line in store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    test = _samples(600, 0)
    return store.accuracy((run({"x": line[None]})[0] for line in store.rows(test)), store.field(test))
