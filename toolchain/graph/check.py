"""The check that a graph is well formed, after every change."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.graph import io


def check(model: ir.Model) -> None:
    """Check that names are unique and every value is defined before it is used, and run onnx's own checker.

    Raises:
        ModelError: the first fault, with its node.
    """
    graph = model.graph
    defined = {value.name for value in graph.inputs} | set(graph.initializers)
    names = Counter(node.name for node in graph if node.name)
    for name, count in names.items():
        if count > 1:
            raise ModelError(
                f"{count} nodes share one name", where=f"node {name!r}", hint="give every node its own name"
            )
    for node in graph:
        for value in node.inputs:
            if value is not None and value.name not in defined:
                raise ModelError(f"reads {value.name!r} before it is computed", where=f"node {node.name!r}")
        for output in node.outputs:
            if output.name in defined and output.name:
                raise ModelError(f"defines {output.name!r} a second time", where=f"node {node.name!r}")
            defined.add(output.name)
    for value in graph.outputs:
        if value.name not in defined:
            raise ModelError("is never computed", where=f"graph output {value.name!r}")
    if io.weight_bytes(model) <= io.EMBED_LIMIT_BYTES:
        try:
            onnx.checker.check_model(io.to_bytes(model))
        except onnx.checker.ValidationError as error:
            raise ModelError(" ".join(str(error).split())[:300], where="onnx checker") from None
