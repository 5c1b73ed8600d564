"""Index spaces of operators that compute: one handler for each *channels* cell of the operator table.

A handler takes the :class:`LayoutBuilder`, a node and its cell. It unifies and pins the axes of the node's inputs,
including its weights, and returns the axes of every output. Operators that only move numbers are in
``movement_ops.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from toolchain.channels.index_spaces import Space, product, unify
from toolchain.graph import query
from toolchain.ops import cells
from toolchain.ops.table import SIZES_READ
from toolchain.ops.weights import operand_axes

Axes = tuple[Space, ...]

# Reasons for pins
UNKNOWN_OPERATOR = "{op} has no row in the operator table"
NOT_UNDERSTOOD = "{op} uses it in a way that is not understood"
KERNEL_AXIS = "it is an axis of a kernel"
NEW_POSITIONS = "{op} gives it other positions"
LOOKED_UP = "{op} selects from it by number"
MEAN = "{op} divides by its size"
ALL_TOGETHER = "{op} combines all of it"
RUN_TIME_SIZE = "its size is only known when the model runs"
GATES = "it counts the gates of a recurrent cell"
DIRECTIONS = "it counts the directions of a recurrent layer"
NORMALIZED = "{op} divides by a deviation over it"


class NotUnderstoodError(Exception):
    """A handler does not cover this form of its operator; the node becomes a barrier, for this reason."""

    def __init__(self, reason: str = NOT_UNDERSTOOD) -> None:
        super().__init__(reason)
        self.reason = reason


class LayoutBuilder:
    """The layout of a graph while its nodes are visited.

    Attributes:
        axes: index spaces of every value met so far.
        summed: for every node, the axes over which it sums, as (input's index, axis).
    """

    def __init__(self) -> None:
        self.axes: dict[ir.Value, Axes] = {}
        self.summed: dict[ir.Node, tuple[tuple[int, int], ...]] = {}

    def fresh(self, value: ir.Value, *pins: str) -> Axes:
        """New spaces with the sizes of a value; none if its rank is unknown."""
        return tuple(space(size, *pins) for size in query.sizes(value, dynamic=-1) or ())

    def axes_of(self, value: ir.Value | None) -> Axes:
        """Axes of a node's input; a constant gets its axes when it is first met.

        Raises:
            NotUnderstoodError: there is no such input, or its rank is unknown.
        """
        if value is None or query.rank(value) is None:
            raise NotUnderstoodError
        if value not in self.axes:
            self.axes[value] = self.fresh(value)
        return self.axes[value]

    def pin(self, value: ir.Value | None, reason: str) -> None:
        """Forbid cutting any axis of a value."""
        if value is not None and query.rank(value) is not None:
            pin_all(self.axes_of(value), reason)

    def sums_over(self, node: ir.Node, *axes: tuple[int, int]) -> None:
        """Record that a node sums over these axes of its inputs: (input's index, axis)."""
        self.summed[node] = axes


def space(size: int, *pins: str) -> Space:
    """Make a space for an axis; a negative size means that it is only known at run time."""
    return Space(None, RUN_TIME_SIZE) if size < 0 else Space(size, *pins)


def pin_all(axes: Sequence[Space], reason: str) -> None:
    """Pin several axes."""
    for axis in axes:
        axis.pin(reason)


def broadcast(operands: Sequence[Axes]) -> Axes:
    """Axes that several operands broadcast to, aligned at the right; an axis of size 1 is unified with nothing."""
    result: list[Space] = []
    for back in range(1, max(map(len, operands)) + 1):
        here = [axes[-back] for axes in operands if len(axes) >= back]
        large = [axis for axis in here if axis.root.size != 1]
        for axis in large[1:]:
            unify(large[0], axis)
        result.append((large or here)[0])
    return tuple(reversed(result))


# ------------------------------------------------------------------------------------------------ products


def weighted(builder: LayoutBuilder, node: ir.Node, cell: cells.Weighted) -> list[Axes]:
    """Conv and ConvTranspose; the weight may be computed as well."""
    x, w = builder.axes_of(node.inputs[0]), builder.axes_of(node.inputs[1])
    groups, rows, columns = query.attribute(node, "group", 1), w[0].root.size, w[1].root.size
    if rows is None or columns is None:
        raise NotUnderstoodError
    # Axes 0 and 1 of a Conv's weight are (G x O) and I, those of a ConvTranspose's (G x I) and O.
    group, of_row, of_column = Space(groups), Space(rows // groups), Space(columns)
    unify(w[0], product(group, of_row))
    unify(w[1], of_column)
    inner, outer = (of_column, of_row) if cell.out == 0 else (of_row, of_column)
    unify(x[cell.act], product(group, inner))
    result = product(group, outer)
    if cell.bias is not None and (bias := query.optional_input(node, cell.bias)) is not None:
        unify(builder.axes_of(bias)[0], result)
    pin_all(w[2:], KERNEL_AXIS)
    if inner.root.size != 1 or groups == 1:
        builder.sums_over(node, (0, cell.act))
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * len(x)
    pin_all(x[2:], NEW_POSITIONS.format(op=node.op_type))
    return [(x[0], result, *(space(size, NEW_POSITIONS.format(op=node.op_type)) for size in known[2:]))]


def contracted(builder: LayoutBuilder, node: ir.Node, cell: cells.Contracted) -> list[Axes]:
    """Gemm and MatMul."""
    left, right = builder.axes_of(node.inputs[0]), builder.axes_of(node.inputs[1])
    if len(left) < 2 or len(right) < 2:
        raise NotUnderstoodError
    (row, summed_left), (column, summed_right) = (
        operand_axes(node, operand, len(axes)) for operand, axes in enumerate((left, right))
    )
    unify(left[summed_left], right[summed_right])
    result = (*broadcast([left[:-2], right[:-2], ()]), left[row], right[column])
    if cell.bias is not None and (bias := query.optional_input(node, cell.bias)) is not None:
        result = broadcast([result, builder.axes_of(bias)])
    builder.sums_over(node, (0, summed_left), (1, summed_right))
    return [result]


def recurrent(builder: LayoutBuilder, node: ir.Node, cell: cells.Recurrent) -> list[Axes]:
    """LSTM and GRU: a hidden unit is in the rows of every gate, in the columns of R and in the states."""
    x, w, r = (builder.axes_of(node.inputs[i]) for i in range(3))
    size, directions = r[2].root.size, w[0]
    if size is None or query.attribute(node, "layout", 0):
        raise NotUnderstoodError
    hidden = Space(size)
    directions.pin(DIRECTIONS)
    unify(r[2], hidden)
    unify(w[2], x[2])
    gates = {1: cell.gates, 2: cell.gates, 3: 2 * cell.gates, 7: 3}  # W, R, biases, peepholes
    for index in (1, 2, 3, 5, 6, 7):
        if (value := query.optional_input(node, index)) is not None:
            axes = builder.axes_of(value)
            rows = product(Space(gates[index], GATES), hidden) if index in gates else hidden
            unify(axes[1 if index in gates else 2], rows)
            unify(axes[0], directions)
    builder.sums_over(node, (0, 2), (2, 2))  # it sums over its own state, too
    states = (directions, x[1], hidden)
    return [(x[0], *states), states, states][: len(node.outputs)]


# ------------------------------------------------------------------------------- each position by itself


def elementwise(builder: LayoutBuilder, node: ir.Node, cell: cells.Elementwise) -> list[Axes]:
    """Outputs have the shape that the inputs broadcast to."""
    return [broadcast([builder.axes_of(value) for value in node.inputs if value is not None])] * len(node.outputs)


def per_channel(builder: LayoutBuilder, node: ir.Node, cell: cells.PerChannel) -> list[Axes]:
    """Parameters with one number for each position of an axis, or one number for all."""
    x = builder.axes_of(node.inputs[0])
    axis = query.attribute(node, "axis", cell.axis)
    for value in (query.optional_input(node, index) for index in cell.parameters):
        own = builder.axes_of(value) if value is not None else ()
        if len(own) > 1:
            raise NotUnderstoodError
        if own and own[0].root.size != 1:
            unify(x[axis], own[0])
    return [x] * len(node.outputs)


def spatial(builder: LayoutBuilder, node: ir.Node, cell: cells.SpatialOnly) -> list[Axes]:
    """Pools and Resize: batch and channels pass, other axes are pinned."""
    x, reason = builder.axes_of(node.inputs[0]), NEW_POSITIONS.format(op=node.op_type)
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or len(known) != len(x):
        raise NotUnderstoodError
    pin_all(x[2:], reason)
    for value in node.inputs[1:]:
        builder.pin(value, SIZES_READ)
    return [(*x[:2], *(space(size, reason) for size in known[2:]))] * len(node.outputs)


def selected(builder: LayoutBuilder, node: ir.Node, cell: cells.Selected) -> list[Axes]:
    """Gather: the axes of the indices replace the one that is selected from."""
    x, index = builder.axes_of(node.inputs[0]), builder.axes_of(node.inputs[1])
    at = query.attribute(node, "axis", 0) % len(x)
    x[at].pin(LOOKED_UP.format(op=node.op_type))
    return [(*x[:at], *index, *x[at + 1 :])]


# ------------------------------------------------------------------------------ several positions together


def reduced(builder: LayoutBuilder, node: ir.Node, cell: cells.Reduced) -> list[Axes]:
    """Reductions: a sum may lose terms that are zero; all others depend on the number of terms or on zeros, and pin."""
    x = builder.axes_of(node.inputs[0])
    axes = query.attribute(node, "axes")
    if axes is None and (value := query.optional_input(node, 1)) is not None:
        axes = query.ints(value)
        if axes is None:
            raise NotUnderstoodError
    if not axes and query.attribute(node, "noop_with_empty_axes", 0):
        return [x]
    gone = sorted({a % len(x) for a in axes or range(len(x))})
    if cell.pins:
        reason = MEAN if node.op_type == "ReduceMean" else ALL_TOGETHER
        pin_all([x[a] for a in gone], reason.format(op=node.op_type))
    else:
        builder.sums_over(node, *((0, a) for a in gone))
    if query.attribute(node, "keepdims", 1):
        return [tuple(Space(1) if i in gone else axis for i, axis in enumerate(x))]
    return [tuple(axis for i, axis in enumerate(x) if i not in gone)]


def grouped_norm(builder: LayoutBuilder, node: ir.Node, cell: cells.GroupedNorm) -> list[Axes]:
    """GroupNormalization: whole groups may be cut, nothing inside one."""
    x = builder.axes_of(node.inputs[0])
    channels = x[1].root.size
    if channels is None:
        raise NotUnderstoodError
    groups: int = channels if cell.groups == 0 else query.attribute(node, "num_groups", channels)
    reason = NORMALIZED.format(op=node.op_type)
    group, inner = Space(groups), Space(channels // groups, reason)
    unify(x[1], product(group, inner))
    for value in node.inputs[1:3]:
        (own,) = builder.axes_of(value)
        unify(own, x[1] if own.root.size == channels else group)
    pin_all(x[2:], reason)
    return [x]


def pinned(builder: LayoutBuilder, node: ir.Node, cell: cells.Pinned) -> list[Axes]:
    """LayerNormalization, Softmax and others that need an axis whole; Shape, Size and Range, whose output is sizes."""
    if node.op_type in ("Range", "Shape", "Size"):
        return _counted(builder, node, cell)
    x, reason = builder.axes_of(node.inputs[0]), f"{node.op_type}: {cell.reason}"
    if node.op_type in ("GatherElements", "GatherND", "ScatterElements", "ScatterND"):
        for value in node.inputs:
            builder.pin(value, reason)
        return [builder.fresh(output, reason) for output in node.outputs]
    named = query.ints(node.inputs[1]) if node.op_type == "CumSum" else None
    usual = (0 if node.op_type == "ArgMax" else -1) if cell.axis is None else cell.axis
    at = (named[0] if named else query.attribute(node, "axis", usual)) % len(x)
    gone = range(at, len(x) if cell.axis is not None else at + 1)
    pin_all([x[i] for i in gone], reason)
    for value in node.inputs[1:]:
        if value is not None:
            broadcast([x, builder.axes_of(value)])
    return [_beside(x, gone, output, reason) for output in node.outputs]


def _beside(x: Axes, gone: range, output: ir.Value, reason: str) -> Axes:
    """Axes of an output in which the pinned ones are missing, or have the same or a new size."""
    known = query.sizes(output, dynamic=-1)
    if known is None or len(known) != len(x):
        return tuple(axis for i, axis in enumerate(x) if i not in gone)
    return tuple(
        axis if i not in gone or axis.root.size == size else space(size, reason)
        for i, (axis, size) in enumerate(zip(x, known, strict=True))
    )


def _counted(builder: LayoutBuilder, node: ir.Node, cell: cells.Pinned) -> list[Axes]:
    if node.op_type != "Range":
        x = builder.axes_of(node.inputs[0])
        pin_all(x if node.op_type == "Size" else [x[at] for at in _axes_read(node, len(x))], SIZES_READ)
    return [builder.fresh(node.outputs[0], f"{node.op_type}: {cell.reason}")]


def _axes_read(node: ir.Node, rank: int) -> set[int]:
    """Axes whose sizes are taken from the output of a Shape; all of them where that cannot be seen."""
    start = query.attribute(node, "start", 0)
    window = list(range(rank))[start : query.attribute(node, "end", rank)]
    readers, whole = _readers(node.outputs[0])
    read: set[int] = set(window) if whole else set()
    for reader in readers:
        numbers = [query.ints(value) for value in reader.inputs[1:]]
        if reader.op_type == "Gather" and numbers[0] is not None:
            read.update(window[i] for i in numbers[0])
        elif reader.op_type == "Slice" and numbers[0] and numbers[1] and numbers[3:] in ([], [[1]]):
            read.update(window[numbers[0][0] : numbers[1][0]])
        else:
            read.update(window)
    return read


def _readers(value: ir.Value) -> tuple[list[ir.Node], bool]:
    """Nodes that read a value, also through Casts, and whether it is an output of the graph."""
    readers: list[ir.Node] = []
    leaves = value.is_graph_output()
    for reader in query.consumers(value):
        if reader.op_type == "Cast":
            behind, out = _readers(reader.outputs[0])
            readers, leaves = [*readers, *behind], leaves or out
        else:
            readers.append(reader)
    return readers, leaves
