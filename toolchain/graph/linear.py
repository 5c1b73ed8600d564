"""Linear layers over more than two axes, in the form that has an integer kernel with a bias.

    x W + b  over [..., K]   =   reshape( reshape(x, [-1, K]) W + b )

A ``MatMul`` and an ``Add`` of a vector are two passes, and no int8 kernel takes the bias. Where all sizes are known
onnxruntime joins them into a float ``Gemm`` before it looks for integers, so that what was planned as an integer product
runs in float on weights that are dequantized at every run. As a ``Gemm`` from the beginning it is one integer kernel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph import edit, query

Floats = npt.NDArray[np.float32]

UNARY = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu"})
"""Element by element, so that they may stand in front of a reshape as well as behind it."""


def scale_into_linear(model: ir.Model) -> None:
    """``Mul`` of a constant vector behind ``MatMul``, its ``Add`` or ``Gemm``: weight and bias take it in."""
    names = edit.Names(model.graph)
    for node in list(model.graph):
        scale = query.float_array(node.inputs[1]) if query.op(node) == "Mul" else None
        if scale is None:
            continue
        before = _sole_producer(node)
        product = _sole_producer(before) if before is not None and before.op_type == "Add" else before
        if before is None or product is None or product.op_type not in ("MatMul", "Gemm"):
            continue
        weight = query.float_array(product.inputs[1])
        if weight is None or weight.ndim != 2:
            continue
        across = 0 if query.attribute(product, "transB", 0) else 1
        vector = _vector(scale, weight.shape[across], query.rank(node.outputs[0]))
        holder, at = (before, 1) if before is not product else (product, 2)
        bias = holder.inputs[at] if len(holder.inputs) > at else None
        added = _vector(query.float_array(bias), weight.shape[across], query.rank(node.outputs[0]))
        if vector is None or (bias is not None and added is None):
            continue
        _set(model, product, 1, weight * (vector if across else vector[:, None]), names)
        if added is not None:
            _set(model, holder, at, added * vector, names)
        edit.bypass(node)


def linear_to_gemm(model: ir.Model) -> None:
    """``MatMul`` and ``Add`` of constants over three axes and more become ``Reshape``, ``Gemm``, ``Reshape``.

    One axis may be open. What follows element by element moves in front of the last ``Reshape``, where a product
    absorbs it.
    """
    names = edit.Names(model.graph)
    flat: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        before = _sole_producer(node) if query.op(node) == "Add" else None
        if before is None or before.op_type != "MatMul" or before.inputs[0] is None:
            continue
        source, weight = before.inputs[0], query.float_array(before.inputs[1])
        rank = query.rank(source)
        if weight is None or weight.ndim != 2 or rank is None or rank < 3 or not query.is_float(source):
            continue
        bias = _vector(query.float_array(node.inputs[1]), weight.shape[1], rank)
        shape = _target(source, weight.shape[1])
        if bias is None or shape is None:
            continue
        rows = _rows(model, source, weight.shape[0], before, names, flat)
        constant = edit.add_constant(model.graph, names.fresh(f"{query.label(node)}_bias"), bias)
        gemm = ir.node("Gemm", [rows, before.inputs[1], constant], name=names.fresh(f"{query.label(before)}_gemm"))
        last = _place(model, gemm, f"{node.outputs[0].name}_rows", [None, weight.shape[1]], before, names)
        tail = node
        while (follower := query.sole_consumer(tail.outputs[0])) is not None and _is_unary(follower, tail.outputs[0]):
            moved = ir.node(follower.op_type, [last, *follower.inputs[1:]], name=follower.name)
            moved.attributes.update(follower.attributes)
            follower.name = names.fresh(f"{query.label(follower)}_shape")
            last = _place(model, moved, f"{follower.outputs[0].name}_rows", [None, weight.shape[1]], follower, names)
            tail = follower
        target = edit.add_constant(model.graph, names.fresh(f"{query.label(tail)}_sizes"), shape)
        edit.replace_node(tail, ir.node("Reshape", [last, target], name=names.fresh(f"{query.label(node)}_shape")))
    edit.remove_unused(model)


def merge_reshapes(model: ir.Model) -> None:
    """Of two ``Reshape`` in a row only the second counts, where none of its sizes is copied from what it reads."""
    for node in list(model.graph):
        sizes = query.ints(node.inputs[1]) if query.op(node) == "Reshape" else None
        first = node.inputs[0].producer() if sizes and node.inputs[0] is not None else None
        if sizes is not None and 0 not in sizes and first is not None and query.op(first) == "Reshape":
            node.replace_input_with(0, first.inputs[0])


def _sole_producer(node: ir.Node) -> ir.Node | None:
    """Of the first input, where nothing else reads it."""
    value = node.inputs[0] if node.inputs else None
    producer = value.producer() if value is not None and query.sole_consumer(value) is node else None
    return producer if producer is not None and producer.domain == "" else None


def _vector(array: Floats | None, size: int, rank: int | None) -> Floats | None:
    """One number for each of `size` columns, where a constant added to or multiplied with `rank` axes means that."""
    if array is None or rank is None or array.ndim > rank or array.size not in (1, size):
        return None
    if array.size == size and array.shape[-1:] not in ((size,), ()):
        return None
    return np.broadcast_to(array.reshape(-1), (size,)).astype(np.float32)


def _target(source: ir.Value, columns: int) -> npt.NDArray[np.int64] | None:
    """The sizes of `source` with other columns, -1 for the one that may be open; None where several are."""
    sizes = query.sizes(source, dynamic=-1)
    if sizes is None or sizes[:-1].count(-1) > 1 or 0 in sizes:
        return None
    return np.array([*sizes[:-1], columns], np.int64)


def _rows(
    model: ir.Model, source: ir.Value, width: int, before: ir.Node, names: edit.Names, flat: dict[ir.Value, ir.Value]
) -> ir.Value:
    """`source` as a matrix of its last axis, made once for all its readers."""
    if source not in flat:
        target = edit.add_constant(model.graph, names.fresh(f"{source.name}_sizes"), np.array([-1, width], np.int64))
        node = ir.node("Reshape", [source, target], name=names.fresh(f"{query.label(before)}_rows"))
        flat[source] = _place(model, node, f"{source.name}_rows", [None, width], before, names)
    return flat[source]


def _place(
    model: ir.Model, node: ir.Node, name: str, shape: list[int | None], before: ir.Node, names: edit.Names
) -> ir.Value:
    """Insert `node` in front of `before`; its output."""
    output = node.outputs[0]
    output.name, output.type, output.shape = names.fresh(name), ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    model.graph.insert_before(before, node)
    return output


def _is_unary(node: ir.Node, value: ir.Value) -> bool:
    return query.op(node) in UNARY and node.inputs[0] is value


def _set(model: ir.Model, node: ir.Node, index: int, array: Floats, names: edit.Names) -> None:
    """Give one node a constant of its own; others may share the old one."""
    name = names.fresh(f"{query.label(node)}_scaled")
    edit.set_input(node, index, edit.add_constant(model.graph, name, np.asarray(array, np.float32)))
