"""Tables stored as int8: constants whose rows a Gather looks up, such as word embeddings.

A float32 row r becomes 8-bit integers with a scale of its own, max|r| / 127, and is read as

    Gather(integers, ids) → Cast → · Gather(scales, ids)

This is one IEEE multiplication per element, the same on every processor, and only the requested rows are dequantized.
(DequantizeLinear along the last axis would be the shorter graph, but it takes seven times as long, because it
multiplies element by element, and one scale per column is less accurate than one scale per row.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import edit, query
from toolchain.ops.cells import Kernel, SameScale
from toolchain.ops.table import rule
from toolchain.quantization.weights import INT8_MAX, MIN_SCALE, WeightQuant

MIN_TABLE_BYTES = 64 * 1024
"""Smallest table to quantize; a smaller one is not worth the additional operators."""
MIN_ROW_ELEMENTS = 16
"""Shortest rows to quantize; with shorter ones, the scales take much of the space that the integers save."""
READ_AS_FLOAT_REASON = "its table is the weight of a float product as well, so storing it as int8 would save nothing"
TABLE_REASON = "its table is stored as int8 with one scale per row, and read as float"


def has_table(node: ir.Node) -> bool:
    """True where `node` looks up rows of a large constant that only such nodes and products read."""
    array, source = _table(node), node.inputs[0] if node.inputs else None
    if (
        array is None
        or source is None
        or array.ndim < 2
        or array.nbytes < MIN_TABLE_BYTES
        or array[0].size < MIN_ROW_ELEMENTS
    ):
        return False
    if source.is_graph_output() or any(
        _table(reader) is None and not _multiplies_by(reader, source) for reader in query.consumers(source)
    ):
        return False
    return bool(np.isfinite(array).all())


def products_with_table(node: ir.Node) -> list[ir.Node]:
    """List the products whose weight is the table of `node`, as in language models with tied embeddings."""
    source = node.inputs[0]
    return [] if source is None else [reader for reader in query.consumers(source) if _multiplies_by(reader, source)]


def _multiplies_by(node: ir.Node, weight: ir.Value) -> bool:
    cell = rule(node).int8
    return isinstance(cell, Kernel) and node.inputs[cell.weight] is weight and list(node.inputs).count(weight) == 1


def _table(node: ir.Node) -> F32 | None:
    cell = rule(node).int8
    if not isinstance(cell, SameScale) or cell.table is None or query.attribute(node, "axis", 0) != 0:
        return None
    return query.float_array(node.inputs[cell.table])


def quantize_tables(model: ir.Model, names: Collection[str]) -> dict[str, WeightQuant]:
    """Quantize the table of each of the named nodes; nodes that share a table share one object."""
    by_source: dict[ir.Value | None, WeightQuant] = {}
    result: dict[str, WeightQuant] = {}
    for node in model.graph:
        array = _table(node) if query.label(node) in names else None
        if array is not None:
            source = node.inputs[0]
            if source not in by_source:
                by_source[source] = quantize_rows(array)
            result[query.label(node)] = by_source[source]
    return result


def quantize_rows(table: F32) -> WeightQuant:
    """Round a float32 table [rows, ...] of finite numbers with one scale for each row."""
    rows = table.reshape(len(table), -1)
    scales = np.maximum(np.max(np.abs(rows), axis=1) / np.float32(INT8_MAX), MIN_SCALE).astype(np.float32)
    values = np.rint(rows / scales[:, None]).astype(np.int8).reshape(table.shape)
    return WeightQuant(values, scales, 0, overflow_free=True)


@dataclass(frozen=True)
class TableConstants:
    """The constants of one quantized table in a graph.

    Attributes:
        integers: the int8 rows.
        scales: one scale for each row.
    """

    integers: ir.Value
    scales: ir.Value


def write_table(node: ir.Node, rows: WeightQuant, names: edit.Names, written: dict[int, TableConstants]) -> None:
    """Replace the float table of a Gather by quantized rows; the result keeps its name.

    Args:
        node: the Gather.
        rows: its quantized table.
        names: names of the graph, to find free ones.
        written: the tables that are already in the graph, by the identity of `rows`; a new one is added.
    """
    graph, label, ids = node.graph, query.label(node), node.inputs[1]
    if graph is None:
        raise ValueError(f"{label} is in no graph")
    if id(rows) not in written:
        scales = rows.scales.reshape(-1, *[1] * (rows.values.ndim - 1))
        written[id(rows)] = TableConstants(
            edit.add_constant(graph, names.fresh(f"{label}_quantized"), rows.values),
            edit.add_constant(graph, names.fresh(f"{label}_scale"), scales),
        )
    constants = written[id(rows)]

    def insert_before(op: str, inputs: list[ir.Value | None], dtype: ir.DataType, **attributes: int) -> ir.Value:
        new = ir.node(op, inputs, attributes, name=names.fresh(f"{label}_{op}"))
        output = new.outputs[0]
        output.name, output.type = names.fresh(f"{new.name}_out"), ir.TensorType(dtype)
        graph.insert_before(node, new)
        return output

    integers = insert_before("Gather", [constants.integers, ids], ir.DataType.INT8)
    scale = insert_before("Gather", [constants.scales, ids], ir.DataType.FLOAT)
    floats = insert_before("Cast", [integers], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    edit.replace_node(node, ir.node("Mul", [floats, scale], name=label))
