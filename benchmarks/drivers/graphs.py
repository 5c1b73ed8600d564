"""What the drivers share: a model at an opset that knows scales per channel; samples as onnxruntime reads them."""

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
    """The file's model, at opset 17 if it was below 13."""
    proto = onnx.load(model)
    opset = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return proto if opset >= 13 else onnx.version_converter.convert_version(proto, 17)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """A folder of samples, one in memory at a time."""

    def __init__(self, samples: str) -> None:
        self._feeds: Iterator[Feed] = feeds.read(Path(samples))

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)
