"""The layout of a graph: one index space for each axis of each value, which shows where channels run.

The nodes are visited in order. Each unifies the spaces of its inputs, weights and outputs as the *channels* cell of its
operator says (``ops/table.py``); ``compute_ops.py`` and ``movement_ops.py`` have one function for each kind of cell.
Inputs and outputs of the graph, axes of unknown operators, and sizes that are read as data are pinned.

    stream [N, 24] ──Conv──► [N, 144] ──depthwise──► [N, 144] ──Conv──► [N, 24] ──Add──►   144 is free: one group, in
       └───────────────────────────────────────────────────────────────────────────┘      six weights; 24 is another,
                                                                                         shared by all that is summed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from toolchain.channels import compute_ops, movement_ops
from toolchain.channels.compute_ops import NOT_UNDERSTOOD, UNKNOWN_OPERATOR, Axes, LayoutBuilder, NotUnderstoodError
from toolchain.graph import query
from toolchain.ops import cells
from toolchain.ops.table import ALREADY_QUANTIZED, BARRIER, rule

INPUT, OUTPUT = "it is an input of the model", "it is an output of the model"
READ_IN_BRANCH = "the branch of an {op} reads it"


@dataclass(frozen=True)
class Layout:
    """Index spaces of all values of known rank.

    Attributes:
        axes: one space for each axis of each value.
        summed: for every node, the axes over which it sums and which its outputs do not contain, as (input's index,
            axis).
    """

    axes: Mapping[ir.Value, Axes]
    summed: Mapping[ir.Node, tuple[tuple[int, int], ...]]

    def sizes(self, value: ir.Value) -> tuple[int | None, ...]:
        """Sizes of the axes of a value; None where unknown."""
        return tuple(axis.root.size for axis in self.axes[value])


def layout(model: ir.Model) -> Layout:
    """Compute the layout of an optimized float model; the model is not changed."""
    builder = LayoutBuilder()
    for value in model.graph.inputs:  # also those with a default value, since it may be fed
        builder.axes[value] = builder.fresh(value, INPUT)
    for node in model.graph:
        _visit(builder, node)
    for value in model.graph.outputs:
        builder.pin(value, OUTPUT)
    return Layout(builder.axes, builder.summed)


def _visit(builder: LayoutBuilder, node: ir.Node) -> None:
    if query.op(node) == "Constant":
        return  # handled like an initializer, when a node reads it
    for inner in query.inner_nodes(node):
        for value in inner.inputs:
            builder.pin(value, READ_IN_BRANCH.format(op=query.op(node)))
    axes, reason = _output_axes(builder, node)
    if axes is None:
        for value in node.inputs:
            builder.pin(value, reason)
        builder.summed.pop(node, None)
        axes = [builder.fresh(output, reason) for output in node.outputs]
    builder.axes.update(zip(node.outputs, axes, strict=False))


def _output_axes(builder: LayoutBuilder, node: ir.Node) -> tuple[list[Axes] | None, str]:
    """The axes of a node's outputs, or None and the reason why it is a barrier."""
    row = rule(node)
    if row in (ALREADY_QUANTIZED, BARRIER):
        return None, UNKNOWN_OPERATOR.format(op=query.op(node))
    try:
        outputs = HANDLERS[type(row.channels)](builder, node, row.channels)
    except NotUnderstoodError as error:
        return None, error.reason.format(op=query.op(node))
    except ValueError:  # sizes that do not fit together
        return None, NOT_UNDERSTOOD.format(op=query.op(node))
    return (outputs if _agree(node, outputs) else None), NOT_UNDERSTOOD.format(op=query.op(node))


def _agree(node: ir.Node, outputs: Sequence[Axes]) -> bool:
    """True if the axes have the sizes that shape inference found."""
    if len(outputs) < sum(bool(output.name) for output in node.outputs):
        return False
    for output, axes in zip(node.outputs, outputs, strict=False):
        known = query.sizes(output, dynamic=-1)
        if known is not None and not _agree_sizes(known, axes):
            return False
    return True


def _agree_sizes(known: Sequence[int], axes: Axes) -> bool:
    return len(known) == len(axes) and all(
        size < 0 or axis.root.size in (None, size) for size, axis in zip(known, axes, strict=True)
    )


HANDLERS: Mapping[type, Callable[[LayoutBuilder, ir.Node, Any], list[Axes]]] = {
    cells.Weighted: compute_ops.weighted,
    cells.Contracted: compute_ops.contracted,
    cells.Elementwise: compute_ops.elementwise,
    cells.PerChannel: compute_ops.per_channel,
    cells.SpatialOnly: compute_ops.spatial,
    cells.Joined: movement_ops.joined,
    cells.Parted: movement_ops.parted,
    cells.Reshaped: movement_ops.reshaped,
    cells.Permuted: movement_ops.permuted,
    cells.Expanded: movement_ops.expanded,
    cells.Reduced: compute_ops.reduced,
    cells.Shuffled: movement_ops.shuffled,
    cells.Selected: compute_ops.selected,
    cells.Recurrent: compute_ops.recurrent,
    cells.GroupedNorm: compute_ops.grouped_norm,
    cells.Pinned: compute_ops.pinned,
}
