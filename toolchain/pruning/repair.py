"""Repair after pruning, without labels and without gradients: every layer is fitted anew, in depth order.

A layer that followed cut channels, or follows a layer that did, reads other numbers than before: x̂ instead of x. Its
weights are set to those that give the dense model's answer y from x̂ with the least squared error, over positions of the
calibration data (the dense model's are run beside):

    W' = (E[y x̂ᵀ] + λ W) (E[x̂ x̂ᵀ] + λ I)⁻¹       x̂ with a 1 behind, for the bias

λ is chosen by the error on a quarter of the positions, which the sums leave out; so is whether W is changed at all.
Where the layer's answer is added to a stream, r̂ + f̂ must be r + f: the branch makes up for what the stream has lost.

Behind a Relu or Clip it is of no matter how far below zero an answer lies: where the activation cuts y off, W' is free
to answer anything that is cut off, too. What is wanted is then set anew from what is answered, a few times over (the
non-linear reconstruction of Zhang et al., arXiv 1505.06798).

With more columns than positions the same ridge is solved in the space of positions (its dual).
Sources: GRAIL and CORP (closed-form repair after pruning), ThiNet (arXiv 1707.06342, sequential least squares).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.calibration.moments import position_sampler, product_inputs
from toolchain.core.arrays import F64, Index
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.graph import edit, query, run, tap
from toolchain.ops import table
from toolchain.ops.cells import Contracted, Weighted
from toolchain.ops.weights import weight_axes

POSITIONS_A_COLUMN = 6
MOST_POSITIONS = 12_000
PRIMAL_COLUMNS = 2_400
"""Up to so many columns E[x̂ x̂ᵀ] is inverted; beyond, positions are fewer and the dual is solved."""
DUAL_POSITIONS = 3_000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ in parts of the mean of E[x̂ x̂ᵀ]'s diagonal."""
UNLIMITED = (-np.inf, np.inf)
ROUNDS = 4
"""With a Relu or Clip behind, what is wanted depends on what is answered, and is set so often."""


@dataclass(frozen=True)
class RepairedLayer:
    """A product with constant weights of the pruned graph. sums: the Add that its answer goes into and the input that
    is not its own, where there is one.
    """

    node: ir.Node
    sums: tuple[ir.Value, ir.Value] | None


def repair(
    pruned: ir.Model,
    dense: ir.Model,
    data: CalibrationData,
    kept: Callable[[str], Index | None],
    *,
    progress: Progress = silent,
) -> ir.Model:
    """A clone of `pruned` whose layers are fitted to the answers of `dense`.

    Args:
        pruned: a cut model; its nodes have the names they have in `dense`.
        dense: what it was cut from.
        data: unlabelled samples.
        kept: which channels (axis 1 of a Conv's answer, the last of others) of a tensor of `dense` are left; None: all.
        progress: told about every layer.
    """
    clone = pruned.clone()
    changed = _changed(clone, dense)
    todo = [layer for layer in _layers(clone) if changed & {layer.node.name, layer.sums and layer.sums[0].name}]
    for number, layer in enumerate(todo):
        _fit(clone, dense, data, layer, kept)
        progress("repairing", number + 1, len(todo))
    return clone


def _layers(model: ir.Model) -> Iterator[RepairedLayer]:
    for node in model.graph:
        cell = table.rule(node).channels
        kind = (isinstance(cell, Weighted) and node.op_type == "Conv") or isinstance(cell, Contracted)
        if not kind or query.float_array(node.inputs[1]) is None or query.attribute(node, "transA", 0):
            continue
        if len(query.sizes(node.inputs[1]) or ()) < 2 or (node.op_type == "MatMul" and query.rank(node.inputs[1]) != 2):  # type: ignore[arg-type]
            continue
        yield RepairedLayer(node, _sum_behind(node))


def _sum_behind(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    reader = query.sole_consumer(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    a, b = reader.inputs
    other = b if a is node.outputs[0] else a
    if other is None or query.constant(other) is not None or other is node.outputs[0]:
        return None
    # The other side must be there already: two branches cannot both make up for the stream.
    order = {n: i for i, n in enumerate(reader.graph)}  # type: ignore[arg-type]
    made = other.producer()
    return (reader.outputs[0], other) if made is None or order[made] < order[node] else None


def _changed(pruned: ir.Model, dense: ir.Model) -> set[str | None]:
    """Nodes that read something else than in the dense model, by name, and tensors that stand for others.

    A product whose rows were cut and that reads what it read before gives what it gave: there is nothing to repair.
    """
    before = {node.name: node for node in dense.graph}
    tainted: set[ir.Value] = set()
    found: set[str | None] = set()
    for node in pruned.graph:
        twin = before.get(node.name)
        if twin is None or any(value in tainted for value in node.inputs):
            found.add(node.name)
            tainted.update(node.outputs)
            continue
        if any(_differ(mine, its) for mine, its in zip(node.inputs, twin.inputs, strict=True)):
            tainted.update(node.outputs)
        renamed = {value.name for value in node.outputs} - {value.name for value in twin.outputs}
        if renamed:
            found |= {node.name, *renamed}
            tainted.update(node.outputs)
    return found


def _differ(mine: ir.Value | None, its: ir.Value | None) -> bool:
    if mine is None or its is None:
        return mine is not its
    sizes = query.sizes(mine, dynamic=-1) != query.sizes(its, dynamic=-1)
    return sizes or (mine.name != its.name and query.constant(mine) is None)


def _fit(
    model: ir.Model,
    dense: ir.Model,
    data: CalibrationData,
    layer: RepairedLayer,
    kept: Callable[[str], Index | None],
) -> None:
    node = layer.node
    weight = query.float_array(node.inputs[1])
    if weight is None:
        return
    matrix, groups = _matrix(node, weight)
    columns = matrix.shape[2] + 1
    wanted = min(MOST_POSITIONS, POSITIONS_A_COLUMN * columns) if columns <= PRIMAL_COLUMNS else DUAL_POSITIONS
    old = matrix.astype(np.float64)
    x, y = _samples(model, dense, data, layer, kept, wanted, groups)
    if biased := node.op_type != "MatMul":
        bias = _bias(node, groups * matrix.shape[1]).reshape(groups, -1, 1)
        old = np.concatenate([old, bias], axis=2)
        x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    held = np.arange(x.shape[1]) % 4 == 3
    train, check = _Positions(x[:, ~held], y[:, ~held]), _Positions(x[:, held], y[:, held])
    new = _ridge(train, check, old, _limits(node))
    if new is not old:
        count = matrix.shape[2]
        _write(model, node, new[:, :, :count], new[:, :, count:].reshape(-1) if biased else None, weight)


@dataclass(frozen=True)
class _Positions:
    """x: [groups, n, columns] that the layer reads, y: [groups, n, outputs of one] that it should answer."""

    x: F64
    y: F64

    def answers(self, matrix: F64) -> F64:
        """Of a layer with this matrix [groups, outputs of one, columns]."""
        found: F64 = np.matmul(self.x, matrix.transpose(0, 2, 1))
        return found

    def error(self, matrix: F64, limits: tuple[float, float]) -> float:
        """Squared, of what passes the activation behind."""
        return float(np.sum((np.clip(self.y, *limits) - np.clip(self.answers(matrix), *limits)) ** 2))


def _limits(node: ir.Node) -> tuple[float, float]:
    """Between which the activation behind a layer passes its answers on."""
    reader = query.sole_consumer(node.outputs[0])
    if reader is None or reader.op_type not in ("Relu", "Clip"):
        return UNLIMITED
    if reader.op_type == "Relu":
        return 0.0, np.inf
    low, high = (query.scalar(v) for v in [*reader.inputs[1:], None, None][:2])
    return (-np.inf if low is None else low), (np.inf if high is None else high)


def _matrix(node: ir.Node, weight: Array) -> tuple[Array, int]:
    """Lay out a weight as [groups, outputs of one, columns], with columns as in `moments.product_inputs`."""
    if node.op_type == "Conv":
        groups = query.attribute(node, "group", 1)
        flat = np.moveaxis(weight, 1, -1).reshape(groups, len(weight) // groups, -1)
        return flat, groups
    matrix = np.asarray(weight.T if weight_axes(node).out else weight, np.float64)[None]
    return matrix * float(query.attribute(node, "alpha", 1.0)), 1


def _bias(node: ir.Node, count: int) -> Array:
    bias = query.float_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is None:
        return np.zeros(count, np.float32)
    return np.broadcast_to(bias.reshape(-1) * np.float32(query.attribute(node, "beta", 1.0)), (count,))


def _samples(
    model: ir.Model,
    dense: ir.Model,
    data: CalibrationData,
    layer: RepairedLayer,
    kept: Callable[[str], Index | None],
    wanted: int,
    groups: int,
) -> tuple[F64, F64]:
    """x̂ [groups, n, columns] and the answers wanted of it [groups, n, outputs of one]."""
    node = layer.node
    read = [str(node.inputs[0].name)]  # type: ignore[union-attr]
    target = str(node.outputs[0].name)
    if layer.sums is not None:
        target = str(layer.sums[0].name)
        read.append(str(layer.sums[1].name))
    engines = run.lean_session(tap.expose(model, read)), run.lean_session(tap.expose(dense, [target]))
    share = max(8, wanted // len(data))
    channels = 1 if node.op_type == "Conv" else -1
    index = kept(target)
    xs, ys = [], []
    for number, feed in zip(data.numbers, data, strict=True):
        found = engines[0].run(None, feed)
        (answer,) = engines[1].run(None, feed)
        if index is not None:
            answer = answer.take(index, channels)
        if layer.sums is not None:
            answer = answer - found[1]
        x = product_inputs(node, found[0], share, number)
        flat = np.moveaxis(answer, channels, -1).reshape(-1, answer.shape[channels])
        ys.append(flat[position_sampler(share, number)(len(flat))])
        xs.append(x)
    columns: F64 = np.concatenate(xs, axis=1).astype(np.float64)
    y: F64 = np.concatenate(ys).astype(np.float64)
    return columns, y.reshape(len(y), groups, -1).transpose(1, 0, 2)


def _ridge(train: _Positions, held: _Positions, old: F64, limits: tuple[float, float]) -> F64:
    """The best of several ridges toward `old` [G, O, K], or `old` itself, judged by what passes the activation."""
    x, (n, columns) = train.x, train.x.shape[1:]
    turned_x = x.transpose(0, 2, 1)
    dual = columns > n
    values, vectors = np.linalg.eigh(np.matmul(x, turned_x) if dual else np.matmul(turned_x, x))
    scale = np.maximum(values.sum(axis=1) / columns, 1e-12)
    answers = train.answers(old)
    best, least, wanted = old, held.error(old, limits), train.y
    for _ in range(ROUNDS if limits != UNLIMITED else 1):
        rest = wanted - answers
        turned = np.matmul(vectors.transpose(0, 2, 1), rest if dual else np.matmul(turned_x, rest))
        found = None
        for ridge in RIDGES:
            shrunk = turned / (np.maximum(values, 0) + ridge * scale[:, None])[:, :, None]
            change = np.matmul(vectors, shrunk)  # [G, n or K, O]
            change = np.matmul(turned_x, change) if dual else change
            tried = old + change.transpose(0, 2, 1)
            error = held.error(tried, limits)
            if np.isfinite(error) and error < least:
                best, least, found = tried, error, tried
        if found is None:
            break
        wanted = _wanted(train.y, train.answers(found), limits)
    return best


def _wanted(y: F64, now: F64, limits: tuple[float, float]) -> F64:
    """What the layer should answer: where an activation cuts y off, anything else that it cuts off will do."""
    low, high = limits
    wanted: F64 = np.where(y <= low, np.minimum(now, low), y)
    return np.where(y >= high, np.maximum(now, high), wanted)


def _write(model: ir.Model, node: ir.Node, matrix: F64, bias: F64 | None, weight: Array) -> None:
    """Put fitted weights in; a Conv or Gemm without a bias gets one."""
    names = edit.Names(model.graph)
    if node.op_type == "Conv":
        spatial = weight.shape[2:]
        new = np.moveaxis(matrix.reshape(len(weight), *spatial, weight.shape[1]), -1, 1)
    else:
        new = matrix[0].T if weight_axes(node).out else matrix[0]
    edit.set_input(node, 1, _constant(model, names, f"{query.label(node)}_fitted", new))
    if bias is not None:
        edit.set_input(node, 2, _constant(model, names, f"{query.label(node)}_fitted_bias", bias))
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
    edit.remove_unused(model)


def _constant(model: ir.Model, names: edit.Names, name: str, array: F64) -> ir.Value:
    return edit.add_constant(model.graph, names.fresh(name), np.ascontiguousarray(array, np.float32))
