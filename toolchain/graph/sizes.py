"""Bytes of a model: as a file, in a zip, and compressed for a download."""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from toolchain.graph import io

ZIP_LEVEL = 6
"""Compression level of zlib in app stores and wheels."""


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes.

    Attributes:
        raw: of the file.
        zipped: compressed by zlib at level 6.
        wire: compressed by LZMA (xz, preset 9), the strongest method in Python's library.
    """

    raw: int
    zipped: int
    wire: int

    def __str__(self) -> str:
        return f"{self.raw / 1e6:.2f} MB, zipped {self.zipped / 1e6:.2f} MB, by xz {self.wire / 1e6:.2f} MB"


def zipped_bytes(data: bytes) -> int:
    """Size in bytes after compression by zlib, as in app stores and wheels."""
    return len(zlib.compress(data, ZIP_LEVEL))


def sizes(model: ir.Model | str | Path) -> Sizes:
    """Measure a model as one file with its weights inside, or a file as it is, without external data beside it.

    Raises:
        ModelError: the model is damaged.
        OSError: the file cannot be read.
    """
    data = io.to_bytes(model) if isinstance(model, ir.Model) else Path(model).read_bytes()
    return Sizes(len(data), zipped_bytes(data), len(lzma.compress(data, preset=9)))
