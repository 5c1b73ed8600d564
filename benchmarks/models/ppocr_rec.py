"""PP-OCRv4's mobile text recogniser (convolutions, attention, CTC over 6623 characters)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks.models import store, text
from toolchain.data.tensors import Array, Feed

NAME = "ppocr_rec"
KIND = "CNN with attention, OCR"
PACKAGE = "rapidocr-onnxruntime 1.4.4"
LICENSE = "Apache-2.0"
METRIC = "1 − character error rate (400 lines)"
REQUIRES = ("pypi/rapidocr-onnxruntime", *text.REQUIRES)

WIDTH = 320


def onnx_path() -> Path:
    return store.path(REQUIRES[0], "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")


@functools.cache
def _characters() -> list[str]:
    """Output class → character; class 0 is CTC's blank."""
    metadata = {entry.key: entry.value for entry in onnx.load(onnx_path()).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def _samples(n: int, part: int) -> Path:
    def pairs() -> Iterator[tuple[np.ndarray, str]]:
        for index in itertools.count():
            rng = np.random.default_rng([20, part, index])
            words = text.phrase(rng, 22)
            image = text.line(rng, words, part)
            if image.width / image.height < 1.15 * WIDTH / 48:  # longer lines would be squeezed too much
                yield text.padded(image, WIDTH), words

    return store.samples(f"{NAME}-{part}-{n}", lambda: store.stack(itertools.islice(pairs(), n)))


def calibration(n: int) -> Iterator[Feed]:
    return ({"x": line[None]} for line in store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _read(probabilities: Array) -> str:
    """Greedy CTC: the best class of every step, repetitions joined, blanks dropped."""
    return "".join(_characters()[best] for best, _ in itertools.groupby(probabilities.argmax(1)))


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def evaluate(run: store.Run) -> float:
    test = _samples(400, 0)
    truths = [str(truth) for truth in store.field(test)]
    wrong = sum(
        _edits(_read(run({"x": line[None]})[0][0]), truth) for line, truth in zip(store.rows(test), truths, strict=True)
    )
    return max(0.0, 1 - wrong / sum(map(len, truths)))
