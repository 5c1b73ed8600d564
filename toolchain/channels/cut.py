"""Cutting a model: every parameter is sliced, and every number that tells a size is written anew, from the layout.

`separate` comes first: constants of equal content are one initializer in a cleaned-up model, and two layers that share
their zeros must not be cut together for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.channels.compute_ops import given
from toolchain.channels.groups import by_name, groups
from toolchain.channels.index_spaces import Space, kept_positions
from toolchain.channels.layout import Layout, layout
from toolchain.core.arrays import Index
from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array
from toolchain.graph import check, edit, query

Cuts = Mapping[str, Sequence[int]]
"""What is kept, by the group's name: sorted places. Groups that are not named stay whole."""

TIED = 1 << 16
"""Constants with more elements that several operators read are tied on purpose, as an embedding is to a classifier."""


def separate(model: ir.Model) -> ir.Model:
    """A clone in which every operator has small constants of its own."""
    clone = model.clone()
    names = edit.Names(clone.graph)
    for value in list(clone.graph.initializers.values()):
        uses = list(value.uses())
        array = query.constant(value)
        if array is None or array.size > TIED:
            continue
        for use in uses[1:]:
            copy = edit.add_constant(clone.graph, names.fresh(str(value.name)), array)
            use.node.replace_input_with(use.idx, copy)
    return clone


def keep_sets(model: ir.Model, found: Layout, cuts: Cuts) -> dict[Space, Index]:
    """The cuts by leaf.

    Raises:
        ModelError: a group is unknown or pinned, or the places are not sorted, distinct, inside and at least one.
    """
    known = by_name(groups(model, found))
    keep = {}
    for name, kept in cuts.items():
        if name not in known or not known[name].free:
            why = known[name].pins[0] if name in known else "there is no such group"
            raise ModelError(f"cannot be cut: {why}", where=f"group {name!r}", hint="see `toolchain inspect --groups`")
        array = np.asarray(kept, np.intp)
        if not len(array) or array[0] < 0 or array[-1] >= known[name].size or (np.diff(array) <= 0).any():
            what = f"what is kept must be sorted places of {known[name].size}, at least one"
            raise ModelError(what, where=f"group {name!r}")
        keep[known[name].leaf] = array
    return keep


def apply_cuts(model: ir.Model, cuts: Cuts) -> ir.Model:
    """A clone of a model (as :func:`separate` leaves it) without what is not kept.

    Raises:
        ModelError: as :func:`keep_sets`, or the result is not well formed.
    """
    clone = model.clone()
    found = layout(clone)
    keep = keep_sets(clone, found, cuts)
    before = {value: query.sizes(value, dynamic=-1) for value in found.axes}
    for value, axes in found.axes.items():
        kept = [kept_positions(axis, keep) if axis.root.size is not None else None for axis in axes]
        array = query.constant(value) if value.is_initializer() else None
        if array is not None and any(k is not None and len(k) < n for k, n in zip(kept, array.shape, strict=True)):
            for axis, index in enumerate(kept):
                if index is not None and len(index) < array.shape[axis]:
                    array = array.take(index, axis)
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        if value.shape is not None:
            sizes = zip(value.shape, kept, strict=True)
            value.shape = ir.Shape([d if k is None or not isinstance(d, int) else len(k) for d, k in sizes])
    names = edit.Names(clone.graph)
    for node in list(clone.graph):
        changed = any(v in before and query.sizes(v, dynamic=-1) != before[v] for v in (*node.inputs, *node.outputs))
        if changed and query.op(node) in RESIZED:
            RESIZED[query.op(node)](_Context(clone, names, found, keep), node)
    edit.remove_unused(clone)
    check.check(clone)
    return clone


class _Context:
    def __init__(self, model: ir.Model, names: edit.Names, found: Layout, keep: Mapping[Space, Index]) -> None:
        self.model, self.names, self.layout, self.keep = model, names, found, keep

    def give(self, node: ir.Node, index: int, numbers: Sequence[int]) -> None:
        """Make an integer constant input anew, of the type it had: operators want one type for all of theirs."""
        old = query.constant(node.inputs[index]) if len(node.inputs) > index else None
        array = np.array(numbers, np.int64 if old is None else old.dtype)
        name = self.names.fresh(f"{query.label(node)}_sizes")
        edit.set_input(node, index, edit.add_constant(self.model.graph, name, array))

    def kept(self, value: ir.Value | None, axis: int) -> Index:
        if value is None:
            raise ModelError("an input is missing", where="the layout")
        return kept_positions(self.layout.axes[value][axis], self.keep)


def _static(value: ir.Value) -> list[int]:
    return list(query.sizes(value, dynamic=-1) or ())


def _group(c: _Context, node: ir.Node) -> None:
    """Channels of the input over channels of one group, which the weight tells (Conv), or the bias (its transpose)."""
    group = query.attribute(node, "group", 1)
    if group == 1:
        return
    weight, x = _static(node.inputs[1]), _static(node.inputs[0])  # type: ignore[arg-type]
    out = _static(node.outputs[0])
    count = x[1] // weight[1] if node.op_type == "Conv" else out[1] // weight[1]
    node.attributes["group"] = ir.AttrInt64("group", count)


def _norm_groups(c: _Context, node: ir.Node) -> None:
    x = node.inputs[0]
    inner = c.layout.axes[x][1].root.size // node.attributes["num_groups"].as_int()  # type: ignore[index, operator]
    node.attributes["num_groups"] = ir.AttrInt64("num_groups", _static(x)[1] // inner)  # type: ignore[arg-type]


def _hidden(c: _Context, node: ir.Node) -> None:
    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", _static(node.inputs[2])[2])  # type: ignore[arg-type]


def _shape(c: _Context, node: ir.Node) -> None:
    """Sizes that are known are written; -1, 0, 1 and what the run tells stay."""
    index = 0 if node.op_type == "ConstantOfShape" else 1
    shape, new = node.inputs[index], _static(node.outputs[0])
    old = query.slots(shape)
    if old is None or shape is None or len(old) != len(new):
        return
    numbers = [then if then is None or then <= 1 or now < 0 else now for then, now in zip(old, new, strict=True)]
    if None not in numbers:
        c.give(node, index, [number for number in numbers if number is not None])
        return
    concat = shape.producer()
    if concat is None:
        return
    # Others may read the same shape for tensors that are not cut, so this node gets one of its own.
    parts, at = [], 0
    for part in concat.inputs:
        count = (query.sizes(part) or (1,))[0]
        if query.ints(part) is not None:
            name = c.names.fresh(f"{query.label(node)}_sizes")
            part = edit.add_constant(c.model.graph, name, np.array(numbers[at : at + count], np.int64))
        parts.append(part)
        at += count
    own = ir.node("Concat", parts, {"axis": 0}, name=c.names.fresh(f"{query.label(node)}_shape"))
    own.outputs[0].name, own.outputs[0].type = c.names.fresh(f"{own.name}_out"), shape.type
    own.outputs[0].shape = shape.shape
    c.model.graph.insert_before(node, own)
    edit.set_input(node, index, own.outputs[0])


def _split(c: _Context, node: ir.Node) -> None:
    at = query.attribute(node, "axis", 0)
    sizes = [_static(output)[at] for output in node.outputs]
    node.attributes.pop("num_outputs", None)
    if "split" in node.attributes or query.opset(c.model) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        c.give(node, 1, sizes)


def _slice(c: _Context, node: ir.Node) -> None:
    x = node.inputs[0]
    starts, ends = query.ints(node.inputs[1]), query.ints(node.inputs[2])
    if x is None or starts is None or ends is None:
        return
    rank = len(c.layout.axes[x])
    axes = query.ints(given(node, 3)) or list(range(len(starts)))
    steps = query.ints(given(node, 4)) or [1] * len(starts)
    for index, (at, step) in enumerate(zip(axes, steps, strict=True)):
        size = c.layout.axes[x][at % rank].root.size
        kept = c.kept(x, at % rank)
        if size is None or len(kept) == size:
            continue
        start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (starts[index], ends[index]))
        # In steps, whole rows of as many places as a step were cut, so that the first stays where it was in its row.
        bounds = (start, len(kept)) if step != 1 else (np.searchsorted(kept, start), np.searchsorted(kept, end))
        starts[index], ends[index] = map(int, bounds)
    c.give(node, 1, starts)
    c.give(node, 2, ends)


def _resize(c: _Context, node: ir.Node) -> None:
    sizes = query.ints(given(node, 3))
    if sizes is not None and len(sizes) == len(_static(node.outputs[0])):
        c.give(node, 3, [now if now >= 0 else then for then, now in zip(sizes, _static(node.outputs[0]), strict=True)])


RESIZED = {
    "Conv": _group,
    "ConvTranspose": _group,
    "GroupNormalization": _norm_groups,
    "LSTM": _hidden,
    "GRU": _hidden,
    "Reshape": _shape,
    "Expand": _shape,
    "ConstantOfShape": _shape,
    "Split": _split,
    "Slice": _slice,
    "Resize": _resize,
}
"""Operators that state a size themselves."""


def parameter_count(model: ir.Model) -> int:
    """Elements of all float constants."""
    return sum(_size(query.constant(value)) for value in model.graph.initializers.values() if query.is_float(value))


def _size(array: Array | None) -> int:
    return 0 if array is None else array.size
