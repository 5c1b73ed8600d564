"""Tables stored as int8: the constant that a Gather reads single rows of, as an embedding of words.

A row r of float32 becomes 8-bit integers and a scale of its own, max|r| / 127, and is read as

    Gather(integers, ids) → Cast → · Gather(scales, ids)

which is one IEEE multiplication an element, the same on every processor. Nothing is dequantized but the rows asked
for. (DequantizeLinear along the last axis, which would be the shorter graph, multiplies element by element: seven
times as slow, and a scale a column is further from the table than a scale a row.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import edit, query
from toolchain.ops.cells import SameScale
from toolchain.ops.table import rule
from toolchain.quantization.weights import SMALLEST, TOP, WeightQuant

LEAST_BYTES = 64 * 1024
"""Smaller tables are not worth two operators more."""
LEAST_WIDTH = 16
"""Of a row: below it the scales eat much of what the integers save."""
TABLE = "its table is stored as int8 with one scale per row, and read as float"


def has_table(node: ir.Node) -> bool:
    """Whether `node` looks up rows of a large constant that only such nodes read."""
    array, source = _table(node), node.inputs[0] if node.inputs else None
    if array is None or source is None or array.ndim < 2 or array.nbytes < LEAST_BYTES or array[0].size < LEAST_WIDTH:
        return False
    if source.is_graph_output() or any(_table(reader) is None for reader in query.consumers(source)):
        return False
    return bool(np.isfinite(array).all())


def _table(node: ir.Node) -> F32 | None:
    cell = rule(node).int8
    if not isinstance(cell, SameScale) or cell.table is None or query.attribute(node, "axis", 0) != 0:
        return None
    return query.float_array(node.inputs[cell.table])


def tables(model: ir.Model, names: Collection[str]) -> dict[str, WeightQuant]:
    """The rows that each of the named nodes looks up; one object for nodes that share a table."""
    made: dict[ir.Value | None, WeightQuant] = {}
    found: dict[str, WeightQuant] = {}
    for node in model.graph:
        array = _table(node) if query.label(node) in names else None
        if array is not None:
            source = node.inputs[0]
            if source not in made:
                made[source] = quantize_rows(array)
            found[query.label(node)] = made[source]
    return found


def quantize_rows(table: F32) -> WeightQuant:
    """Round a table float32 [rows, ...] of finite numbers with a scale for each row."""
    rows = table.reshape(len(table), -1)
    scales = np.maximum(np.max(np.abs(rows), axis=1) / np.float32(TOP), SMALLEST).astype(np.float32)
    values = np.rint(rows / scales[:, None]).astype(np.int8).reshape(table.shape)
    return WeightQuant(values, scales, 0, overflow_free=True)


@dataclass(frozen=True)
class Written:
    """The constants of one table in a graph."""

    integers: ir.Value
    scales: ir.Value


def write_table(node: ir.Node, rows: WeightQuant, names: edit.Names, written: dict[int, Written]) -> None:
    """Let a Gather read `rows` instead of its float table; what it computes keeps its name.

    written: the tables in the graph so far, by the identity of their rows; grows.
    """
    graph, label, ids = node.graph, query.label(node), node.inputs[1]
    if graph is None:
        raise ValueError(f"{label} is in no graph")
    if id(rows) not in written:
        scales = rows.scales.reshape(-1, *[1] * (rows.values.ndim - 1))
        written[id(rows)] = Written(
            edit.add_constant(graph, names.fresh(f"{label}_quantized"), rows.values),
            edit.add_constant(graph, names.fresh(f"{label}_scale"), scales),
        )
    constants = written[id(rows)]

    def before(op: str, inputs: list[ir.Value | None], dtype: ir.DataType, **attributes: int) -> ir.Value:
        new = ir.node(op, inputs, attributes, name=names.fresh(f"{label}_{op}"))
        output = new.outputs[0]
        output.name, output.type = names.fresh(f"{new.name}_out"), ir.TensorType(dtype)
        graph.insert_before(node, new)
        return output

    integers = before("Gather", [constants.integers, ids], ir.DataType.INT8)
    scale = before("Gather", [constants.scales, ids], ir.DataType.FLOAT)
    floats = before("Cast", [integers], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    edit.replace_node(node, ir.node("Mul", [floats, scale], name=label))
