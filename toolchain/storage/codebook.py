"""Weights with few different values, stored as a codebook and, for every weight, the index of its entry (its code).

    weight[c, i] = scale[c] · book[row of (c, i), code[c, i]]

A code has k bits. It is divided into fields of 8, 4, 2 or 1 bits (k = 3 is 2 + 1). Fields of one width are packed
densely into bytes, the first code in the lowest bits. Some codes are more frequent than others, and zip can use that
only where a byte holds whole codes, not single bits of many codes (the Huffman stage of Han et al. 2016, arXiv
1510.00149): 4-bit codes of k-means become 17 % smaller. Standard operators in the file compute the float weight:

    bytes [m, 1] → BitShift by 0, w, 2w, … → Mod 2ʷ → Reshape → Cast → Gather → Reshape → Mul → Transpose

onnxruntime computes nodes that depend on constants alone when it loads an ``.onnx`` file. So only the file is small;
speed and memory at run time are those of float weights. Loading takes 10 to 40 ms longer for a million weights, and
some more memory meanwhile. (A ``.ort`` file stores the graph that is run, and so the float weights again.)
``toolchain optimize`` folds the nodes in the same way, with the same numbers: it returns the dense model, which later
stages need. ONNX's own types of 4 and 2 bits need operator sets 21 and 25, and there is no type of 3 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32, U8
from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array
from toolchain.graph import check, edit, query

FIELD_WIDTHS = (8, 4, 2, 1)
"""Bits of a field; each divides a byte."""
BITSHIFT_OPSET = 11
"""The first operator set with BitShift."""
DECODER_BYTES = 1024
"""Bytes of the operators that decode a weight, with their constants; a weight that saves less stays dense."""


@dataclass(frozen=True)
class CodedWeight:
    """One weight, stored as codes.

    Attributes:
        codes: uint8, in the weight's shape, each smaller than 2^bits and than the number of entries in a row of `book`.
        book: float32 [rows, entries]. The weight, channels first, is divided into `rows` equal parts, each with its own
            row: one row for the whole tensor, or one for each channel or group of channels.
        bits: number of bits of a code, 1 to 8.
        axis: the weight's axis of output channels.
        scale: factor of each channel, float32 [channels], or None.

    Raises:
        ValueError: shapes or numbers do not fit together.
    """

    codes: U8
    book: F32
    bits: int
    axis: int = 0
    scale: F32 | None = None

    def __post_init__(self) -> None:
        rows, entries = self.book.shape
        if not 1 <= self.bits <= 8 or entries > 1 << self.bits or int(self.codes.max(initial=0)) >= entries:
            raise ValueError(f"codes up to {self.codes.max(initial=0)}, {entries} entries, {self.bits} bits")
        if self.codes.size % rows:
            raise ValueError(f"{self.codes.size} weights cannot be cut into {rows} rows")
        if self.scale is not None and self.scale.shape != (self.codes.shape[self.axis],):
            raise ValueError(f"scale of shape {self.scale.shape} for {self.codes.shape[self.axis]} channels")

    @property
    def channels_first_shape(self) -> tuple[int, ...]:
        """The weight's shape with the channels first."""
        return np.moveaxis(self.codes, self.axis, 0).shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes, book and scale as they are stored."""
        tables = self.book.nbytes + (0 if self.scale is None else self.scale.nbytes)
        return tables + sum(-(-self.codes.size * width // 8) for width, _ in fields(self.bits))

    def dense(self) -> F32:
        """Compute the float32 weight, bit for bit as the operators in the file compute it."""
        rows = np.moveaxis(self.codes, self.axis, 0).reshape(len(self.book), -1)
        weight = np.take_along_axis(self.book, rows.astype(np.int64), 1).reshape(self.channels_first_shape)
        if self.scale is not None:
            weight = weight * self.scale.reshape(-1, *[1] * (weight.ndim - 1))
        return np.ascontiguousarray(np.moveaxis(weight, 0, self.axis))


def fields(bits: int) -> list[tuple[int, int]]:
    """List width and lowest bit of the fields of a code: ``fields(3) == [(2, 0), (1, 2)]``."""
    widths = [width for width in FIELD_WIDTHS if bits & width]
    return [(width, sum(widths[:i])) for i, width in enumerate(widths)]


def pack(codes: U8, width: int) -> U8:
    """Pack numbers into bytes, the first in the lowest bits; zeros fill the last byte.

    Args:
        codes: numbers below 2^width.
        width: bits of a number: 8, 4, 2 or 1.
    """
    each = 8 // width
    flat = np.concatenate([codes.reshape(-1), np.zeros(-codes.size % each, np.uint8)]).reshape(-1, each)
    shifted = flat << (width * np.arange(each, dtype=np.uint8))
    packed: U8 = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def store(model: ir.Model, coded: Mapping[str, CodedWeight]) -> ir.Model:
    """Clone a model and store weights as codes where that saves bytes.

    A weight that is small, that is an output, or that a branch of an If or Loop reads is stored dense.

    Args:
        model: the model with the dense weights.
        coded: the weights to store, by the names of their initializers.

    Raises:
        ModelError: the model's operator set is too old for the stored form.
    """
    if query.opset(model) < BITSHIFT_OPSET:
        what = f"has operator set {query.opset(model)}, and codes can be stored from {BITSHIFT_OPSET} on"
        raise ModelError(what, where=model.graph.name, hint="convert it first with `toolchain convert`")
    result = model.clone()
    builder = _DecoderWriter(result.graph)
    for name, code in coded.items():
        value = result.graph.initializers[name]
        only_graph_reads = (
            all(node.graph is result.graph for node in query.consumers(value)) and not value.is_graph_output()
        )
        if only_graph_reads and code.codes.size * 4 - code.nbytes > DECODER_BYTES:
            builder.replace(value, code)
        else:
            value.const_value = ir.tensor(code.dense(), name=name)
    edit.remove_unused(result)
    check.check(result)
    return result


class _DecoderWriter:
    """Inserts decoding operators at the start of a graph; equal constants are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._names, self._first = graph, edit.Names(graph), next(iter(graph))
        self._known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def replace(self, value: ir.Value, code: CodedWeight) -> None:
        """Redirect the readers of `value` to the decoded weight, which takes over the name."""
        name = str(value.name)
        decoded = self._decoded(name, code)
        decoded.type, decoded.shape = value.type, value.shape
        value.replace_all_uses_with(decoded)
        del self._graph.initializers[name]
        decoded.name = name

    def _decoded(self, name: str, code: CodedWeight) -> ir.Value:
        parts = [self._field(name, code, width, low) for width, low in fields(code.bits)]
        indices = parts[0]
        for part in parts[1:]:
            indices = self._node("Add", indices, part)
        rows, entries = code.book.shape
        if rows > 1:
            indices = self._node("Reshape", indices, self._small("rows", [rows, -1]))
            starts = entries * np.arange(rows, dtype=np.int32).reshape(-1, 1)
            indices = self._node("Add", indices, self._constant("starts", starts))
        weight = self._node("Gather", self._constant(f"{name}_book", code.book.reshape(-1)), indices)
        weight = self._node("Reshape", weight, self._small("shape", code.channels_first_shape))
        weight_rank = code.codes.ndim
        if code.scale is not None:
            scale = code.scale.reshape(-1, *[1] * (weight_rank - 1))
            weight = self._node("Mul", weight, self._constant(f"{name}_scale", scale))
        if code.axis:
            order = list(range(1, weight_rank))
            weight = self._node("Transpose", weight, perm=[*order[: code.axis], 0, *order[code.axis :]])
        return weight

    def _field(self, name: str, code: CodedWeight, width: int, low: int) -> ir.Value:
        """Decode `width` bits of all codes, from bit `low` on; int32 in one axis, each bit at its place in the code."""
        codes = np.moveaxis(code.codes, code.axis, 0).reshape(-1)
        packed = pack(codes >> np.uint8(low) & np.uint8((1 << width) - 1), width)
        field = self._constant(f"{name}_bits{low}", packed.reshape(-1, 1))
        if width < 8:
            shifts = width * np.arange(8 // width, dtype=np.uint8)
            field = self._node("BitShift", field, self._constant("shifts", shifts), direction="RIGHT")
            field = self._node("Mod", field, self._constant("base", np.array([1 << width], np.uint8)))
        field = self._node("Reshape", field, self._small("flat", [-1]))
        if codes.size % (8 // width):
            field = self._node("Slice", field, self._small("start", [0]), self._small("stop", [codes.size]))
        if low:
            field = self._node("BitShift", field, self._constant("low", np.array([low], np.uint8)), direction="LEFT")
        return self._node("Cast", field, to=ir.DataType.INT32)

    def _small(self, name: str, numbers: Sequence[int]) -> ir.Value:
        return self._constant(name, np.array(numbers, np.int64))

    def _constant(self, name: str, array: Array) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = edit.add_constant(self._graph, self._names.fresh(name), array)
        return self._known[key]

    def _node(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=self._names.fresh(f"decode_{op}"))
        node.outputs[0].name = self._names.fresh("decoded")
        self._graph.insert_before(self._first, node)
        return node.outputs[0]
