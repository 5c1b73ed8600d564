"""Batch normalizations during training: inserted before it, and folded into the convolutions after it.

One follows every convolution (Ioffe and Szegedy 2015, arXiv 1502.03167):

    y' = g (y - E[y]) / sqrt(Var[y] + ε) + b        g = sqrt(Var[y] + ε), b = E[y], statistics of some samples

With these start values the student computes the same as before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.data.tensors import Feed
from toolchain.graph import edit, query, run, tap

EPSILON = 1e-5


def with_batch_norms(model: ir.Model, feeds: Iterable[Feed]) -> ir.Model:
    """Insert a BatchNormalization behind every Conv of a clone; the clone computes the same function.

    Args:
        model: a float model.
        feeds: samples that the start values are taken from.
    """
    clone = model.clone()
    convs = [node for node in clone.graph if node.op_type == "Conv"]
    names = edit.Names(clone.graph)
    session = run.session(tap.expose(model, [str(node.outputs[0].name) for node in convs]))
    sums: list[F64] = [np.zeros((2, 1)) for _ in convs]
    counts = [0] * len(convs)
    for feed in feeds:
        for number, output in enumerate(session.run(None, feed)):
            rows: F64 = np.moveaxis(np.asarray(output), 1, 0).reshape(output.shape[1], -1).astype(np.float64)
            sums[number] = sums[number] + np.stack([rows.sum(1), np.square(rows).sum(1)])
            counts[number] += rows.shape[1]
    for conv, (total, squares), count in zip(convs, sums, counts, strict=True):
        mean = total / count
        _insert(clone, names, conv, mean, np.maximum(squares / count - mean**2, 0))
    return clone


def _insert(model: ir.Model, names: edit.Names, conv: ir.Node, mean: F64, var: F64) -> None:
    """Insert a BatchNormalization behind a convolution, with mean and variance of its output, [channels]."""
    output = conv.outputs[0]
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
