"""Reading tensors inside a model: they become outputs of a clone, which is run."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from toolchain.data.tensors import Feed
from toolchain.graph import edit, query, run


def expose(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A clone with the named tensors as its only outputs, in this order; nodes that they do not need are removed.

    Raises:
        KeyError: a name is neither an input, nor a constant, nor the output of a node.
    """
    clone = model.clone()
    values = {**clone.graph.initializers, **{str(value.name): value for value in query.activations(clone)}}
    edit.keep_outputs(clone, [values[name] for name in names])
    return clone


def capture(model: ir.Model, names: Iterable[str], feeds: Iterable[Feed], *, threads: int = 0) -> list[Feed]:
    """Values of the named tensors for every feed, by name.

    Args:
        model: the model; it is not changed.
        names: names of inputs or of nodes' outputs.
        feeds: inputs of the model.
        threads: number of onnxruntime's threads; 0: its own choice.

    Raises:
        ModelError: onnxruntime does not accept the model.
    """
    unique = list(dict.fromkeys(names))
    session = run.session(expose(model, unique), threads=threads, pattern=False)
    return [dict(zip(unique, session.run(None, feed), strict=True)) for feed in feeds]
