"""How the channels of every tensor run through a graph: one index space for each axis of each value.

The nodes are visited in order, and each ties the spaces of what it reads, of its weights and of what it computes, by
the *channels* cell of its operator's row (``ops.py``). What leaves the graph, what nobody knows, and what is read as
data is pinned.

    stream [N, 24] ──Conv──► [N, 144] ──depthwise──► [N, 144] ──Conv──► [N, 24] ──Add──►   144 is free: one group, in
       └───────────────────────────────────────────────────────────────────────────┘      six weights; 24 is another,
                                                                                         shared by all that is summed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_ir as ir

from toolchain import rules
from toolchain.graph import query
from toolchain.ops import rule
from toolchain.prune.axes import Space, align, carve, product, total, unify

Axes = tuple[Space, ...]

NO_ROW = "{op} has no row in the table of operators"
UNRESOLVED = "{op} takes it in a way that is not understood"
INPUT, OUTPUT = "it is an input of the model", "it is an output of the model"
KERNEL, WINDOW = "a kernel's extent", "{op} computes its positions anew"
CAPTURED = "the branch of an {op} reads it"
READ = "its sizes are read as data"
LOOKED_UP = "{op} selects from it by number"
MEAN = "{op} divides by its size"
RUN_TIME = "its size is only known when the model runs"
GATES = "a recurrent cell's gates"


class NotUnderstood(Exception):
    """A rule meets a form it does not cover; the node becomes a barrier."""


@dataclass(frozen=True)
class Layout:
    """The index spaces of every value of known rank. closed: for every node, the spaces over which it sums and of
    which nothing is left in its outputs, with the input and axis: (input's index, axis).
    """

    axes: Mapping[ir.Value, Axes]
    closed: Mapping[ir.Node, tuple[tuple[int, int], ...]]

    def sizes(self, value: ir.Value) -> tuple[int | None, ...]:
        """Of a value, as far as they are known."""
        return tuple(axis.root.size for axis in self.axes[value])


def layout(model: ir.Model) -> Layout:
    """Lay out an optimized float model. The model is left as it is."""
    return _Builder(model).build()


class _Builder:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.axes: dict[ir.Value, Axes] = {}
        self.closed: dict[ir.Node, tuple[tuple[int, int], ...]] = {}

    def build(self) -> Layout:
        graph = self.model.graph
        for value in graph.inputs:
            if not value.is_initializer():
                self.axes[value] = self.fresh(value, INPUT)
        for node in graph:
            self.visit(node)
        for value in graph.outputs:
            self.pin(value, OUTPUT)
        return Layout(self.axes, self.closed)

    # ------------------------------------------------------------------------------------------- helpers

    def fresh(self, value: ir.Value, *pins: str) -> Axes:
        return tuple(space(size, *pins) for size in query.sizes(value, dynamic=-1) or ())

    def of(self, value: ir.Value | None) -> Axes:
        """The axes of what a node reads; constants get theirs when they are first met."""
        if value is None or query.rank(value) is None:
            raise NotUnderstood
        if value not in self.axes:
            self.axes[value] = self.fresh(value)
        return self.axes[value]

    def pin(self, value: ir.Value | None, reason: str) -> None:
        if value is not None and query.rank(value) is not None:
            for axis in self.of(value):
                axis.pin(reason)

    def visit(self, node: ir.Node) -> None:
        cell, op = rule(node).channels, query.op(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph().all_nodes():
                    for value in inner.inputs:
                        self.pin(value, CAPTURED.format(op=op))
        if op == "Constant":
            return  # a constant like an initializer
        found: list[Axes] | None = None
        reason = UNRESOLVED.format(op=op)
        try:
            if isinstance(cell, rules.Pinned) and op not in _KNOWN:
                reason = NO_ROW.format(op=op)
            else:
                found = HANDLERS[type(cell)](self, node, cell)
                self.check(node, found)
        except (NotUnderstood, ValueError):
            found = None
        if found is None:
            for value in node.inputs:
                self.pin(value, reason)
            self.closed.pop(node, None)
            found = [self.fresh(output, reason) for output in node.outputs]
        for output, axes in zip(node.outputs, found, strict=False):
            self.axes[output] = axes

    def check(self, node: ir.Node, found: Sequence[Axes]) -> None:
        """What a rule says must agree with what shape inference said."""
        if len(found) < sum(bool(output.name) for output in node.outputs):
            raise NotUnderstood
        for output, axes in zip(node.outputs, found, strict=False):
            known = query.sizes(output, dynamic=-1)
            if known is None:
                continue
            if len(known) != len(axes):
                raise NotUnderstood
            for size, axis in zip(known, axes, strict=True):
                if size >= 0 and axis.root.size is not None and size != axis.root.size:
                    raise NotUnderstood

    def close(self, node: ir.Node, *where: tuple[int, int]) -> None:
        self.closed[node] = where


def space(size: int, *pins: str) -> Space:
    """A fresh space for an axis; negative sizes are those that only the run tells."""
    return Space(None, RUN_TIME) if size < 0 else Space(size, *pins)


# ------------------------------------------------------------------------------------------ handlers by cell


def _weighted(b: _Builder, node: ir.Node, cell: rules.Weighted) -> list[Axes]:
    x, w = b.of(node.inputs[0]), b.of(node.inputs[1])
    groups = query.attribute(node, "group", 1)
    sizes = [axis.root.size for axis in w]
    if any(size is None for size in sizes):
        raise NotUnderstood
    # Of a Conv the rows of the weight are (G x O) and its columns I; of a ConvTranspose (G x I) and O.
    rows, columns = int(sizes[0] or 0), int(sizes[1] or 0)
    group, of_row, of_column = Space(groups), Space(rows // groups), Space(columns)
    unify(w[0], product(group, of_row))
    unify(w[1], of_column)
    inner, outer = (of_column, of_row) if cell.out == 0 else (of_row, of_column)
    unify(x[cell.act], product(group, inner))
    result = product(group, outer)
    if cell.bias is not None and len(node.inputs) > cell.bias and node.inputs[cell.bias] is not None:
        unify(b.of(node.inputs[cell.bias])[0], result)
    for axis in w[2:]:
        axis.pin(KERNEL)
    if of_column.root.size != 1 or groups == 1:
        b.close(node, (0, cell.act))
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * len(x)
    spatial = tuple(space(size, WINDOW.format(op=node.op_type)) for size in known[2:])
    _pin_all(x[2:], WINDOW.format(op=node.op_type))
    return [(x[0], result, *spatial)]


def _pin_all(axes: Sequence[Space], reason: str) -> None:
    for axis in axes:
        axis.pin(reason)


def _contracted(b: _Builder, node: ir.Node, cell: rules.Contracted) -> list[Axes]:
    left, right = b.of(node.inputs[0]), b.of(node.inputs[1])
    if len(left) < 2 or len(right) < 2:
        raise NotUnderstood
    turned = query.attribute(node, "transA", 0), query.attribute(node, "transB", 0)
    (rows, inner), (other, columns) = left[-2:], right[-2:]
    at = [len(left) - 1, len(right) - 2]
    if turned[0]:
        rows, inner, at[0] = inner, rows, len(left) - 2
    if turned[1]:
        other, columns, at[1] = columns, other, len(right) - 1
    unify(inner, other)
    result = (*_broadcast([left[:-2], right[:-2]]), rows, columns)
    if cell.bias is not None and len(node.inputs) > cell.bias and node.inputs[cell.bias] is not None:
        result = _broadcast([result, b.of(node.inputs[cell.bias])])
    b.close(node, (0, at[0]), (1, at[1]))
    return [result]


def _broadcast(operands: Sequence[Axes]) -> Axes:
    """Aligned at the right; an axis of size 1 joins nothing."""
    result: list[Space] = []
    for back in range(1, max(map(len, operands)) + 1):
        here = [axes[-back] for axes in operands if len(axes) >= back]
        large = [axis for axis in here if axis.root.size != 1]
        for axis in large[1:]:
            unify(large[0], axis)
        result.append((large or here)[0])
    return tuple(reversed(result))


def _elementwise(b: _Builder, node: ir.Node, cell: rules.Elementwise) -> list[Axes]:
    return [_broadcast([b.of(value) for value in node.inputs if value is not None])] * len(node.outputs)


def _per_channel(b: _Builder, node: ir.Node, cell: rules.PerChannel) -> list[Axes]:
    x = b.of(node.inputs[0])
    axis = query.attribute(node, "axis", cell.axis)
    for index in cell.parameters:
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            continue
        own = b.of(value)
        if len(own) > 1:
            raise NotUnderstood
        if own and own[0].root.size != 1:
            unify(x[axis], own[0])
    return [x] * len(node.outputs)


def _spatial(b: _Builder, node: ir.Node, cell: rules.SpatialOnly) -> list[Axes]:
    x, reason = b.of(node.inputs[0]), WINDOW.format(op=node.op_type)
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or len(known) != len(x):
        raise NotUnderstood
    _pin_all(x[2:], reason)
    for value in node.inputs[1:]:
        b.pin(value, READ)
    return [(*x[:2], *(space(size, reason) for size in known[2:]))] * len(node.outputs)


def _joined(b: _Builder, node: ir.Node, cell: rules.Joined) -> list[Axes]:
    parts = [b.of(value) for value in node.inputs if value is not None]
    at = query.attribute(node, "axis", 0) % len(parts[0])
    for part in parts[1:]:
        for index, axis in enumerate(part):
            if index != at:
                unify(parts[0][index], axis)
    result = list(parts[0])
    result[at] = total(*(part[at] for part in parts))
    return [tuple(result)]


def _parted(b: _Builder, node: ir.Node, cell: rules.Parted) -> list[Axes]:
    return {"Split": _split, "Slice": _slice, "Pad": _pad}[node.op_type](b, node)


def _split(b: _Builder, node: ir.Node) -> list[Axes]:
    x = b.of(node.inputs[0])
    at = query.attribute(node, "axis", 0) % len(x)
    sizes = [(query.sizes(output, dynamic=-1) or ())[at : at + 1] for output in node.outputs]
    if any(not size or size[0] < 0 for size in sizes) or sum(size[0] for size in sizes) != x[at].root.size:
        raise NotUnderstood
    parts = carve(x[at], [size[0] for size in sizes])
    return [(*x[:at], part, *x[at + 1 :]) for part in parts]


def _slice(b: _Builder, node: ir.Node) -> list[Axes]:
    x = b.of(node.inputs[0])
    starts, ends = query.ints(node.inputs[1]), query.ints(node.inputs[2])
    axes = query.ints(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    steps = query.ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * len(x)
    if starts is None or ends is None:
        raise NotUnderstood
    result = list(x)
    for index, at in enumerate(axes if axes is not None else range(len(starts))):
        size, at = x[at].root.size, at % len(x)
        if size is None or (steps is not None and steps[index] != 1):
            x[at].pin(UNRESOLVED.format(op=f"{node.op_type} with steps"))
            result[at] = space(known[at], UNRESOLVED.format(op=node.op_type))
            continue
        start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (starts[index], ends[index]))
        result[at] = carve(x[at], [start, max(end - start, 0), size - max(end, start)])[1]
    return [tuple(result)]


def _pad(b: _Builder, node: ir.Node) -> list[Axes]:
    x, reason = b.of(node.inputs[0]), WINDOW.format(op="Pad")
    pads = query.ints(node.inputs[1]) if len(node.inputs) > 1 else query.attribute(node, "pads")
    if pads is None or len(pads) != 2 * len(x) or len(node.inputs) > 3:
        raise NotUnderstood
    result = []
    for axis, before, behind in zip(x, pads[: len(x)], pads[len(x) :], strict=True):
        if before < 0 or behind < 0 or (axis.root.size is None and (before or behind)):
            axis.pin(reason)
            size = axis.root.size
            result.append(space(-1 if size is None else size + before + behind, reason))
        elif before or behind:
            if query.attribute(node, "mode", "constant") != "constant":
                axis.pin(reason)
            result.append(total(Space(before, reason), axis, Space(behind, reason)))
        else:
            result.append(axis)
    return [tuple(result)]


def _reshaped(b: _Builder, node: ir.Node, cell: rules.Reshaped) -> list[Axes]:
    x = b.of(node.inputs[0])
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or (node.op_type == "Reshape" and not _states(node.inputs[1], known)):
        raise NotUnderstood
    result = [space(size) for size in known]
    left, right = deque(x), deque(result)
    symbols = deque(_symbols(node.inputs[0])), deque(_symbols(node.outputs[0]))
    while left and right:  # as long as what stands before is the same on both sides, equal axes are the same
        source, target = left[0].root.size, right[0].root.size
        if source is None and target is None:
            alone = [sum(s.root.size is None for s in side) == 1 for side in (left, right)]
            if symbols[0][0] != symbols[1][0] and not (all(alone) and _static_size(left) == _static_size(right)):
                break
        elif source is not None and source == target:
            unify(left[0], right[0])
        else:
            break
        for side in (left, right, *symbols):
            side.popleft()
    tail = _static_tail(left), _static_tail(right)
    if len(tail[0]) == len(left) and len(tail[1]) == len(right):
        align(left, right)
    else:
        _align_right(list(left), list(right), tail)
    return [tuple(result)]


def _states(shape: ir.Value | None, known: Sequence[int]) -> bool:
    """Whether a shape's numbers can be written anew: it is a constant, or joined from constants and what the run tells.

    What the run tells may not be the size of an axis that is known: then it is not seen where it comes from.
    """
    slots = query.slots(shape)
    if slots is None:
        return False
    return len(slots) != len(known) or all(
        slot is not None or size < 0 for slot, size in zip(slots, known, strict=True)
    )


def _symbols(value: ir.Value | None) -> list[str | None]:
    """Names of the axes that only the run tells; a name of no meaning for those without one."""
    shape = value.shape if value is not None and value.shape is not None else ()
    return [None if isinstance(d, int) else (d.value or f"{id(d)}") for d in shape]


def _static_size(axes: Iterable[Space]) -> int:
    return prod(axis.root.size for axis in axes if axis.root.size is not None)


def _static_tail(axes: deque[Space]) -> list[Space]:
    tail: list[Space] = []
    for axis in reversed(axes):
        if axis.root.size is None:
            break
        tail.insert(0, axis)
    return tail


def _align_right(left: list[Space], right: list[Space], tail: tuple[list[Space], list[Space]]) -> None:
    """Only the last axes are comparable: equal products there are aligned, the rest is pinned."""
    for count in range(len(tail[0]), 0, -1):
        for other in range(len(tail[1]), 0, -1):
            if _static_size(tail[0][-count:]) == _static_size(tail[1][-other:]):
                align(tail[0][-count:], tail[1][-other:])
                _pin_all([*left[:-count], *right[:-other]], UNRESOLVED.format(op="Reshape"))
                return
    _pin_all([*left, *right], UNRESOLVED.format(op="Reshape"))


def _permuted(b: _Builder, node: ir.Node, cell: rules.Permuted) -> list[Axes]:
    x = b.of(node.inputs[0])
    if node.op_type == "Transpose":
        return [tuple(x[i] for i in query.attribute(node, "perm", list(reversed(range(len(x))))))]
    axes = query.attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = query.ints(node.inputs[1])
    if node.op_type == "Squeeze":
        gone = [a % len(x) for a in axes] if axes is not None else [i for i, a in enumerate(x) if a.root.size == 1]
        return [tuple(axis for i, axis in enumerate(x) if i not in gone)]
    if axes is None:
        raise NotUnderstood
    rest = iter(x)
    rank = len(x) + len(axes)
    new = {a % rank for a in axes}
    return [tuple(Space(1) if i in new else next(rest) for i in range(rank))]


def _expanded(b: _Builder, node: ir.Node, cell: rules.Expanded) -> list[Axes]:
    x, known = b.of(node.inputs[0]), query.sizes(node.outputs[0], dynamic=-1)
    if known is None or not _states(node.inputs[1], known):
        raise NotUnderstood
    result = [space(size) for size in known]
    for back, axis in enumerate(reversed(x), start=1):
        if axis.root.size != 1:
            result[-back] = axis
    return [tuple(result)]


def _reduced(b: _Builder, node: ir.Node, cell: rules.Reduced) -> list[Axes]:
    x = b.of(node.inputs[0])
    axes = query.attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = query.ints(node.inputs[1])
        if axes is None:
            raise NotUnderstood
    gone = sorted({a % len(x) for a in (axes if axes is not None else range(len(x)))})
    if cell.weighs:
        _pin_all([x[a] for a in gone], MEAN.format(op=node.op_type))
    else:
        b.close(node, *((0, a) for a in gone))
    if query.attribute(node, "keepdims", 1):
        return [tuple(Space(1) if i in gone else axis for i, axis in enumerate(x))]
    return [tuple(axis for i, axis in enumerate(x) if i not in gone)]


def _shuffled(b: _Builder, node: ir.Node, cell: rules.Shuffled) -> list[Axes]:
    x, block = b.of(node.inputs[0]), query.attribute(node, "blocksize", 1)
    channels = x[1].root.size
    if channels is None:
        raise NotUnderstood
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * 4
    reason = WINDOW.format(op=node.op_type)
    squares, free = Space(block * block, reason), Space(channels // (block * block))
    first = query.attribute(node, "mode", "DCR") == "DCR"
    unify(x[1], product(squares, free) if first else product(free, squares))
    _pin_all(x[2:], reason)
    return [(x[0], free, *(space(size, reason) for size in known[2:]))]


def _selected(b: _Builder, node: ir.Node, cell: rules.Selected) -> list[Axes]:
    x, index = b.of(node.inputs[0]), b.of(node.inputs[1])
    at = query.attribute(node, "axis", 0) % len(x)
    x[at].pin(LOOKED_UP.format(op=node.op_type))
    return [(*x[:at], *index, *x[at + 1 :])]


def _recurrent(b: _Builder, node: ir.Node, cell: rules.Recurrent) -> list[Axes]:
    x, w, r = (b.of(node.inputs[i]) for i in range(3))
    size = r[2].root.size
    if size is None or query.attribute(node, "layout", 0):
        raise NotUnderstood
    hidden, directions = Space(size), w[0]
    _pin_all([directions], UNRESOLVED.format(op=f"{node.op_type}'s direction"))
    unify(r[2], hidden)
    unify(w[2], x[2])

    def gates(count: int) -> Space:
        return product(Space(count, GATES), hidden)

    given = dict(enumerate(node.inputs))
    wanted: dict[int, Callable[[], Space]] = {
        1: lambda: gates(cell.gates), 2: lambda: gates(cell.gates), 3: lambda: gates(2 * cell.gates),
        5: lambda: hidden, 6: lambda: hidden, 7: lambda: gates(3),
    }  # fmt: skip
    for index, make in wanted.items():
        if (value := given.get(index)) is not None:
            axes = b.of(value)
            unify(axes[1 if index in (1, 2, 3, 7) else 2], make())
            unify(axes[0], directions)
    b.close(node, (0, 2), (2, 2))  # it sums over its own state, too
    states = (directions, x[1], hidden)
    return [(x[0], *states), states, states][: len(node.outputs)]


def _grouped_norm(b: _Builder, node: ir.Node, cell: rules.GroupedNorm) -> list[Axes]:
    x, reason = b.of(node.inputs[0]), WINDOW.format(op=node.op_type)
    channels = x[1].root.size
    groups = query.attribute(node, "num_groups", channels) if cell.groups is None else channels
    if channels is None:
        raise NotUnderstood
    group, inner = Space(groups), Space(channels // groups, "normalization is over it")
    unify(x[1], product(group, inner))
    for value in node.inputs[1:3]:
        (own,) = b.of(value)
        unify(own, x[1] if own.root.size == channels else group)
    _pin_all(x[2:], reason)
    return [x]


def _pinned(b: _Builder, node: ir.Node, cell: rules.Pinned) -> list[Axes]:
    x = b.of(node.inputs[0])
    if node.op_type == "Shape":
        known = query.sizes(node.outputs[0], dynamic=-1) or (-1,)
        for at in _axes_read(node, len(x)):
            x[at].pin(READ)
        return [tuple(space(size, READ) for size in known)]
    at = query.attribute(node, "axis", -1 if cell.axis is None else cell.axis) % len(x)
    behind = x[at:] if cell.axis is not None else x[at : at + 1]
    _pin_all(behind, f"{node.op_type}: {cell.reason}")
    for value in node.inputs[1:]:
        if value is not None:
            _broadcast([x, b.of(value)])
    return [x, *([(*x[:at], *(Space(1) for _ in behind))] * (len(node.outputs) - 1))]


def _axes_read(node: ir.Node, rank: int) -> set[int]:
    """The axes whose sizes somebody takes from a Shape, as far as that can be seen."""
    start = query.attribute(node, "start", 0)
    window = list(range(rank))[start : query.attribute(node, "end", rank)]
    read: set[int] = set()
    readers = query.consumers(node.outputs[0])
    for cast in [reader for reader in readers if reader.op_type == "Cast"]:
        readers += query.consumers(cast.outputs[0])
    for reader in [reader for reader in readers if reader.op_type != "Cast"]:
        numbers = [query.ints(value) for value in reader.inputs[1:]]
        if reader.op_type == "Gather" and numbers[0] is not None:
            read.update(window[i] for i in numbers[0])
        elif (
            reader.op_type == "Slice"
            and numbers[0] is not None
            and numbers[1] is not None
            and numbers[3:] in ([], [[1]])
        ):
            read.update(window[numbers[0][0] : numbers[1][0]])
        else:
            read.update(window)
    return read | (set(window) if node.outputs[0].is_graph_output() else set())


_KNOWN = frozenset({"LayerNormalization", "Softmax", "Shape"})
"""Operators whose row says `Pinned`; for others the barrier does."""

HANDLERS: Mapping[type, Callable[[_Builder, ir.Node, Any], list[Axes]]] = {
    rules.Weighted: _weighted,
    rules.Contracted: _contracted,
    rules.Elementwise: _elementwise,
    rules.PerChannel: _per_channel,
    rules.SpatialOnly: _spatial,
    rules.Joined: _joined,
    rules.Parted: _parted,
    rules.Reshaped: _reshaped,
    rules.Permuted: _permuted,
    rules.Expanded: _expanded,
    rules.Reduced: _reduced,
    rules.Shuffled: _shuffled,
    rules.Selected: _selected,
    rules.Recurrent: _recurrent,
    rules.GroupedNorm: _grouped_norm,
    rules.Pinned: _pinned,
}
