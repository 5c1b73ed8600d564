"""Layer repair after pruning, without labels and without gradients: every layer is fitted again, in depth order.

A layer behind a cut reads x̂ instead of x. Its weights W are replaced by weights that compute the dense model's output y
from x̂ with the smallest squared error, over positions of the calibration data (the dense model is run on the same
samples):

    W' = (E[y x̂ᵀ] + λ W) (E[x̂ x̂ᵀ] + λ I)⁻¹       x̂ with a 1 appended, for the bias

λ is chosen by the error on a quarter of the positions, which are not part of the sums; W stays where no λ lowers that
error. :mod:`toolchain.pruning.ridge` solves it.

Where the output f of the layer is added to a residual stream r, the sum r̂ + f̂ has to be r + f. So the target of the
layer is r + f - r̂: the branch also compensates for the error of the stream.

Sources: GRAIL and CORP (closed-form repair after pruning), ThiNet (arXiv 1707.06342, sequential least squares).
"""

from __future__ import annotations

import logging
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
from toolchain.pruning.ridge import UNLIMITED, Positions, fit_matrix

LOGGER = logging.getLogger(__name__)

POSITIONS_PER_COLUMN = 6
"""Number of positions for every column of x̂."""
MAX_POSITIONS = 12_000
"""Largest number of positions of a layer."""
MAX_PRIMAL_COLUMNS = 2_400
"""Layers with more columns use fewer positions and the dual solution."""
DUAL_POSITIONS = 3_000
"""Number of positions of a layer with more columns."""
MIN_SAMPLE_POSITIONS = 8
"""Smallest number of positions that are drawn from a sample."""

KeptChannels = Callable[[str], Index | None]
"""A function from the name of a tensor of the dense model to its channels that are left; None: all of them."""


@dataclass(frozen=True)
class RepairedLayer:
    """A product with constant weights in the pruned graph.

    Attributes:
        node: the product.
        sums: the output of the Add behind it and the other input of that Add; None where no Add follows.
    """

    node: ir.Node
    sums: tuple[ir.Value, ir.Value] | None


def repair(
    pruned: ir.Model, dense: ir.Model, data: CalibrationData, kept: KeptChannels, *, progress: Progress = silent
) -> ir.Model:
    """Fit the layers of a clone of `pruned` to the outputs of the same layers in `dense`.

    Args:
        pruned: a cut model; its nodes have the names they have in `dense`.
        dense: the model it was cut from.
        data: unlabelled samples.
        kept: channels that are left of a tensor of `dense`, on axis 1 of a Conv's output and the last axis of others.
        progress: called at every layer.
    """
    clone = pruned.clone()
    changed = _changed_names(clone, dense)
    layers = [layer for layer in _layers(clone) if changed & {layer.node.name, layer.sums and layer.sums[0].name}]
    fitted = 0
    for number, layer in enumerate(layers):
        fitted += _repair_layer(clone, dense, data, layer, kept)
        progress("repairing layers", number + 1, len(layers))
    LOGGER.info("layer repair: %d of %d layers have new weights", fitted, len(layers))
    return clone


# ------------------------------------------------------------------------------------------------ which layers


def _layers(model: ir.Model) -> Iterator[RepairedLayer]:
    for node in model.graph:
        cell = table.rule(node).channels
        is_layer = (isinstance(cell, Weighted) and node.op_type == "Conv") or isinstance(cell, Contracted)
        if not is_layer or query.float_array(node.inputs[1]) is None or query.attribute(node, "transA", 0):
            continue
        if len(query.sizes(node.inputs[1]) or ()) < 2 or (node.op_type == "MatMul" and query.rank(node.inputs[1]) != 2):  # type: ignore[arg-type]
            continue
        yield RepairedLayer(node, _sum_behind(node))


def _sum_behind(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Find the Add that alone reads a product, if its other input is computed before the product."""
    reader = query.sole_consumer(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return None
    a, b = reader.inputs
    other = b if a is node.outputs[0] else a
    if other is None or query.constant(other) is not None or other is node.outputs[0]:
        return None
    # The other input must be computed already: two branches cannot both compensate for the stream.
    order = {n: i for i, n in enumerate(reader.graph)}  # type: ignore[arg-type]
    producer = other.producer()
    return (reader.outputs[0], other) if producer is None or order[producer] < order[node] else None


def _changed_names(pruned: ir.Model, dense: ir.Model) -> set[str | None]:
    """Name the nodes whose inputs differ from the dense model's, and the tensors that replace others.

    A product whose output channels were cut, but whose inputs are the same as before, needs no repair.
    """
    of_dense = {node.name: node for node in dense.graph}
    tainted: set[ir.Value] = set()
    changed: set[str | None] = set()
    for node in pruned.graph:
        original = of_dense.get(node.name)
        if original is None or any(value in tainted for value in node.inputs):
            changed.add(node.name)
            tainted.update(node.outputs)
            continue
        if any(_differ(value, of_original) for value, of_original in zip(node.inputs, original.inputs, strict=True)):
            tainted.update(node.outputs)
        renamed = {value.name for value in node.outputs} - {value.name for value in original.outputs}
        if renamed:
            changed |= {node.name, *renamed}
            tainted.update(node.outputs)
    return changed


def _differ(value: ir.Value | None, original: ir.Value | None) -> bool:
    if value is None or original is None:
        return value is not original
    sizes = query.sizes(value, dynamic=-1) != query.sizes(original, dynamic=-1)
    return sizes or (value.name != original.name and query.constant(value) is None)


# ------------------------------------------------------------------------------------------------ one layer


def _repair_layer(
    model: ir.Model, dense: ir.Model, data: CalibrationData, layer: RepairedLayer, kept: KeptChannels
) -> bool:
    """Fit one layer in place; False where its weights stay."""
    node = layer.node
    weight = query.float_array(node.inputs[1])
    if weight is None:
        return False
    matrix, groups = _weight_matrix(node, weight)
    count = matrix.shape[2]
    x, y = _read_positions(model, dense, data, layer, kept, _position_count(count + 1), groups)
    old = matrix.astype(np.float64)
    if has_bias := node.op_type != "MatMul":
        bias = _bias(node, groups * matrix.shape[1]).reshape(groups, -1, 1)
        old = np.concatenate([old, bias], axis=2)
        x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    held = np.arange(x.shape[1]) % 4 == 3
    train, check = Positions(x[:, ~held], y[:, ~held]), Positions(x[:, held], y[:, held])
    limits = _activation_limits(node)
    new = fit_matrix(train, check, old, limits)
    if new is old:
        LOGGER.debug("%s: no ridge is better, its weights stay", query.label(node))
        return False
    before, after = check.error(old, limits), check.error(new, limits)
    LOGGER.debug("%s: held-out squared error %.4g -> %.4g", query.label(node), before, after)
    _write(model, node, new[:, :, :count], new[:, :, count:].reshape(-1) if has_bias else None, weight)
    return True


def _position_count(columns: int) -> int:
    if columns > MAX_PRIMAL_COLUMNS:
        return DUAL_POSITIONS
    return min(MAX_POSITIONS, POSITIONS_PER_COLUMN * columns)


def _activation_limits(node: ir.Node) -> tuple[float, float]:
    """Return the range that a Relu or Clip behind a layer passes on."""
    reader = query.sole_consumer(node.outputs[0])
    if reader is None or reader.op_type not in ("Relu", "Clip"):
        return UNLIMITED
    if reader.op_type == "Relu":
        return 0.0, np.inf
    low, high = (query.scalar(v) for v in [*reader.inputs[1:], None, None][:2])
    return (-np.inf if low is None else low), (np.inf if high is None else high)


def _weight_matrix(node: ir.Node, weight: Array) -> tuple[Array, int]:
    """Lay out a weight as [groups, outputs of a group, columns], with columns as in `moments.product_inputs`.

    Returns:
        The matrix and the number of groups.
    """
    if node.op_type == "Conv":
        groups = query.attribute(node, "group", 1)
        flat = np.moveaxis(weight, 1, -1).reshape(groups, len(weight) // groups, -1)
        return flat, groups
    matrix = np.asarray(weight.T if weight_axes(node).out else weight, np.float64)[None]
    return matrix * float(query.attribute(node, "alpha", 1.0)), 1


def _bias(node: ir.Node, count: int) -> Array:
    bias = query.float_array(query.optional_input(node, 2))
    if bias is None:
        return np.zeros(count, np.float32)
    return np.broadcast_to(bias.reshape(-1) * np.float32(query.attribute(node, "beta", 1.0)), (count,))


def _read_positions(
    model: ir.Model,
    dense: ir.Model,
    data: CalibrationData,
    layer: RepairedLayer,
    kept: KeptChannels,
    count: int,
    groups: int,
) -> tuple[F64, F64]:
    """Run both models and draw positions.

    Returns:
        x̂ [groups, n, columns] and the target outputs [groups, n, outputs of a group].
    """
    node = layer.node
    read = [str(node.inputs[0].name)]  # type: ignore[union-attr]
    target = str(node.outputs[0].name)
    if layer.sums is not None:
        target = str(layer.sums[0].name)
        read.append(str(layer.sums[1].name))
    of_pruned, of_dense = run.lean_session(tap.expose(model, read)), run.lean_session(tap.expose(dense, [target]))
    share = max(MIN_SAMPLE_POSITIONS, count // len(data))
    channels = 1 if node.op_type == "Conv" else -1
    index = kept(target)
    xs, ys = [], []
    for number, feed in zip(data.numbers, data, strict=True):
        inputs = of_pruned.run(None, feed)
        (output,) = of_dense.run(None, feed)
        if index is not None:
            output = output.take(index, channels)
        if layer.sums is not None:
            output = output - inputs[1]
        x = product_inputs(node, inputs[0], share, number)
        flat = np.moveaxis(output, channels, -1).reshape(-1, output.shape[channels])
        ys.append(flat[position_sampler(share, number)(len(flat))])
        xs.append(x)
    columns: F64 = np.concatenate(xs, axis=1).astype(np.float64)
    y: F64 = np.concatenate(ys).astype(np.float64)
    return columns, y.reshape(len(y), groups, -1).transpose(1, 0, 2)


def _write(model: ir.Model, node: ir.Node, matrix: F64, bias: F64 | None, weight: Array) -> None:
    """Write fitted weights into a layer; a Conv or Gemm without a bias gets one."""
    names = edit.Names(model.graph)
    if node.op_type == "Conv":
        spatial = weight.shape[2:]
        new = np.moveaxis(matrix.reshape(len(weight), *spatial, weight.shape[1]), -1, 1)
    else:
        new = matrix[0].T if weight_axes(node).out else matrix[0]
    _set_constant(model, names, node, 1, f"{query.label(node)}_fitted", new)
    if bias is not None:
        _set_constant(model, names, node, 2, f"{query.label(node)}_fitted_bias", bias)
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
    edit.remove_unused(model)


def _set_constant(model: ir.Model, names: edit.Names, node: ir.Node, index: int, name: str, array: F64) -> None:
    edit.set_constant(model.graph, names, node, index, name, np.ascontiguousarray(array, np.float32))
