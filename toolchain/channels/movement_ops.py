"""Index spaces of operators that only move numbers: one handler for each *channels* cell of the operator table.

The handlers have the form of those in ``compute_ops.py``. A Reshape reads the same positions as two row-major products
and takes their common refinement (``index_spaces.py``). If the size of an axis is only known at run time, there are two
places where axes can still be unified: equal axes at the front, and axes of known sizes at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import prod

import onnx_ir as ir

from toolchain.channels.compute_ops import NEW_POSITIONS, Axes, LayoutBuilder, NotUnderstoodError, pin_all, space
from toolchain.channels.index_spaces import Space, concatenation, product, split, unify, unify_products
from toolchain.graph import query
from toolchain.ops import cells

STEPS = "{op} counts its positions in steps"
REPEATED = "it counts the copies that {op} makes"
COMPUTED_SIZES = "{op} takes sizes that the model computes"
JOINS_RUN_TIME_AXIS = "{op} joins it with an axis whose size is only known when the model runs"
EDGE_COPIES = "{op} fills it with copies of its edge"


def joined(builder: LayoutBuilder, node: ir.Node, cell: cells.Joined) -> list[Axes]:
    """Concat: the concatenated axes follow each other; all other axes are the same."""
    parts = [builder.axes_of(value) for value in node.inputs if value is not None]
    at = query.attribute(node, "axis", 0) % len(parts[0])
    for part in parts[1:]:
        for index, axis in enumerate(part):
            if index != at:
                unify(parts[0][index], axis)
    result = list(parts[0])
    result[at] = concatenation(*(part[at] for part in parts))
    return [tuple(result)]


def parted(builder: LayoutBuilder, node: ir.Node, cell: cells.Parted) -> list[Axes]:
    """Split and Slice: parts of an axis. Pad: the axis between pinned padding."""
    return {"Split": _split, "Slice": _slice, "Pad": _pad}[node.op_type](builder, node)


def _split(builder: LayoutBuilder, node: ir.Node) -> list[Axes]:
    x = builder.axes_of(node.inputs[0])
    at = query.attribute(node, "axis", 0) % len(x)
    sizes = [(query.sizes(output, dynamic=-1) or ())[at : at + 1] for output in node.outputs]
    if any(not size or size[0] < 0 for size in sizes) or sum(size[0] for size in sizes) != x[at].root.size:
        raise NotUnderstoodError
    parts = split(x[at], [size[0] for size in sizes])
    return [(*x[:at], part, *x[at + 1 :]) for part in parts]


def _slice(builder: LayoutBuilder, node: ir.Node) -> list[Axes]:
    x = builder.axes_of(node.inputs[0])
    starts, ends = query.ints(node.inputs[1]), query.ints(node.inputs[2])
    if starts is None or ends is None:
        raise NotUnderstoodError(COMPUTED_SIZES)
    axes = query.ints(query.optional_input(node, 3)) or list(range(len(starts)))
    steps = query.ints(query.optional_input(node, 4)) or [1] * len(starts)
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * len(x)
    result = list(x)
    for at, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x[at].root.size
        if size is None:
            result[at] = space(known[at], JOINS_RUN_TIME_AXIS.format(op=node.op_type))
            continue
        start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (start, end))
        if step == 1:
            result[at] = split(x[at], [start, max(end - start, 0), size - max(end, start)])[1]
        elif step > 0 and size % step == 0 and start < step and len(range(start, end, step)) == size // step:
            result[at] = Space(size // step)  # one of every `step` positions
            unify(x[at], product(result[at], Space(step, STEPS.format(op=node.op_type))))
        else:
            x[at].pin(STEPS.format(op=node.op_type))
            result[at] = space(known[at], STEPS.format(op=node.op_type))
    return [tuple(result)]


def _pad(builder: LayoutBuilder, node: ir.Node) -> list[Axes]:
    x, reason = builder.axes_of(node.inputs[0]), NEW_POSITIONS.format(op="Pad")
    pads, axes = query.ints(query.optional_input(node, 1)), query.ints(query.optional_input(node, 3))
    if pads is None or (axes is None and query.optional_input(node, 3) is not None):
        raise NotUnderstoodError(COMPUTED_SIZES)
    axes = axes or list(range(len(x)))
    result = list(x)
    for at, before, behind in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        size = x[at].root.size
        if not before and not behind:
            continue
        if before < 0 or behind < 0 or size is None:
            x[at].pin(reason)
            result[at] = space(-1 if size is None else size + before + behind, reason)
            continue
        if query.attribute(node, "mode", "constant") != "constant":
            x[at].pin(EDGE_COPIES.format(op="Pad"))
        result[at] = concatenation(Space(before, reason), x[at], Space(behind, reason))
    return [tuple(result)]


def reshaped(builder: LayoutBuilder, node: ir.Node, cell: cells.Reshaped) -> list[Axes]:
    """Reshape and Flatten: two row-major products of the same positions."""
    x = builder.axes_of(node.inputs[0])
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or (node.op_type == "Reshape" and not _can_be_written(node.inputs[1], known)):
        raise NotUnderstoodError(COMPUTED_SIZES)
    result = [space(size) for size in known]
    count = _equal_axes(x, result, _run_time_names(node.inputs[0]), _run_time_names(node.outputs[0]))
    for source, target in zip(x[:count], result[:count], strict=True):
        if source.root.size is not None:
            unify(source, target)
    left, right = x[count:], result[count:]
    if all(axis.root.size is not None for axis in (*left, *right)):
        unify_products(left, right)
    else:
        _unify_last_axes(left, right, JOINS_RUN_TIME_AXIS.format(op=node.op_type))
    return [tuple(result)]


def _equal_axes(
    left: Sequence[Space],
    right: Sequence[Space],
    left_symbols: Sequence[str | None],
    right_symbols: Sequence[str | None],
) -> int:
    """Count the axes at the front that are the same on both sides of a Reshape.

    Two axes of known sizes are the same if the sizes are equal. Two axes of run-time sizes are the same if they have
    the same symbol, or if they are the only such axes left and the known sizes beside them have the same product.
    """
    pairs = zip(left, right, left_symbols, right_symbols, strict=False)
    for at, (source, target, left_symbol, right_symbol) in enumerate(pairs):
        if source.root.size is None and target.root.size is None:
            sides = left[at:], right[at:]
            alone = all(sum(axis.root.size is None for axis in side) == 1 for side in sides)
            same_rest = _known_size(sides[0]) == _known_size(sides[1])
            if left_symbol != right_symbol and not (alone and same_rest):
                return at
        elif source.root.size is None or source.root.size != target.root.size:
            return at
    return min(len(left), len(right))


def _can_be_written(shape: ir.Value | None, known: Sequence[int]) -> bool:
    """True if new sizes can be written into a shape: it is a constant, or a Concat of constants and run-time sizes.

    A run-time size must not be that of an axis whose size is known: it would not follow when that axis is cut.
    """
    numbers = query.shape_numbers(shape)
    return (
        numbers is not None
        and len(numbers) == len(known)
        and all(number is not None or size < 0 for number, size in zip(numbers, known, strict=True))
    )


def _run_time_names(value: ir.Value | None) -> list[str | None]:
    """Name the run-time size of each axis, with a unique name where it has none; None for a known size."""
    shape = value.shape if value is not None and value.shape is not None else ()
    return [None if isinstance(d, int) else (d.value or f"{id(d)}") for d in shape]


def _known_size(axes: Iterable[Space]) -> int:
    return prod(axis.root.size for axis in axes if axis.root.size is not None)


def _unify_last_axes(left: Sequence[Space], right: Sequence[Space], reason: str) -> None:
    """Unify the longest products of known last axes that have the same size, and pin the axes before them."""
    for m in range(_known_at_end(left), 0, -1):
        for n in range(_known_at_end(right), 0, -1):
            if _known_size(left[-m:]) == _known_size(right[-n:]):
                unify_products(left[-m:], right[-n:])
                pin_all([*left[:-m], *right[:-n]], reason)
                return
    pin_all([*left, *right], reason)


def _known_at_end(axes: Sequence[Space]) -> int:
    return sum(1 for _ in takewhile(lambda axis: axis.root.size is not None, reversed(axes)))


def permuted(builder: LayoutBuilder, node: ir.Node, cell: cells.Permuted) -> list[Axes]:
    """Transpose, Squeeze and Unsqueeze: axes move, vanish or appear with size 1."""
    x = builder.axes_of(node.inputs[0])
    if node.op_type == "Transpose":
        return [tuple(x[i] for i in query.attribute(node, "perm", list(reversed(range(len(x))))))]
    axes = query.attribute(node, "axes") or query.ints(query.optional_input(node, 1))
    if node.op_type == "Squeeze":
        gone = [a % len(x) for a in axes] if axes is not None else [i for i, a in enumerate(x) if a.root.size == 1]
        return [tuple(axis for i, axis in enumerate(x) if i not in gone)]
    if axes is None:
        raise NotUnderstoodError(COMPUTED_SIZES)
    rest = iter(x)
    rank = len(x) + len(axes)
    new = {a % rank for a in axes}
    return [tuple(Space(1) if i in new else next(rest) for i in range(rank))]


def expanded(builder: LayoutBuilder, node: ir.Node, cell: cells.Expanded) -> list[Axes]:
    """Expand, ConstantOfShape and Tile: copies have positions of their own."""
    if node.op_type == "Tile":
        return _tile(builder, node)
    filled = node.op_type == "ConstantOfShape"
    x = () if filled else builder.axes_of(node.inputs[0])
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or not _can_be_written(node.inputs[0 if filled else 1], known):
        raise NotUnderstoodError(COMPUTED_SIZES)
    result = [space(size) for size in known]
    for back, axis in enumerate(reversed(x), start=1):
        if axis.root.size != 1:
            result[-back] = axis
    return [tuple(result)]


def _tile(builder: LayoutBuilder, node: ir.Node) -> list[Axes]:
    x, repeats = builder.axes_of(node.inputs[0]), query.ints(node.inputs[1])
    if repeats is None:
        raise NotUnderstoodError(COMPUTED_SIZES)
    pairs = zip(x, repeats, strict=True)
    return [
        tuple(product(Space(count, REPEATED.format(op="Tile")), axis) if count != 1 else axis for axis, count in pairs)
    ]


def shuffled(builder: LayoutBuilder, node: ir.Node, cell: cells.Shuffled) -> list[Axes]:
    """DepthToSpace and SpaceToDepth: the pixels of a block are pinned, the channels of each pixel are free."""
    x, block = builder.axes_of(node.inputs[0]), query.attribute(node, "blocksize", 1)
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * 4
    channels, reason = x[1].root.size, NEW_POSITIONS.format(op=node.op_type)
    if channels is None:
        raise NotUnderstoodError
    pixels = Space(block * block, reason)
    pin_all(x[2:], reason)
    if node.op_type == "SpaceToDepth":
        result = product(pixels, x[1])
    else:
        result = Space(channels // (block * block))
        pixels_first = query.attribute(node, "mode", "DCR") == "DCR"
        unify(x[1], product(pixels, result) if pixels_first else product(result, pixels))
    return [(x[0], result, *(space(size, reason) for size in known[2:]))]
