"""What a model weighs: on disk, in a zip, and on the wire."""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from toolchain.graph import io

ZIP_LEVEL = 6
"""Of zlib, as app stores and wheels use."""


@dataclass(frozen=True)
class Sizes:
    """Bytes. zipped: by zlib, level 6. wire: by LZMA (xz, preset 9), the strongest in Python's standard library."""

    raw: int
    zipped: int
    wire: int

    def __str__(self) -> str:
        return f"{self.raw / 1e6:.2f} MB, zipped {self.zipped / 1e6:.2f} MB, by xz {self.wire / 1e6:.2f} MB"


def sizes(model: ir.Model | str | Path) -> Sizes:
    """Of a model as one file with its weights inside, or of a file as it is (external data beside it not counted).

    Raises:
        ModelError: a model that is damaged. OSError: a file that cannot be read.
    """
    data = io.to_bytes(model) if isinstance(model, ir.Model) else Path(model).read_bytes()
    return Sizes(len(data), len(zlib.compress(data, ZIP_LEVEL)), len(lzma.compress(data, preset=9)))
