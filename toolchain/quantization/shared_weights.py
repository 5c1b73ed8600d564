"""Weights that int8 products and float operators both read: int8 would store them a second time."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from toolchain.graph import query
from toolchain.ops.cells import Kernel
from toolchain.ops.table import rule

FLOAT_BYTES = 4
"""Bytes of one float32 weight; as int8 it takes one."""


def stored_twice(model: ir.Model, int8_nodes: Collection[str]) -> dict[str, str]:
    """Name the products that should stay float, because a float operator reads their weight as well.

    A float reader is any other node, such as a product in the body of a Loop or a Gather of float rows. The weight
    then stays in the file as float, and int8 adds a quarter of its size. That is worth it while the weights that only
    int8 products read save at least as much.

    Args:
        model: the float model.
        int8_nodes: names of the nodes that would compute in int8 or read rows of an int8 table.

    Returns:
        The reason for each product; empty where the file does not grow.
    """
    float_reader: dict[ir.Value, ir.Node] = {}
    products: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        cell = rule(node).int8
        if (
            isinstance(cell, Kernel)
            and query.label(node) in int8_nodes
            and (weight := node.inputs[cell.weight]) is not None
        ):
            products.setdefault(weight, []).append(node)
    for weight in products:
        others = [reader for reader in query.consumers(weight) if query.label(reader) not in int8_nodes]
        if others:
            float_reader[weight] = others[0]
    saved = sum((FLOAT_BYTES - 1) * (query.elements(weight) or 0) for weight in products if weight not in float_reader)
    added = sum(query.elements(weight) or 0 for weight in float_reader)
    if added <= saved:
        return {}
    return {
        query.label(
            node
        ): f"{query.op(other)} {query.label(other)!r} reads its weight in float, so int8 would store it "
        "twice and the file would grow"
        for weight, other in float_reader.items()
        for node in products[weight]
    }
