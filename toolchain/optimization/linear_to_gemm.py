"""Linear layers over more than two axes, rewritten to the form that has an int8 kernel with a bias.

    x W + b  over [..., K]   =   reshape( reshape(x, [-1, K]) W + b )

A ``MatMul`` and an ``Add`` of a vector are two passes, and no int8 kernel takes the bias. If all sizes are known,
onnxruntime joins the two into a float ``Gemm`` before it looks for int8 kernels. A product that was planned as int8
then runs in float, on weights that are dequantized at every run. If it is a ``Gemm`` from the start, it is one int8
kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32, I64
from toolchain.graph import edit, query
from toolchain.ops.weights import weight_axes

ROWWISE_OPERATORS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "HardSigmoid", "HardSwish", "Gelu", "Elu", "Softplus"}
    | {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Abs", "Neg", "LayerNormalization"}
)
"""Operators that compute every row of the last axis by itself, so that a reshape of the other axes may come before."""


def fold_scale_into_linear(model: ir.Model) -> None:
    """Fold a ``Mul`` of a constant vector into the ``MatMul`` (and its ``Add``) or the ``Gemm`` before it."""
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
        across = weight_axes(product).out
        vector = _vector(scale, weight.shape[across], query.rank(node.outputs[0]))
        holder, at = (before, 1) if before is not product else (product, 2)
        bias = query.optional_input(holder, at)
        added = _vector(query.float_array(bias), weight.shape[across], query.rank(node.outputs[0]))
        if vector is None or (bias is not None and added is None):
            continue
        _set(model, product, 1, weight * (vector if across else vector[:, None]), names)
        if added is not None:
            _set(model, holder, at, added * vector, names)
        edit.bypass(node)


def linear_to_gemm(model: ir.Model) -> None:
    """Replace ``MatMul`` and ``Add`` of constants over three or more axes by ``Gemm`` between two ``Reshape`` nodes.

    One axis may be dynamic. Operators behind it that compute row by row also work on the matrix, and the second
    ``Reshape`` comes only before a node that needs the axes. So products absorb a Relu, and sums before
    LayerNormalization do not become onnxruntime's ``SkipLayerNormalization``, which takes five times as long (measured
    on 128 rows of 384: 269 µs, against 47 µs for both operators).
    """
    rows = _Rows(model)
    for node in list(model.graph):
        last = rows.gemm(node) or rows.rowwise(node)
        if last is None:
            continue
        shape = _target(node.outputs[0])
        target = edit.add_constant(model.graph, rows.names.fresh(f"{query.label(node)}_sizes"), shape)
        reshape = ir.node("Reshape", [last, target], name=rows.names.fresh(f"{query.label(node)}_shape"))
        edit.replace_node(node, reshape)
        rows.known[reshape.outputs[0]] = last
    edit.remove_unused(model)


class _Rows:
    """Matrices whose rows are the last axis of a tensor; every tensor is reshaped only once.

    Attributes:
        names: unused names in the graph.
        known: the matrix of each tensor that has one.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph, self.names = model.graph, edit.Names(model.graph)
        self.known: dict[ir.Value, ir.Value] = {}

    def gemm(self, add: ir.Node) -> ir.Value | None:
        """The matrix of a sum, computed by a Gemm; None unless the sum is that of MatMul and bias, both constant."""
        product = _sole_producer(add) if query.op(add) == "Add" else None
        if product is None or product.op_type != "MatMul" or product.inputs[0] is None:
            return None
        source, weight = product.inputs[0], query.float_array(product.inputs[1])
        if weight is None or weight.ndim != 2 or not _can_be_rows(source) or not _can_be_rows(add.outputs[0]):
            return None
        bias = _vector(query.float_array(add.inputs[1]), weight.shape[1], query.rank(source))
        if bias is None:
            return None
        constant = edit.add_constant(self._graph, self.names.fresh(f"{query.label(add)}_bias"), bias)
        inputs = [self._matrix(source, weight.shape[0], product), product.inputs[1], constant]
        name = self.names.fresh(f"{query.label(product)}_gemm")
        return self._place(ir.node("Gemm", inputs, name=name), add, weight.shape[1])

    def rowwise(self, node: ir.Node) -> ir.Value | None:
        """The matrix of a node that computes row by row; None unless the matrix of one of its inputs is known."""
        output = node.outputs[0]
        if query.op(node) not in ROWWISE_OPERATORS or len(node.outputs) > 1 or not _can_be_rows(output):
            return None
        if _enters_mean(node):
            return None
        data = query.computed_inputs(node)
        only_vectors = all(v is None or v in data or (query.rank(v) or 0) < 2 for v in node.inputs)
        same_shapes = all(value.shape == output.shape and query.is_float(value) for value in data)
        width = output.shape[-1] if output.shape is not None else None
        if not only_vectors or not same_shapes or not isinstance(width, int):
            return None
        missing = sum(value not in self.known for value in data)
        if missing == len(data) or (missing and not all(_works_on_rows(r) for r in query.consumers(output))):
            return None  # the reshape of the missing input would save none behind the node
        axis = query.attribute(node, "axis", -1)
        if node.op_type == "LayerNormalization" and axis not in (-1, len(output.shape or ()) - 1):
            return None
        inputs = [self._matrix(value, width, node) if value in data else value for value in node.inputs]
        moved = ir.node(node.op_type, inputs, name=self.names.fresh(f"{query.label(node)}_rows"))
        moved.attributes.update(node.attributes)
        if "axis" in moved.attributes:
            moved.attributes["axis"] = ir.AttrInt64("axis", -1)
        return self._place(moved, node, width)

    def _matrix(self, source: ir.Value, width: int, before: ir.Node) -> ir.Value:
        if source not in self.known:
            sizes = np.array([-1, width], np.int64)
            target = edit.add_constant(self._graph, self.names.fresh(f"{source.name}_sizes"), sizes)
            node = ir.node("Reshape", [source, target], name=self.names.fresh(f"{source.name}_reshape"))
            self.known[source] = self._place(node, before, width, f"{source.name}_rows")
        return self.known[source]

    def _place(self, node: ir.Node, before: ir.Node, width: int, name: str | None = None) -> ir.Value:
        """Insert `node` in front of `before`; returns its output."""
        output = node.outputs[0]
        output.name = self.names.fresh(name or f"{before.outputs[0].name}_rows")
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, width])
        self._graph.insert_before(before, node)
        return output


def _enters_mean(node: ir.Node) -> bool:
    """True for a step of a normalization, which onnxruntime runs as one only if all of it has the same axes."""
    return any(reader.op_type == "ReduceMean" for reader in query.consumers(node.outputs[0]))


def _works_on_rows(node: ir.Node) -> bool:
    """True for a node that needs no axes but the last."""
    if query.op(node) == "MatMul":
        return query.constant(node.inputs[1]) is not None
    return query.op(node) in ROWWISE_OPERATORS and not _enters_mean(node)


def merge_reshapes(model: ir.Model) -> None:
    """Remove the first of two ``Reshape`` nodes in a row, unless the second copies a size from its input."""
    for node in list(model.graph):
        sizes = query.ints(node.inputs[1]) if query.op(node) == "Reshape" else None
        first = node.inputs[0].producer() if sizes and node.inputs[0] is not None else None
        if sizes is not None and 0 not in sizes and first is not None and query.op(first) == "Reshape":
            node.replace_input_with(0, first.inputs[0])


def _sole_producer(node: ir.Node) -> ir.Node | None:
    """The producer of a node's first input, if only this node reads it."""
    value = node.inputs[0] if node.inputs else None
    producer = value.producer() if value is not None and query.sole_consumer(value) is node else None
    return producer if producer is not None and producer.domain == "" else None


def _vector(array: F32 | None, size: int, rank: int | None) -> F32 | None:
    """Return one number per column; None if the constant does not broadcast like that to `rank` axes."""
    if array is None or rank is None or array.ndim > rank or array.size not in (1, size):
        return None
    if array.size == size and array.shape[-1:] not in ((size,), ()):
        return None
    return np.broadcast_to(array.reshape(-1), (size,)).astype(np.float32)


def _can_be_rows(value: ir.Value) -> bool:
    """True for a float tensor of at least three axes, none empty, of which at most one is dynamic and has a name."""
    if value.shape is None or len(value.shape) < 3 or not query.is_float(value):
        return False
    sizes = list(value.shape)
    unnamed = any(not isinstance(size, int) and size.value is None for size in sizes)
    return not unnamed and 0 not in sizes and sum(not isinstance(size, int) for size in sizes) <= 1


def _target(value: ir.Value) -> I64:
    return np.array(query.sizes(value, dynamic=-1), np.int64)


def _set(model: ir.Model, node: ir.Node, index: int, array: F32, names: edit.Names) -> None:
    name = f"{query.label(node)}_scaled"
    edit.set_constant(model.graph, names, node, index, name, np.asarray(array, np.float32))
