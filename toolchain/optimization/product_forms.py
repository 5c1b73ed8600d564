"""Products in the forms that have int8 kernels: an activation times a constant matrix, and one bias per channel.

Where a product is of another form but computes the same, it is rewritten:

    α x W + β c        =  x (α W) + (β c)                   Gemm
    W x  over [K, N]   =  conv1x1(x) with K channels        MatMul or Gemm with the constant on the left
    Einsum             =  a product of matrices, where every axis is a row, a column or summed over
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import edit, query
from toolchain.optimization.share_constants import SMALL_BYTES

POINTWISE_OPERATORS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Abs", "Neg"}
    | {"Sqrt", "Exp", "Log", "Add", "Sub", "Mul", "Div", "Pow"}
)
"""Operators on single elements; an axis of size 1 in front of all others changes nothing for them."""

# -------------------------------------------------------------------------------------------------- Gemm


def matmul_and_bias_to_gemm(model: ir.Model) -> None:
    """Replace a ``MatMul`` of a matrix and a constant, and the ``Add`` of a constant row or number, by a ``Gemm``."""
    names = edit.Names(model.graph)
    for add in [node for node in model.graph if query.op(node) == "Add"]:
        for product_value, bias in (add.inputs, reversed(add.inputs)):
            product = product_value.producer() if product_value is not None else None
            if product is None or query.op(product) != "MatMul" or query.sole_consumer(product.outputs[0]) is not add:
                continue
            source, weight = product.inputs[0], query.float_array(product.inputs[1])
            if source is None or query.rank(source) != 2 or weight is None or weight.ndim != 2:
                continue
            row = as_row(query.float_array(bias), weight.shape[1])
            if row is None:
                continue
            constant = edit.add_constant(model.graph, names.fresh(f"{query.label(add)}_bias"), row)
            edit.replace_node(add, ir.node("Gemm", [source, product.inputs[1], constant], name=query.label(product)))
            break
    edit.remove_unused(model)


def fold_gemm_factors(model: ir.Model) -> None:
    """Fold ``alpha`` and ``beta`` of a ``Gemm`` into its constants, and make its bias one number per column."""
    names = edit.Names(model.graph)
    for node in [node for node in model.graph if query.op(node) == "Gemm"]:
        weight, bias = query.float_array(node.inputs[1]), query.optional_input(node, 2)
        alpha, beta = (np.float32(query.attribute(node, key, 1.0)) for key in ("alpha", "beta"))
        if weight is None:
            continue
        if alpha != 1 and may_change(node.inputs[1], node):
            _set(model, names, node, 1, weight * alpha)
            node.attributes.pop("alpha")
        columns = weight.shape[0 if query.attribute(node, "transB", 0) else 1]
        row = as_row(query.float_array(bias), columns)
        if bias is None:
            node.attributes.pop("beta", None)
        elif row is not None and (beta != 1 or query.sizes(bias) != (columns,)):
            _set(model, names, node, 2, row * beta)
            node.attributes.pop("beta", None)


def as_row(array: F32 | None, size: int) -> F32 | None:
    """The constant that is added to every row of a matrix, as one number per column; None if it differs by row."""
    if array is None or array.ndim > 2 or array.size not in (1, size) or array.shape[-1:] not in ((), (1,), (size,)):
        return None
    if array.size == size and size > 1 and array.shape[-1:] != (size,):
        return None
    return np.broadcast_to(array.reshape(-1), (size,)).astype(np.float32)


def may_change(value: ir.Value | None, node: ir.Node) -> bool:
    """True unless a changed copy of the constant `value` for `node` would make the file notably larger."""
    if value is None:
        return False
    return query.sole_consumer(value) is node or (
        value.const_value is not None and value.const_value.nbytes <= SMALL_BYTES
    )


# ---------------------------------------------------------------------------------- constants on the left


def left_constant_to_conv(model: ir.Model) -> None:
    """Replace a product with the constant on the left by a convolution with a kernel of one element.

    The rows of the constant are output channels, and the columns of the activation are positions. An activation of two
    axes gets one of size 1 in front, which vanishes behind the last operator that works element by element.
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        weight = _left_matrix(node)
        source = node.inputs[1] if len(node.inputs) > 1 else None
        rank = query.rank(source) if source is not None else None
        if weight is None or source is None or rank not in (2, 3) or not query.is_float(source):
            continue
        if rank == 2 and query.op(node) == "MatMul" and query.rank(node.inputs[0]) != 2:  # type: ignore[arg-type]
            continue
        bias = query.optional_input(node, 2)
        column = None if bias is None else _as_column(query.float_array(bias), len(weight))
        if bias is not None and column is None:
            continue
        _replace_by_conv(model, names, node, weight, column)
    edit.remove_unused(model)


def _left_matrix(node: ir.Node) -> F32 | None:
    """The constant [rows, K] on the left of a product with an activation, factors included; None if there is none."""
    if query.op(node) not in ("MatMul", "Gemm") or query.constant(node.inputs[1]) is not None:
        return None
    matrix = query.float_array(node.inputs[0])
    if matrix is None or matrix.ndim < 2 or matrix.size != int(np.prod(matrix.shape[-2:])):
        return None
    matrix = matrix.reshape(matrix.shape[-2:])
    if not may_change(node.inputs[0], node):
        return None
    if node.op_type == "MatMul":
        return matrix
    if query.attribute(node, "transB", 0) or query.attribute(node, "beta", 1.0) != 1:
        return None
    matrix = matrix.T if query.attribute(node, "transA", 0) else matrix
    return np.ascontiguousarray(matrix * np.float32(query.attribute(node, "alpha", 1.0)))


def _as_column(array: F32 | None, size: int) -> F32 | None:
    if array is None or not (array.size == 1 or array.shape == (size, 1)):
        return None
    return np.broadcast_to(array.reshape(-1), (size,)).astype(np.float32)


def _replace_by_conv(model: ir.Model, names: edit.Names, node: ir.Node, weight: F32, bias: F32 | None) -> None:
    label, source = query.label(node), node.inputs[1]
    flat = source is not None and query.rank(source) == 2
    kernel = edit.add_constant(model.graph, names.fresh(f"{label}_kernel"), weight[:, :, None])
    inputs = [_in_three_axes(model, names, node) if flat else source, kernel]
    if bias is not None:
        inputs.append(edit.add_constant(model.graph, names.fresh(f"{label}_bias"), bias))
    conv = ir.node("Conv", inputs, {"kernel_shape": [1]}, name=names.fresh(f"{label}_conv"))
    if not flat:
        edit.replace_node(node, conv)
        return
    last, axis = conv, edit.add_constant(model.graph, names.fresh(f"{label}_axis"), np.array([0], np.int64))
    while True:
        last.outputs[0].name = names.fresh(f"{last.name}_out")
        last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        last.outputs[0].shape = ir.Shape([1, *(node.outputs[0].shape or (None, None))])
        model.graph.insert_before(node, last)
        squeeze = ir.node("Squeeze", [last.outputs[0], axis], name=names.fresh(f"{label}_matrix"))
        edit.replace_node(node, squeeze)
        follower = query.sole_consumer(squeeze.outputs[0])
        if follower is None or not _is_pointwise(follower, squeeze.outputs[0]):
            return
        values = [last.outputs[0] if value is squeeze.outputs[0] else value for value in follower.inputs]
        last = ir.node(follower.op_type, values, name=names.fresh(f"{query.label(follower)}_wide"))
        last.attributes.update(follower.attributes)
        node = follower


def _in_three_axes(model: ir.Model, names: edit.Names, node: ir.Node) -> ir.Value | None:
    """The activation of a product with an axis of size 1 in front; that of the product before it where it has one."""
    source = node.inputs[1]
    before = source.producer() if source is not None else None
    if before is not None and query.op(before) == "Squeeze" and query.ints(query.optional_input(before, 1)) == [0]:
        wide = before.inputs[0]
        if wide is not None and query.rank(wide) == 3:
            return wide
    label = query.label(node)
    axis = edit.add_constant(model.graph, names.fresh(f"{label}_front"), np.array([0], np.int64))
    unsqueeze = ir.node("Unsqueeze", [source, axis], name=names.fresh(f"{label}_wide"))
    unsqueeze.outputs[0].name = names.fresh(f"{label}_wide_out")
    unsqueeze.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    unsqueeze.outputs[0].shape = ir.Shape([1, *(source.shape if source is not None and source.shape else ())])
    model.graph.insert_before(node, unsqueeze)
    return unsqueeze.outputs[0]


def _is_pointwise(node: ir.Node, value: ir.Value) -> bool:
    """True if a node treats every element of `value` alike, or adds and multiplies constants of two axes at most."""
    others = [other for other in node.inputs if other is not None and other is not value]
    small = all(query.constant(other) is not None and (query.rank(other) or 0) <= 2 for other in others)
    return query.op(node) in POINTWISE_OPERATORS and small and list(node.inputs).count(value) == 1


# ------------------------------------------------------------------------------------------------ Einsum


def einsum_to_matmul(model: ir.Model) -> None:
    """Replace an ``Einsum`` that is a matrix product: with a constant, or of two activations without moving axes.

    With a constant, its axes are put in order when the model is cleaned up; those of the activation are transposed and
    joined where needed. onnxruntime's kernel does the same at every run.
    """
    names = edit.Names(model.graph)
    for node in [node for node in model.graph if query.op(node) == "Einsum"]:
        terms = _terms(node)
        if terms is None:
            continue
        left, right, result = terms
        if query.float_array(node.inputs[1]) is not None:
            _einsum_with_constant(model, names, node, left, right, result, 0)
        elif query.float_array(node.inputs[0]) is not None:
            _einsum_with_constant(model, names, node, right, left, result, 1)
        else:
            _einsum_of_activations(model, names, node, left, right, result)
    edit.remove_unused(model)


def _terms(node: ir.Node) -> tuple[str, str, str] | None:
    """The axes of both inputs and of the result, a letter each; None for other equations than products of two."""
    equation = str(query.attribute(node, "equation", "")).replace(" ", "")
    sources, arrow, result = equation.partition("->")
    if len(node.inputs) != 2 or not arrow or sources.count(",") != 1:
        return None
    ranks = [query.rank(value) if value is not None else None for value in node.inputs]
    terms = sources.split(",")
    if "..." in equation:
        free = [letter for letter in "ABCDEFGHIJ" if letter not in equation]
        counts = [(rank or 0) - len(term) + 3 if "..." in term else 0 for rank, term in zip(ranks, terms, strict=True)]
        if None in ranks or not 0 <= max(counts) <= len(free) or (min(counts) and counts[0] != counts[1]):
            return None
        batch = "".join(free[: max(counts)])
        terms, result = [term.replace("...", batch) for term in terms], result.replace("...", batch)
    left, right = terms
    if any(len(set(term)) != len(term) for term in (left, right, result)) or set(result) - set(left + right):
        return None
    if any(rank != len(term) for rank, term in zip(ranks, terms, strict=True)):
        return None
    return left, right, result


def _einsum_with_constant(
    model: ir.Model, names: edit.Names, node: ir.Node, moving: str, fixed: str, result: str, at: int
) -> None:
    """Replace an Einsum of an activation with axes `moving` at input `at`, and a constant with axes `fixed`."""
    summed = [letter for letter in fixed if letter in moving and letter not in result]
    rows = [letter for letter in result if letter not in fixed]
    columns = [letter for letter in result if letter in fixed and letter not in moving]
    if not summed or not rows or not columns or len(rows) + len(columns) != len(result):
        return
    if set(fixed) != {*summed, *columns} or set(moving) != {*summed, *rows}:
        return
    source, array = node.inputs[at], query.float_array(node.inputs[1 - at])
    if source is None or array is None or not may_change(node.inputs[1 - at], node):
        return
    size = dict(zip(fixed, array.shape, strict=True))
    ordered = array.transpose([fixed.index(letter) for letter in (*summed, *columns)])
    matrix = np.ascontiguousarray(ordered.reshape(int(np.prod([size[k] for k in summed])), -1))
    steps = _Steps(model, names, node)
    value = steps.transposed(source, moving, [*rows, *summed])
    if len(summed) > 1:
        value = steps.reshaped(value, [*[0] * len(rows), len(matrix)])
    value = steps.add("MatMul", [value, steps.constant(matrix)])
    if len(columns) > 1:
        value = steps.reshaped(value, [*[0] * len(rows), *(size[letter] for letter in columns)])
    steps.finish(steps.transposed(value, [*rows, *columns], list(result)))


def _einsum_of_activations(
    model: ir.Model, names: edit.Names, node: ir.Node, left: str, right: str, result: str
) -> None:
    """Replace an Einsum that is a MatMul, but for an exchange of the last two axes, which the product takes over."""
    summed = [letter for letter in left if letter in right and letter not in result]
    if len(summed) != 1 or len(result) < 2:
        return
    batch, row, column = result[:-2], result[-2], result[-1]
    orders = []
    for term, straight in ((left, f"{batch}{row}{summed[0]}"), (right, f"{batch}{summed[0]}{column}")):
        if term not in (straight, f"{batch}{straight[-1]}{straight[-2]}"):
            return
        orders.append((term, list(straight)))
    steps = _Steps(model, names, node)
    operands = [
        steps.transposed(value, *order) for value, order in zip(node.inputs, orders, strict=True) if value is not None
    ]
    steps.finish(steps.add("MatMul", operands))


class _Steps:
    """New nodes in front of one that they are to replace."""

    def __init__(self, model: ir.Model, names: edit.Names, node: ir.Node) -> None:
        self._graph, self._names, self._node = model.graph, names, node

    def add(self, op: str, inputs: Sequence[ir.Value | None], **attributes: object) -> ir.Value:
        """Insert a node with one output."""
        name = self._names.fresh(f"{query.label(self._node)}_{op}")
        node = ir.node(op, list(inputs), attributes, name=name)
        node.outputs[0].name, node.outputs[0].type = self._names.fresh(f"{name}_out"), ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def constant(self, array: F32) -> ir.Value:
        """Add a float32 constant."""
        return edit.add_constant(self._graph, self._names.fresh(f"{query.label(self._node)}_weight"), array)

    def transposed(self, value: ir.Value, axes: Sequence[str], wanted: Sequence[str]) -> ir.Value:
        """Bring axes into another order, if they are not in it."""
        if list(axes) == list(wanted):
            return value
        return self.add("Transpose", [value], perm=[list(axes).index(letter) for letter in wanted])

    def reshaped(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """Join or divide the last axes; 0 keeps the size of an axis."""
        name = self._names.fresh(f"{query.label(self._node)}_sizes")
        return self.add("Reshape", [value, edit.add_constant(self._graph, name, np.array(sizes, np.int64))])

    def finish(self, value: ir.Value) -> None:
        """Let `value`, the output of the last node, take the place of the old node's output."""
        last = value.producer()
        if last is None:
            raise ValueError(f"{query.label(self._node)} has no nodes in its place")
        output, name = self._node.outputs[0], self._node.outputs[0].name
        value.shape = output.shape
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
        value.name = name


def _set(model: ir.Model, names: edit.Names, node: ir.Node, index: int, array: F32) -> None:
    """Set the weight (1) or the bias (2) of a product."""
    name = f"{query.label(node)}_{'weight' if index == 1 else 'bias'}"
    edit.set_constant(model.graph, names, node, index, name, np.asarray(array, np.float32))
