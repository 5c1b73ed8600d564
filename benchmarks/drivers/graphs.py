"""Helpers of the drivers: a model at an opset with scales per channel; samples for onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader

from benchmarks import feeds

if TYPE_CHECKING:
    from toolchain.data.tensors import Feed


def upgraded(model: str) -> onnx.ModelProto:
    """Load a model, and convert it to opset 17 if its opset is below 13."""
    proto = onnx.load(model)
    opset = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return proto if opset >= 13 else onnx.version_converter.convert_version(proto, 17)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """A folder of samples, one in memory at a time."""

    def __init__(self, samples: str) -> None:
        self._feeds: Iterator[Feed] = feeds.read(Path(samples))

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)
