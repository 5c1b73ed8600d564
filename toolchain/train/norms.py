"""Batch normalizations for a student that is to learn from nothing: put in for the training, folded away afterwards.

Behind every convolution, y' = g (y - E[y]) / sqrt(Var[y] + ε) + b with g = sqrt(Var[y] + ε) and b = E[y] of some data:
the student computes what it did, until it learns (Ioffe and Szegedy 2015, arXiv 1502.03167).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph import edit, query, run
from toolchain.tensors import Array, Feed

EPSILON = 1e-5


def normalized(model: ir.Model, feeds: Sequence[Feed]) -> ir.Model:
    """A clone with a BatchNormalization behind every Conv, by its statistics on `feeds`; the same function."""
    clone = model.clone()
    convs = [node for node in clone.graph if node.op_type == "Conv"]
    names = edit.Names(clone.graph)
    tapped = model.clone()
    there = {value.name: value for value in query.activations(tapped)}
    edit.keep_outputs(tapped, [there[node.outputs[0].name] for node in convs])
    found = run.run(run.session(tapped), feeds)
    for number, conv in enumerate(convs):
        _insert(clone, names, conv, np.concatenate([answers[number] for answers in found]))
    return clone


def _insert(model: ir.Model, names: edit.Names, conv: ir.Node, answers: Array) -> None:
    """One of them. answers: [N, channels, ...] of the convolution."""
    output = conv.outputs[0]
    axes = (0, *range(2, answers.ndim))
    mean, var = answers.mean(axes), answers.var(axes)
    arrays = {"scale": np.sqrt(var + EPSILON), "bias": mean, "mean": mean, "var": var}
    constants = [
        edit.add_constant(model.graph, names.fresh(f"{output.name}_{name}"), array.astype(np.float32))
        for name, array in arrays.items()
    ]
    readers = [use.node for use in output.uses()]
    norm = ir.node("BatchNormalization", [output, *constants], attributes={"epsilon": EPSILON})
    norm.outputs[0].name = names.fresh(f"{output.name}_normalized")
    norm.outputs[0].type, norm.outputs[0].shape = output.type, output.shape
    norm.name = names.fresh(f"{query.label(conv)}_norm")
    model.graph.insert_after(conv, norm)
    edit.redirect(output, norm.outputs[0], readers)
