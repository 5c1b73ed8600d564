"""What every route into the toolchain hands over."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.conversion.parity import Reference
from toolchain.formats.manifest import Source


@dataclass(frozen=True)
class Imported:
    """An ONNX model fresh from its source.

    reference: runs the source itself, for parity; None where the model *is* the source.
    sizes: tried for dynamic axes other than the batch, until the source takes one.
    ids: random integer inputs are drawn below this.
    """

    model: ir.Model
    source: Source
    notes: tuple[str, ...]
    reference: Reference | None
    sizes: tuple[int, ...] = (64, 224, 32, 16, 320, 8, 1)
    ids: int = 2
