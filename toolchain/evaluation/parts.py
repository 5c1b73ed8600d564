"""Parts of an output: the pieces that were joined to it, and the indices of their feature axes.

A detector may join boxes in pixels and scores between 0 and 1 to one tensor. An error that does not matter to the boxes
may be larger than every score, so the two must be compared separately. The pieces are found by following the output
back through operators that only move elements (Concat, Reshape, Transpose, Slice ...) to the tensors that are computed.

Which element of the output comes from which piece is found by running the moving operators themselves: every computed
tensor is replaced by the numbers of its parts, and the output then holds a number for each of its elements. This is
right for every moving operator, without an index rule for any of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from toolchain.core.arrays import I64, Bool
from toolchain.data.tensors import Array, Feed
from toolchain.graph import edit, query, run

MOVED_INPUTS: Mapping[str, tuple[int, ...] | None] = {
    "Concat": None,
    "Reshape": (0,),
    "Flatten": (0,),
    "Transpose": (0,),
    "Squeeze": (0,),
    "Unsqueeze": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Identity": (0,),
    "Expand": (0,),
    "Tile": (0,),
    "Pad": (0, 2),
    "Gather": (0,),
    "DepthToSpace": (0,),
    "SpaceToDepth": (0,),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
    "Where": (1, 2),
}
"""Operators that only move elements, with the inputs that they move; None: all of them."""
FEATURES_FIRST = frozenset({"Conv", "ConvTranspose", "QLinearConv", "BatchNormalization", "InstanceNormalization"})
"""Operators whose features are on axis 1."""
FEATURES_LAST = frozenset({"Gemm", "MatMul", "LSTM", "GRU", "RNN", "LayerNormalization", "Einsum"})
"""Operators whose features are on the last axis."""
MAX_LABELS = 2**24
"""Numbers of parts are carried in float32, which holds all integers up to this one."""


@dataclass(frozen=True)
class Piece:
    """A computed tensor that an output takes elements from.

    Attributes:
        tensor: its name.
        op: the operator that computes it; "input" for an input of the model.
        node: label of the node that computes it.
        axis: its feature axis; None where it has none.
        first: number of its first part; 0 is for elements that come from no piece, such as constants.
        count: number of its parts.
    """

    tensor: str
    op: str
    node: str
    axis: int | None
    first: int
    count: int

    @property
    def source(self) -> str:
        """Operator and name, for messages."""
        return f"{self.op} {self.node!r}"

    def among(self, labels: I64) -> Bool:
        """Mark the elements that come from this piece, by the numbers of their parts."""
        return np.asarray((labels >= self.first) & (labels < self.first + self.count))


@dataclass(frozen=True)
class OutputParts:
    """The pieces of one tensor, and the operators that join them.

    Attributes:
        tensor: its name.
        pieces: the pieces, in graph order.
        tail: the moving operators as a model that takes the pieces and `operands`; None where there are none.
        operands: names of the other computed tensors that the moving operators read, such as shapes.
    """

    tensor: str
    pieces: tuple[Piece, ...]
    tail: ort.InferenceSession | None
    operands: tuple[str, ...]

    def labels(self, shapes: Mapping[str, Sequence[int]], operands: Feed) -> I64:
        """Return the number of its part for every element of the tensor, on one sample.

        Args:
            shapes: shapes of the pieces.
            operands: values of :attr:`operands`, and of any other tensors.
        """
        numbers: Feed = {piece.tensor: _numbers(shapes[piece.tensor], piece.axis, piece.first) for piece in self.pieces}
        if self.tail is None:
            return numbers[self.tensor].astype(np.int64)
        read = {name: operands[name] for name in self.operands}
        return np.asarray(self.tail.run(None, numbers | read)[0]).astype(np.int64)


def _extracted(model: ir.Model, nodes: Collection[ir.Node]) -> ir.Model:
    """Extract nodes as a model; nodes of a source file may have no names, so they are found by their number."""
    numbered = model.clone()
    chosen: list[str] = []
    for original, node in zip(model.graph, numbered.graph, strict=True):
        node.name = f"node_{len(chosen)}" if original in nodes else None
        chosen += [str(node.name)] if original in nodes else []
    return edit.extract(numbered, chosen)


def _without_constants(tail: ir.Model) -> None:
    """Replace the constants that are moved by zeros, the number of no part."""
    names = edit.Names(tail.graph)
    for node in tail.graph:
        for index, value in enumerate(node.inputs):
            array = query.constant(value) if value in moved_inputs(node) else None
            if array is not None:
                edit.set_constant(tail.graph, names, node, index, "no_part", np.zeros(array.shape, np.float32))


def pieces_of(value: ir.Value) -> list[ir.Value]:
    """List the computed tensors that `value` takes elements from, in graph order; `value` itself if it is computed."""
    return _follow(value)[1]


def operands_of(value: ir.Value) -> list[str]:
    """Name the computed tensors, other than pieces, that the moving operators behind `value` read."""
    return _operands(*_follow(value))


def _operands(moving: Sequence[ir.Node], pieces: Sequence[ir.Value]) -> list[str]:
    known = {*pieces, *(output for node in moving for output in node.outputs)}
    read = [v for node in moving for v in node.inputs if v is not None and v not in known and not v.is_initializer()]
    return list(dict.fromkeys(str(v.name) for v in read))


def find_parts(
    model: ir.Model,
    value: ir.Value,
    shapes: Mapping[str, Sequence[Sequence[int]]],
    operand_types: Mapping[str, np.dtype[np.generic]],
) -> OutputParts:
    """Find the parts of a float tensor.

    Args:
        model: the float model.
        value: a tensor of the model.
        shapes: shapes of its pieces on all samples, by name.
        operand_types: dtypes of :func:`operands_of` the tensor, by name.
    """
    moving, sources = _follow(value)
    pieces: list[Piece] = []
    first = 1
    for source in sources:
        node = source.producer()
        seen = shapes[str(source.name)]
        axis = feature_axis(source, seen)
        count = 1 if axis is None else seen[0][axis]
        if first + count > MAX_LABELS:
            axis, count = None, 1
        op, label = (node.op_type, query.label(node)) if node is not None else ("input", str(source.name))
        pieces.append(Piece(str(source.name), op, label, axis, first, count))
        first += count
    tail = None
    if moving:
        part = _extracted(model, moving)
        edit.keep_outputs(part, [v for v in query.activations(part) if v.name == value.name])
        _without_constants(part)
        for entering in part.graph.inputs:  # a source file may not state types, and shapes may differ between samples
            dtype = operand_types.get(str(entering.name), np.dtype(np.float32))
            entering.type, entering.shape = ir.TensorType(ir.DataType.from_numpy(dtype)), None
        tail = run.session(part, pattern=False)
    return OutputParts(str(value.name), tuple(pieces), tail, tuple(_operands(moving, sources)))


def _numbers(shape: Sequence[int], axis: int | None, first: int) -> Array:
    """Fill an array of this shape with the number of each element's part, in float32."""
    if axis is None:
        return np.full(shape, first, np.float32)
    along = np.arange(first, first + shape[axis], dtype=np.float32)
    return np.broadcast_to(along.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape).copy()


def _follow(value: ir.Value) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return the moving operators behind a tensor, and the computed float tensors in front of them."""
    moving: dict[ir.Node, None] = {}
    pieces: dict[ir.Value, None] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None or not is_moving(node):
            if query.constant(current) is None:
                pieces.setdefault(current)
        elif node not in moving:
            moving.setdefault(node)
            waiting += moved_inputs(node)
    graph = next(iter(moving)).graph if moving else None
    order = {node: number for number, node in enumerate(graph)} if graph is not None else {}
    ordered = sorted(pieces, key=lambda v: order.get(p, -1) if (p := v.producer()) is not None else -1)
    return sorted(moving, key=lambda node: order[node]), ordered


def is_moving(node: ir.Node) -> bool:
    """True where a node only moves elements; what it moves has the type of its output."""
    return node.op_type in MOVED_INPUTS and node.domain in ("", "ai.onnx")


def moved_inputs(node: ir.Node) -> list[ir.Value]:
    """List the inputs whose elements a moving operator moves."""
    indices = MOVED_INPUTS[node.op_type]
    chosen = node.inputs if indices is None else [query.optional_input(node, index) for index in indices]
    return [value for value in chosen if value is not None]


def feature_axis(value: ir.Value, shapes: Sequence[Sequence[int]]) -> int | None:
    """Choose the axis whose indices mean different things; None where there is none of fixed size.

    The operators in front are followed to the nearest product, which says where its features are. Where none is found,
    it is the smallest axis behind the first, since places are many and features few.

    Args:
        value: the tensor.
        shapes: its shapes on all samples.
    """
    rank = len(shapes[0])
    fixed = [axis for axis in range(1, rank) if len({shape[axis] for shape in shapes}) == 1 and shapes[0][axis] > 0]
    if any(len(shape) != rank for shape in shapes) or not fixed:
        return None
    traced = _traced_axis(value, rank)
    return traced if traced in fixed else min(fixed, key=lambda axis: (shapes[0][axis], -axis))


def _traced_axis(value: ir.Value, rank: int) -> int | None:
    """Follow the first computed input of each operator to a product; None where the axes change on the way."""
    moved_to = list(range(rank))  # axis of the current tensor, by axis of `value`
    for _ in range(64):
        node = value.producer()
        if node is None:
            return None
        if node.op_type in FEATURES_FIRST and rank > 2:
            return moved_to.index(1) if 1 in moved_to else None
        if node.op_type in FEATURES_FIRST | FEATURES_LAST:
            return moved_to.index(rank - 1)
        computed = [v for v in query.computed_inputs(node) if query.is_float(v)]
        if not computed or node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather"):
            return None
        if node.op_type == "Transpose":
            order = query.attribute(node, "perm", list(range(rank))[::-1])
            moved_to = [order[axis] for axis in moved_to]
        same_rank = [v for v in computed if query.rank(v) == rank]
        if not same_rank:
            return None
        value = same_rank[0]
    return None
