"""Bodies of If, Loop and Scan: int8 does not reach into them, and the reason says what their products cost."""

from __future__ import annotations

import onnx_ir as ir

from toolchain.graph import query
from toolchain.ops.cells import Kernel
from toolchain.ops.table import macs, rule


def reason(node: ir.Node) -> str | None:
    """Say why a node with bodies stays float, with the multiply-accumulates in them; None for other nodes."""
    products = [inner for inner in query.inner_nodes(node) if isinstance(rule(inner).int8, Kernel)]
    if not products:
        return None
    costs = [macs(product) for product in products]
    # Shapes in bodies are often unknown. The weight then tells the cost for one row.
    total = sum(cost or query.elements(inner.inputs[1]) or 0 for inner, cost in zip(products, costs, strict=True))
    how_many = f"{len(products)} product{'s' if len(products) > 1 else ''}"
    least = "at least " if None in costs else ""
    each = {"Loop": " at each turn", "Scan": " at each step"}.get(node.op_type, "")
    return f"int8 does not reach into its body: {how_many} with {least}{total:,} multiply-accumulates{each}"
