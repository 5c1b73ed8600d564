"""Batch normalizations for a student that has much to learn: put in for the training, folded away afterwards.

Behind every convolution, y' = g (y - E[y]) / sqrt(Var[y] + ε) + b with g = sqrt(Var[y] + ε) and b = E[y] of some data:
the student computes what it did, until it learns (Ioffe and Szegedy 2015, arXiv 1502.03167).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.data.tensors import Feed
from toolchain.graph import edit, query, run, tap

EPSILON = 1e-5


def normalized(model: ir.Model, feeds: Iterable[Feed]) -> ir.Model:
    """A clone with a BatchNormalization behind every Conv, by its statistics on `feeds`; the same function."""
    clone = model.clone()
    convs = [node for node in clone.graph if node.op_type == "Conv"]
    names = edit.Names(clone.graph)
    session = run.session(tap.expose(model, [str(node.outputs[0].name) for node in convs]))
    sums: list[F64] = [np.zeros((2, 1)) for _ in convs]
    counts = [0] * len(convs)
    for feed in feeds:
        for number, answer in enumerate(session.run(None, feed)):
            rows: F64 = np.moveaxis(np.asarray(answer), 1, 0).reshape(answer.shape[1], -1).astype(np.float64)
            sums[number] = sums[number] + np.stack([rows.sum(1), np.square(rows).sum(1)])
            counts[number] += rows.shape[1]
    for conv, (total, squares), count in zip(convs, sums, counts, strict=True):
        mean = total / count
        _insert(clone, names, conv, mean, np.maximum(squares / count - mean**2, 0))
    return clone


def _insert(model: ir.Model, names: edit.Names, conv: ir.Node, mean: F64, var: F64) -> None:
    """One of them, by the statistics of the convolution's channels."""
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
