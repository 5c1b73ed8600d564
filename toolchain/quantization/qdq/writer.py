"""`apply_quantization`: write a plan into a graph as QuantizeLinear / DequantizeLinear pairs, without own decisions.

One pair is inserted after every planned activation, and int8 nodes read its output. Float readers do too where the
tensor is computed in int8 (it has no other form on the device); otherwise they read the float tensor. An absorbed Relu
or Clip is removed: requantization saturates at the ends of the grid, which lie inside its limits, so Q(clip(x)) = Q(x)
integer for integer. (onnxruntime has fusions for this too, but they match some operator set versions and miss others.)
A float Relu or Clip behind an int8 product whose result stays float becomes Max and Min: onnxruntime looks for the
QuantizeLinear of a product behind its Relu or Clip, and where it finds none, it runs the product in float.
Weights and biases become int8 and int32 initializers, each behind a DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Array
from toolchain.formats.target import Encoding
from toolchain.graph import check, edit, query
from toolchain.ops.cells import Absorbed, Kernel
from toolchain.ops.table import rule
from toolchain.quantization.plan import Plan, ProductQuant
from toolchain.quantization.qdq import dynamic_lstm, embedding_tables
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import data_inputs, leaves_float, output_point


def apply_quantization(model: ir.Model, plan: Plan, encoding: Encoding) -> ir.Model:
    """Write the quantized clone of `model`.

    Args:
        model: the model the plan was made for.
        plan: the numbers to write.
        encoding: the encoding of activations.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    chosen = plan.int8_nodes()
    absorbed = {n for n in result.graph if query.label(n) in chosen and isinstance(rule(n).int8, Absorbed)}
    writer = _Writer(result.graph, encoding, absorbed)
    nodes = {query.label(node): node for node in result.graph}
    for name, weights in plan.recurrent.items():
        dynamic_lstm.write_dynamic_lstm(nodes[name], weights, writer.names)
        result.opset_imports[dynamic_lstm.DOMAIN] = 1
    tables: dict[int, embedding_tables.TableConstants] = {}
    for name, rows in plan.tables.items():
        embedding_tables.write_table(nodes[name], rows, writer.names, tables)
    int8_computed = int8_values(result, chosen)
    for name, product in plan.products.items():
        writer.product(nodes[name], product)
        if leaves_float(nodes[name], chosen):
            writer.limit_by_max_and_min(nodes[name])
    values = {str(value.name): value for value in query.activations(result)}  # some are those of Max and Min now
    for name, grid in plan.activations.items():
        value = values[name]
        pair = writer.pair(value, grid)
        readers = [n for n in query.consumers(value) if n is not pair.producer() and not writer.is_own(n)]
        reading = [n for n in readers if query.label(n) in chosen and value in data_inputs(n)]
        edit.redirect(value, pair, readers if value in int8_computed else reading)
        if value.is_graph_output() and value in int8_computed:
            writer.take_over_output(value, pair)
    edit.remove_unused(result)
    check.check(result)
    return result


def int8_values(model: ir.Model, chosen: set[str]) -> set[ir.Value]:
    """Return the tensors at which the results of the int8 nodes are requantized; `chosen` names these nodes."""
    values: set[ir.Value] = set()
    for node in model.graph:
        if query.label(node) in chosen and not isinstance(rule(node).int8, Absorbed):
            values.update([output_point(node, chosen)] if len(node.outputs) == 1 else node.outputs)
    return values


class _Writer:
    """Inserts QuantizeLinear / DequantizeLinear pairs; equal grids share initializers, as do readers of one weight."""

    def __init__(self, graph: ir.Graph, encoding: Encoding, absorbed: set[ir.Node]) -> None:
        self._graph = graph
        self.names = edit.Names(graph)
        self._dtype: type[np.uint8 | np.int8] = np.uint8 if encoding == "u8" else np.int8
        self._shift = 0 if encoding == "u8" else 128
        self._grids: dict[Affine, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[tuple[int, int], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._zero_points: dict[tuple[tuple[int, ...], np.dtype[Any]], ir.Value] = {}
        self._own: set[ir.Node] = set()
        self._absorbed = absorbed

    def is_own(self, node: ir.Node) -> bool:
        return node in self._own

    def _constant(self, name: str, array: Array) -> ir.Value:
        return edit.add_constant(self._graph, self.names.fresh(name), array)

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        dtype: ir.DataType,
        axis: int | None = None,
        name: str | None = None,
    ) -> ir.Node:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node(op, inputs, attributes, name=self.names.fresh(f"{name or like.name}_{op}"))
        node.outputs[0].name = self.names.fresh(f"{node.name}_out")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), like.shape
        self._own.add(node)
        return node

    def _grid(self, grid: Affine, name: str) -> tuple[ir.Value, ir.Value]:
        if grid not in self._grids:
            self._grids[grid] = (
                self._constant(f"{name}_scale", np.array(grid.scale, np.float32)),
                self._constant(f"{name}_zero_point", np.array(grid.zero_point - self._shift, self._dtype)),
            )
        return self._grids[grid]

    def pair(self, value: ir.Value, grid: Affine) -> ir.Value:
        """Insert a pair after `value` and return its output."""
        scale, zero = self._grid(grid, str(value.name))
        producer = value.producer()
        source = producer.inputs[0] if producer is not None and producer in self._absorbed else value
        dtype = ir.DataType.UINT8 if self._dtype is np.uint8 else ir.DataType.INT8
        quantize = self._node("QuantizeLinear", [source, scale, zero], value, dtype)
        dequantize = self._node("DequantizeLinear", [quantize.outputs[0], scale, zero], value, ir.DataType.FLOAT)
        if producer is None:
            first = next(iter(self._graph))
            self._graph.insert_before(first, [quantize, dequantize])
        else:
            self._graph.insert_after(producer, [quantize, dequantize])
        return dequantize.outputs[0]

    def take_over_output(self, value: ir.Value, pair: ir.Value) -> None:
        """Make the pair's output the graph output, with the name of the old graph output."""
        edit.take_over_output(self._graph, value, pair, self.names.fresh(f"{value.name}_float"))

    def limit_by_max_and_min(self, product: ir.Node) -> None:
        """Replace the Relu or Clip that is the only reader of a float result by Max and Min."""
        node = query.sole_consumer(product.outputs[0])
        if node is None or node.graph is not self._graph or not isinstance(rule(node).int8, Absorbed):
            return
        low, high = (query.optional_input(node, index) for index in (1, 2))
        if node.op_type == "Relu":
            low, high = self._constant(f"{node.name}_limit", np.zeros((), np.float32)), None
        source = product.outputs[0]
        if low is not None and high is not None:
            above = self._node("Max", [source, low], source, ir.DataType.FLOAT)
            self._graph.insert_before(node, above)
            source = above.outputs[0]
        op, limit = ("Max", low) if high is None else ("Min", high)
        if limit is not None:
            edit.replace_node(node, ir.node(op, [source, limit], name=node.name))

    def product(self, node: ir.Node, quant: ProductQuant) -> None:
        """Give a Conv, Gemm or MatMul its integer weight and bias."""
        cell = rule(node).int8
        if not isinstance(cell, Kernel):
            raise ValueError(f"{query.label(node)} has no int8 kernel")
        weight = self._dequantized(
            f"{query.label(node)}_weight", quant.weight.values, quant.weight.scales, quant.weight.axis, node
        )
        edit.set_input(node, cell.weight, weight)
        if cell.bias is not None and quant.bias is not None and quant.bias_scales is not None:
            bias = self._dequantized(f"{query.label(node)}_bias", quant.bias, quant.bias_scales, 0, node)
            edit.set_input(node, cell.bias, bias)

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ir.Value:
        """Return the zero points of weights or biases; those of one shape and type are one initializer."""
        if (shape, dtype) not in self._zero_points:
            self._zero_points[shape, dtype] = self._constant(f"zero_points_{dtype}_{shape[0]}", np.zeros(shape, dtype))
        return self._zero_points[shape, dtype]

    def _dequantized(self, name: str, values: Array, scales: Array, axis: int, before: ir.Node) -> ir.Value:
        """Insert a DequantizeLinear for one reader; readers of the same arrays share the initializers."""
        key = id(values), id(scales)
        if key not in self._constants:
            self._constants[key] = (
                self._constant(f"{name}_quantized", values),
                self._constant(f"{name}_scale", scales.astype(np.float32)),
                self._zeros(scales.shape, values.dtype),
            )
        constants = self._constants[key]
        node = self._node("DequantizeLinear", constants, constants[0], ir.DataType.FLOAT, axis, f"{name}_quantized")
        self._graph.insert_before(before, node)
        return node.outputs[0]
