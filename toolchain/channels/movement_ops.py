"""How operators that only move numbers tie index spaces: one handler for each *channels* cell, as in ``rows.py``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import prod

import onnx_ir as ir

from toolchain.channels.compute_ops import WINDOW, Axes, Ledger, NotUnderstoodError, given, pin_all, space
from toolchain.channels.index_spaces import Space, align, carve, product, total, unify
from toolchain.graph import query
from toolchain.ops import cells

STEPS = "{op} counts its places in steps"
REPEATED = "{op} repeats it so often"
COMPUTED = "{op} takes sizes that the model computes"
MEETS = "{op} joins it with an axis whose size is only known when the model runs"
FILLED = "{op} fills it with copies of its edge"


def joined(b: Ledger, node: ir.Node, cell: cells.Joined) -> list[Axes]:
    """Concat."""
    parts = [b.of(value) for value in node.inputs if value is not None]
    at = query.attribute(node, "axis", 0) % len(parts[0])
    for part in parts[1:]:
        for index, axis in enumerate(part):
            if index != at:
                unify(parts[0][index], axis)
    result = list(parts[0])
    result[at] = total(*(part[at] for part in parts))
    return [tuple(result)]


def parted(b: Ledger, node: ir.Node, cell: cells.Parted) -> list[Axes]:
    """Split, Slice and Pad."""
    return {"Split": _split, "Slice": _slice, "Pad": _pad}[node.op_type](b, node)


def _split(b: Ledger, node: ir.Node) -> list[Axes]:
    x = b.of(node.inputs[0])
    at = query.attribute(node, "axis", 0) % len(x)
    sizes = [(query.sizes(output, dynamic=-1) or ())[at : at + 1] for output in node.outputs]
    if any(not size or size[0] < 0 for size in sizes) or sum(size[0] for size in sizes) != x[at].root.size:
        raise NotUnderstoodError
    parts = carve(x[at], [size[0] for size in sizes])
    return [(*x[:at], part, *x[at + 1 :]) for part in parts]


def _slice(b: Ledger, node: ir.Node) -> list[Axes]:
    x = b.of(node.inputs[0])
    starts, ends = query.ints(node.inputs[1]), query.ints(node.inputs[2])
    if starts is None or ends is None:
        raise NotUnderstoodError(COMPUTED)
    axes = query.ints(given(node, 3)) or list(range(len(starts)))
    steps = query.ints(given(node, 4)) or [1] * len(starts)
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * len(x)
    result = list(x)
    for at, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = x[at].root.size
        if size is None:
            result[at] = space(known[at], MEETS.format(op=node.op_type))
            continue
        start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (start, end))
        if step == 1:
            result[at] = carve(x[at], [start, max(end - start, 0), size - max(end, start)])[1]
        elif step > 0 and size % step == 0 and start < step and len(range(start, end, step)) == size // step:
            result[at] = Space(size // step)  # of every step-th place, one
            unify(x[at], product(result[at], Space(step, STEPS.format(op=node.op_type))))
        else:
            x[at].pin(STEPS.format(op=node.op_type))
            result[at] = space(known[at], STEPS.format(op=node.op_type))
    return [tuple(result)]


def _pad(b: Ledger, node: ir.Node) -> list[Axes]:
    x, reason = b.of(node.inputs[0]), WINDOW.format(op="Pad")
    pads, axes = query.ints(given(node, 1)), query.ints(given(node, 3))
    if pads is None or (axes is None and given(node, 3) is not None):
        raise NotUnderstoodError(COMPUTED)
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
            x[at].pin(FILLED.format(op="Pad"))
        result[at] = total(Space(before, reason), x[at], Space(behind, reason))
    return [tuple(result)]


def reshaped(b: Ledger, node: ir.Node, cell: cells.Reshaped) -> list[Axes]:
    """Reshape and Flatten: two row-major products of the same places."""
    x = b.of(node.inputs[0])
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or (node.op_type == "Reshape" and not _stated(node.inputs[1], known)):
        raise NotUnderstoodError(COMPUTED)
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
        _align_right(list(left), list(right), tail, MEETS.format(op=node.op_type))
    return [tuple(result)]


def _stated(shape: ir.Value | None, known: Sequence[int]) -> bool:
    """Whether a shape's numbers can be written anew: it is a constant, or joined from constants and what the run tells.

    What the run tells may not be the size of an axis that is known: then it is not seen where it comes from.
    """
    slots = query.slots(shape)
    return (
        slots is not None
        and len(slots) == len(known)
        and all(slot is not None or size < 0 for slot, size in zip(slots, known, strict=True))
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


def _align_right(left: list[Space], right: list[Space], tail: tuple[list[Space], list[Space]], reason: str) -> None:
    """Only the last axes are comparable: equal products there are aligned, the rest is pinned."""
    for count in range(len(tail[0]), 0, -1):
        for other in range(len(tail[1]), 0, -1):
            if _static_size(tail[0][-count:]) == _static_size(tail[1][-other:]):
                align(tail[0][-count:], tail[1][-other:])
                pin_all([*left[:-count], *right[:-other]], reason)
                return
    pin_all([*left, *right], reason)


def permuted(b: Ledger, node: ir.Node, cell: cells.Permuted) -> list[Axes]:
    """Transpose, Squeeze and Unsqueeze."""
    x = b.of(node.inputs[0])
    if node.op_type == "Transpose":
        return [tuple(x[i] for i in query.attribute(node, "perm", list(reversed(range(len(x))))))]
    axes = query.attribute(node, "axes") or query.ints(given(node, 1))
    if node.op_type == "Squeeze":
        gone = [a % len(x) for a in axes] if axes is not None else [i for i, a in enumerate(x) if a.root.size == 1]
        return [tuple(axis for i, axis in enumerate(x) if i not in gone)]
    if axes is None:
        raise NotUnderstoodError(COMPUTED)
    rest = iter(x)
    rank = len(x) + len(axes)
    new = {a % rank for a in axes}
    return [tuple(Space(1) if i in new else next(rest) for i in range(rank))]


def expanded(b: Ledger, node: ir.Node, cell: cells.Expanded) -> list[Axes]:
    """Expand, ConstantOfShape and Tile: copies of what is there are places of their own."""
    if node.op_type == "Tile":
        return _tile(b, node)
    filled = node.op_type == "ConstantOfShape"
    x = () if filled else b.of(node.inputs[0])
    known = query.sizes(node.outputs[0], dynamic=-1)
    if known is None or not _stated(node.inputs[0 if filled else 1], known):
        raise NotUnderstoodError(COMPUTED)
    result = [space(size) for size in known]
    for back, axis in enumerate(reversed(x), start=1):
        if axis.root.size != 1:
            result[-back] = axis
    return [tuple(result)]


def _tile(b: Ledger, node: ir.Node) -> list[Axes]:
    x, repeats = b.of(node.inputs[0]), query.ints(node.inputs[1])
    if repeats is None:
        raise NotUnderstoodError(COMPUTED)
    pairs = zip(x, repeats, strict=True)
    return [
        tuple(product(Space(count, REPEATED.format(op="Tile")), axis) if count != 1 else axis for axis, count in pairs)
    ]


def shuffled(b: Ledger, node: ir.Node, cell: cells.Shuffled) -> list[Axes]:
    """DepthToSpace and SpaceToDepth: the squares of pixels stay, the channels that each of them has are free."""
    x, block = b.of(node.inputs[0]), query.attribute(node, "blocksize", 1)
    known = query.sizes(node.outputs[0], dynamic=-1) or (-1,) * 4
    channels, reason = x[1].root.size, WINDOW.format(op=node.op_type)
    if channels is None:
        raise NotUnderstoodError
    squares = Space(block * block, reason)
    pin_all(x[2:], reason)
    if node.op_type == "SpaceToDepth":
        result = product(squares, x[1])
    else:
        result = Space(channels // (block * block))
        unify(x[1], product(squares, result) if _squares_first(node) else product(result, squares))
    return [(x[0], result, *(space(size, reason) for size in known[2:]))]


def _squares_first(node: ir.Node) -> bool:
    return bool(query.attribute(node, "mode", "DCR") == "DCR")
