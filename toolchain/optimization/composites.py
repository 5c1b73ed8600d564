"""Normalizations and activations that exporters wrote as several operators, brought to the form that is run as one.

    LayerNormalization   (x - μ) / sqrt(mean((x - μ)²) + ε) · γ + β,  μ = mean(x), over the last axes
    Gelu                 x (1 + erf(x / √2)) / 2

The first becomes the operator of that name, which exists since operator set 17. The second becomes the one form that
onnxruntime replaces by its own ``Gelu``: the standard operator exists only since operator set 20.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import edit, query

SQRT_2 = float(np.sqrt(2.0))
SQRT_2_TOLERANCE = 1e-4
"""Relative error of √2 in a file; exporters round it. Its number is kept."""


# ------------------------------------------------------------------------------------ LayerNormalization


@dataclass(frozen=True)
class _Normalization:
    """A normalization in parts.

    Attributes:
        source: the values that are normalized.
        axis: the first axis that the mean is taken over, counted from the front.
        epsilon: the number that is added to the variance.
        result: the node that computes the last part found.
        parts: all nodes of it.
        scale: γ, of the sizes of the last axes; None for 1.
        bias: β, of the same sizes; None for 0.
    """

    source: ir.Value
    axis: int
    epsilon: float
    result: ir.Node
    parts: frozenset[ir.Node]
    scale: F32 | None = None
    bias: F32 | None = None


def join_layer_normalization(model: ir.Model) -> None:
    """Replace the parts of a layer normalization over the last axes by the operator; needs operator set 17.

    The parts stay if another node reads one of them, or if the sizes of the last axes are not known.
    """
    if query.opset(model) < 17:
        return
    names = edit.Names(model.graph)
    for node in list(model.graph):
        found = _normalized(node) if query.op(node) == "Sqrt" else None
        if found is None:
            continue
        found = _with_bias(_with_scale(found))
        shape = _sizes_behind(found.source, found.axis)
        if shape is None or not _is_closed(found):
            continue
        scale = np.ones(shape, np.float32) if found.scale is None else found.scale
        name = query.label(found.result)
        inputs = [found.source, edit.add_constant(model.graph, names.fresh(f"{name}_scale"), scale)]
        if found.bias is not None:
            inputs.append(edit.add_constant(model.graph, names.fresh(f"{name}_bias"), found.bias))
        attributes = {"axis": found.axis - len(found.source.shape or ()), "epsilon": found.epsilon}
        edit.replace_node(found.result, ir.node("LayerNormalization", inputs, attributes, name=name))
    edit.remove_unused(model)


def _normalized(root: ir.Node) -> _Normalization | None:
    """The normalization whose deviation is the square root `root`, without γ and β; None if it is none."""
    added = _producer(root.inputs[0], "Add")
    variance, epsilon = (None, None) if added is None else _value_and_number(added)
    mean_square = _producer(variance, "ReduceMean")
    square = mean_square.inputs[0].producer() if mean_square is not None and mean_square.inputs[0] is not None else None
    centred = _centred(_squared(square)) if square is not None else None
    if added is None or epsilon is None or mean_square is None or square is None or centred is None:
        return None
    if _first_of_last_axes(mean_square) != centred.axis:
        return None
    parts = {root, added, mean_square, square, *centred.parts}
    for numerator, steps in _divisions(root):
        # A file may compute the same difference twice, once to be squared and once to be divided.
        divided = _centred(numerator)
        if divided is not None and divided.source is centred.source and divided.axis == centred.axis:
            all_parts = frozenset({*parts, *divided.parts, *steps})
            return _Normalization(centred.source, centred.axis, epsilon, steps[-1], all_parts)
    return None


@dataclass(frozen=True)
class _Centred:
    """A difference ``x - mean(x)``: x, the first axis of the mean, and the nodes that compute it."""

    source: ir.Value
    axis: int
    parts: tuple[ir.Node, ir.Node]


def _centred(value: ir.Value | None) -> _Centred | None:
    """Read `value` as a float difference from the mean over last axes of known sizes; None if it is none."""
    difference = _producer(value, "Sub")
    source = difference.inputs[0] if difference is not None else None
    mean = _producer(difference.inputs[1], "ReduceMean") if difference is not None else None
    if difference is None or source is None or mean is None or mean.inputs[0] is not source:
        return None
    axis = _first_of_last_axes(mean)
    if axis is None or not query.is_float(source) or _sizes_behind(source, axis) is None:
        return None
    return _Centred(source, axis, (difference, mean))


def _divisions(root: ir.Node) -> Iterator[tuple[ir.Value | None, tuple[ir.Node, ...]]]:
    """Values that are divided by the result of `root`, each with the nodes that divide it."""
    for reader in query.consumers(root.outputs[0]):
        if query.op(reader) == "Div" and reader.inputs[1] is root.outputs[0] and query.scalar(reader.inputs[0]) is None:
            yield reader.inputs[0], (reader,)
        elif query.op(reader) == "Reciprocal" or (query.op(reader) == "Div" and query.scalar(reader.inputs[0]) == 1):
            for product in query.consumers(reader.outputs[0]):
                if query.op(product) == "Mul":
                    yield _other(product, reader.outputs[0]), (reader, product)


def _with_scale(found: _Normalization) -> _Normalization:
    """Add γ, if a product with a constant follows."""
    node, scale = _next_with_constant(found, "Mul")
    if node is None:
        return found
    return _Normalization(found.source, found.axis, found.epsilon, node, found.parts | {node}, scale)


def _with_bias(found: _Normalization) -> _Normalization:
    """Add β, if a sum with a constant follows."""
    node, bias = _next_with_constant(found, "Add")
    if node is None:
        return found
    parts = found.parts | {node}
    return _Normalization(found.source, found.axis, found.epsilon, node, parts, found.scale, bias)


def _next_with_constant(found: _Normalization, op: str) -> tuple[ir.Node | None, F32 | None]:
    """The only reader of the last part and its constant, spread over the last axes; None if it is another operator."""
    value = found.result.outputs[0]
    node = query.sole_consumer(value)
    array = query.float_array(_other(node, value)) if node is not None and query.op(node) == op else None
    shape = _sizes_behind(found.source, found.axis)
    rank = query.rank(found.source) or 0
    if node is None or array is None or shape is None or array.ndim > rank:
        return None, None
    across = array.shape[max(array.ndim - len(shape), 0) :]
    if array.size != int(np.prod(across)):  # it differs between samples or positions
        return None, None
    try:
        return node, np.broadcast_to(array.reshape(across), shape).astype(np.float32)
    except ValueError:
        return None, None


def _is_closed(found: _Normalization) -> bool:
    """True if nothing else reads a part, except the result."""
    values = [output for part in found.parts if part is not found.result for output in part.outputs]
    read_inside = all(reader in found.parts for value in values for reader in query.consumers(value))
    return read_inside and not any(value.is_graph_output() for value in values)


def _squared(square: ir.Node) -> ir.Value | None:
    """The value that a node squares; None if it does something else."""
    if query.op(square) == "Pow" and query.scalar(square.inputs[1]) == 2:
        return square.inputs[0]
    return square.inputs[0] if query.op(square) == "Mul" and square.inputs[0] is square.inputs[1] else None


def _first_of_last_axes(mean: ir.Node) -> int | None:
    """The first axis of a mean over all axes from one to the last, which it keeps; None for other means."""
    rank = query.rank(mean.inputs[0]) if mean.inputs[0] is not None else None
    given = query.optional_input(mean, 1)
    axes = query.attribute(mean, "axes") if given is None else query.ints(given)
    if not axes or rank is None or not query.attribute(mean, "keepdims", 1):
        return None
    first = min(axis % rank for axis in axes)
    return first if sorted(axis % rank for axis in axes) == list(range(first, rank)) else None


def _sizes_behind(value: ir.Value, axis: int) -> tuple[int, ...] | None:
    """Sizes of the axes from `axis` on; None if one is dynamic."""
    sizes = (query.sizes(value, dynamic=-1) or ())[axis:]
    return None if -1 in sizes or not sizes else sizes


# -------------------------------------------------------------------------------------------------- Gelu


def normalize_gelu(model: ir.Model) -> None:
    """Write every Gelu by its parts as ``((x · (erf(x / √2) + 1)) · 0.5``, so that onnxruntime recognizes it."""
    names = edit.Names(model.graph)
    for erf in [node for node in model.graph if query.op(node) == "Erf"]:
        source, divisor = _divided_by_sqrt_2(erf.inputs[0])
        plus_one = query.sole_consumer(erf.outputs[0])
        if source is None or divisor is None or plus_one is None or query.op(plus_one) != "Add":
            continue
        if query.scalar(_other(plus_one, erf.outputs[0])) != 1:
            continue
        result = _gelu_product(plus_one.outputs[0], source)
        if result is None:
            continue
        name = query.label(result)
        root = edit.add_constant(model.graph, names.fresh(f"{name}_root"), np.array(divisor, np.float32))
        half = edit.add_constant(model.graph, names.fresh(f"{name}_half"), np.array(0.5, np.float32))
        inner = ir.node("Div", [source, root], name=names.fresh(f"{name}_inner"))
        product = ir.node("Mul", [source, plus_one.outputs[0]], name=names.fresh(f"{name}_product"))
        for node, place in ((inner, erf), (product, result)):
            node.outputs[0].name = names.fresh(f"{node.name}_out")
            node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
            model.graph.insert_before(place, node)
        erf.replace_input_with(0, inner.outputs[0])
        edit.replace_node(result, ir.node("Mul", [product.outputs[0], half], name=name))
    edit.remove_unused(model)


def _divided_by_sqrt_2(value: ir.Value | None) -> tuple[ir.Value | None, float | None]:
    """The value that is divided by √2 or multiplied by its reciprocal, and the divisor; None twice if there is none."""
    divided, product = _producer(value, "Div"), _producer(value, "Mul")
    if divided is not None:
        source, divisor = divided.inputs[0], query.scalar(divided.inputs[1])
    elif product is not None:
        source, factor = _value_and_number(product)
        divisor = 1 / factor if factor else None
    else:
        return None, None
    return (source, divisor) if divisor and abs(divisor / SQRT_2 - 1) <= SQRT_2_TOLERANCE else (None, None)


def _gelu_product(factor: ir.Value, source: ir.Value) -> ir.Node | None:
    """The node that computes ``factor · source / 2`` by products in any order, none of which is read otherwise."""
    value = factor
    for _ in range(2):
        reader = query.sole_consumer(value)
        if reader is None or query.op(reader) != "Mul":
            return None
        factors, value = list(_factors(reader, factor, source)), reader.outputs[0]
        if len(factors) == 3 and {factor, source, 0.5} == set(factors):
            return reader
    return None


def _factors(node: ir.Node, *leaves: ir.Value) -> Iterator[ir.Value | float]:
    """Factors of nested products, values and numbers. One of `leaves`, and a product read otherwise, is a factor."""
    for value in node.inputs:
        inner = None if value in leaves else _producer(value, "Mul")
        number = query.scalar(value)
        if number is not None:
            yield number
        elif inner is not None and value is not None and query.sole_consumer(value) is node:
            yield from _factors(inner, *leaves)
        elif value is not None:
            yield value


# ----------------------------------------------------------------------------------------------- helpers


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that computes `value`, if it is this operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and query.op(node) == op else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other input of a node with two inputs."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _value_and_number(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """The two inputs of a sum or product with a constant number, in this order; None twice for others."""
    for value, other in (node.inputs, reversed(node.inputs)):
        number = query.scalar(other)
        if number is not None and query.scalar(value) is None:
            return value, number
    return None, None
