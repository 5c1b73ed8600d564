"""The result of reading a source, before it is checked: the same for torch modules, ``.pt2`` and ``.onnx`` files."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.conversion.parity import Reference
from toolchain.formats.manifest import Source


@dataclass(frozen=True)
class Imported:
    """An ONNX model as it came from its source.

    Attributes:
        model: the model.
        source: the file or module, with its hash.
        notes: changes and limitations that the user should know, one sentence each.
        reference: runs the source itself, to measure parity; None if the model is the source.
        sizes: sizes for dynamic axes other than the batch, tried in this order until the source takes one.
        ids: random integer inputs are below this number.
        half: the source computes in float16 or bfloat16, and the model in float32.
    """

    model: ir.Model
    source: Source
    notes: tuple[str, ...]
    reference: Reference | None
    sizes: tuple[int, ...] = (64, 224, 32, 16, 320, 8, 1)
    ids: int = 2
    half: bool = False
