"""A graph as stable text for diffs and tests: one line per node, no memory addresses."""

from __future__ import annotations

import onnx_ir as ir

from toolchain.graph import query


def dump(model: ir.Model) -> str:
    """Inputs, nodes and outputs, one per line, in graph order."""
    lines = [f"input  {_typed(value)}" for value in model.graph.inputs]
    for node in model.graph:
        reads = ", ".join("-" if v is None else str(v.name) for v in node.inputs)
        attributes = "".join(f" {name}={query.attribute(node, name)}" for name in sorted(node.attributes))
        lines.append(f"{', '.join(_typed(o) for o in node.outputs)} = {query.op(node)}({reads}){attributes}")
    lines += [f"output {_typed(value)}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def _typed(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    dims = "?" if value.shape is None else ", ".join(str(d) for d in value.shape)
    return f"{value.name}: {dtype}[{dims}]"
