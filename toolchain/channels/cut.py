"""Cutting of a model: every parameter is sliced, and every number that states a size is updated, from the layout.

`separate` comes first: in a cleaned-up model, constants of equal content are one initializer, and two layers must not
be cut together only because both have a constant of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.channels.groups import by_name, groups
from toolchain.channels.index_spaces import Space, kept_positions
from toolchain.channels.layout import Layout, layout
from toolchain.core.arrays import Index
from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array
from toolchain.graph import check, edit, query

Cuts = Mapping[str, Sequence[int]]
"""Sorted positions that are kept, by name of the group. Groups without an entry stay whole."""

SHARED_ELEMENTS = 1 << 16
"""Number of elements above which a constant with several readers is shared on purpose (embedding and classifier)."""


def separate(model: ir.Model) -> ir.Model:
    """Give every operator its own small constants, in a clone."""
    clone = model.clone()
    names = edit.Names(clone.graph)
    for value in list(clone.graph.initializers.values()):
        uses = list(value.uses())
        array = query.constant(value)
        if array is None or array.size > SHARED_ELEMENTS:
            continue
        for use in uses[1:]:
            copy = edit.add_constant(clone.graph, names.fresh(str(value.name)), array)
            use.node.replace_input_with(use.idx, copy)
    return clone


def keep_sets(model: ir.Model, model_layout: Layout, cuts: Cuts) -> dict[Space, Index]:
    """Return the kept positions of every leaf that is cut.

    Raises:
        ModelError: a group is unknown or pinned, or its positions are none, unsorted, repeated or too large.
    """
    known = by_name(groups(model, model_layout))
    keep = {}
    for name, kept in cuts.items():
        if name not in known or not known[name].free:
            why = known[name].pins[0] if name in known else "there is no such group"
            raise ModelError(f"cannot be cut: {why}", where=f"group {name!r}", hint="see `toolchain inspect --groups`")
        array = np.asarray(kept, np.intp)
        if not len(array) or array[0] < 0 or array[-1] >= known[name].size or (np.diff(array) <= 0).any():
            what = f"the channels to keep must be sorted numbers below {known[name].size}, at least one"
            raise ModelError(what, where=f"group {name!r}")
        keep[known[name].leaf] = array
    return keep


def apply_cuts(model: ir.Model, cuts: Cuts) -> ir.Model:
    """Cut a clone of a model, so that only the kept positions are left.

    Args:
        model: a model as :func:`separate` returns it.
        cuts: the kept positions.

    Raises:
        ModelError: see :func:`keep_sets`; or the result is not well formed.
    """
    clone = model.clone()
    model_layout = layout(clone)
    keep = keep_sets(clone, model_layout, cuts)
    before = {value: query.sizes(value, dynamic=-1) for value in model_layout.axes}
    for value, axes in model_layout.axes.items():
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
        if changed and query.op(node) in SIZE_WRITERS:
            SIZE_WRITERS[query.op(node)](_SizeWriter(clone, names, model_layout, keep), node)
    edit.remove_unused(clone)
    check.check(clone)
    return clone


class _SizeWriter:
    """Writes sizes into the nodes of a cut model, from the layout of the model before the cut."""

    def __init__(self, model: ir.Model, names: edit.Names, model_layout: Layout, keep: Mapping[Space, Index]) -> None:
        self.model, self.names, self.layout, self.keep = model, names, model_layout, keep

    def write(self, node: ir.Node, index: int, numbers: Sequence[int]) -> None:
        """Replace an integer constant input. It keeps its type, since all such inputs of an operator need one type."""
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


def _group(writer: _SizeWriter, node: ir.Node) -> None:
    """Set the number of groups: channels of the input (of the output for ConvTranspose) over those of one group."""
    group = query.attribute(node, "group", 1)
    if group == 1:
        return
    weight, x = _static(node.inputs[1]), _static(node.inputs[0])  # type: ignore[arg-type]
    out = _static(node.outputs[0])
    count = x[1] // weight[1] if node.op_type == "Conv" else out[1] // weight[1]
    node.attributes["group"] = ir.AttrInt64("group", count)


def _norm_groups(writer: _SizeWriter, node: ir.Node) -> None:
    x = node.inputs[0]
    inner = writer.layout.axes[x][1].root.size // node.attributes["num_groups"].as_int()  # type: ignore[index, operator]
    node.attributes["num_groups"] = ir.AttrInt64("num_groups", _static(x)[1] // inner)  # type: ignore[arg-type]


def _hidden(writer: _SizeWriter, node: ir.Node) -> None:
    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", _static(node.inputs[2])[2])  # type: ignore[arg-type]


def _shape(writer: _SizeWriter, node: ir.Node) -> None:
    """Write known sizes; -1, 0, 1 and sizes computed at run time stay."""
    index = 0 if node.op_type == "ConstantOfShape" else 1
    shape, new = node.inputs[index], _static(node.outputs[0])
    old = query.shape_numbers(shape)
    if old is None or shape is None or len(old) != len(new):
        return
    numbers = [then if then is None or then <= 1 or now < 0 else now for then, now in zip(old, new, strict=True)]
    if None not in numbers:
        writer.write(node, index, [number for number in numbers if number is not None])
        return
    concat = shape.producer()
    if concat is None:
        return
    # Other nodes may read the same shape for tensors that are not cut, so this node gets its own.
    parts, at = [], 0
    for part in concat.inputs:
        count = (query.sizes(part) or (1,))[0]
        if query.ints(part) is not None:
            name = writer.names.fresh(f"{query.label(node)}_sizes")
            part = edit.add_constant(writer.model.graph, name, np.array(numbers[at : at + count], np.int64))
        parts.append(part)
        at += count
    own = ir.node("Concat", parts, {"axis": 0}, name=writer.names.fresh(f"{query.label(node)}_shape"))
    own.outputs[0].name, own.outputs[0].type = writer.names.fresh(f"{own.name}_out"), shape.type
    own.outputs[0].shape = shape.shape
    writer.model.graph.insert_before(node, own)
    edit.set_input(node, index, own.outputs[0])


def _split(writer: _SizeWriter, node: ir.Node) -> None:
    at = query.attribute(node, "axis", 0)
    sizes = [_static(output)[at] for output in node.outputs]
    node.attributes.pop("num_outputs", None)
    if "split" in node.attributes or query.opset(writer.model) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        writer.write(node, 1, sizes)


def _slice(writer: _SizeWriter, node: ir.Node) -> None:
    x = node.inputs[0]
    starts, ends = query.ints(node.inputs[1]), query.ints(node.inputs[2])
    if x is None or starts is None or ends is None:
        return
    rank = len(writer.layout.axes[x])
    axes = query.ints(query.optional_input(node, 3)) or list(range(len(starts)))
    steps = query.ints(query.optional_input(node, 4)) or [1] * len(starts)
    for index, (at, step) in enumerate(zip(axes, steps, strict=True)):
        size = writer.layout.axes[x][at % rank].root.size
        kept = writer.kept(x, at % rank)
        if size is None or len(kept) == size:
            continue
        start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (starts[index], ends[index]))
        # With a step, only whole rows of `step` positions were cut, so the first stays at its place in the row.
        bounds = (start, len(kept)) if step != 1 else (np.searchsorted(kept, start), np.searchsorted(kept, end))
        starts[index], ends[index] = map(int, bounds)
    writer.write(node, 1, starts)
    writer.write(node, 2, ends)


def _resize(writer: _SizeWriter, node: ir.Node) -> None:
    sizes = query.ints(query.optional_input(node, 3))
    if sizes is not None and len(sizes) == len(_static(node.outputs[0])):
        new = zip(sizes, _static(node.outputs[0]), strict=True)
        writer.write(node, 3, [now if now >= 0 else then for then, now in new])


SIZE_WRITERS = {
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
"""For every operator that states a size in an attribute or input, the function that updates it."""


def parameter_count(model: ir.Model) -> int:
    """Number of elements of all float constants."""
    return sum(_size(query.constant(value)) for value in model.graph.initializers.values() if query.is_float(value))


def _size(array: Array | None) -> int:
    return 0 if array is None else array.size
