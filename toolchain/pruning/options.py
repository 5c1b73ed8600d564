"""The options of pruning: every width of a group and every branch, with its loss and its saving.

A loss is noise at the model's outputs on held-out samples, with only this cut made and folded into its consumers. A
saving is the time of the part of the graph in which the group appears, by the clock that is given.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.calibration.moments import channel_moments
from toolchain.channels.branches import Branch, branches, drop_branches
from toolchain.channels.cut import apply_cuts, keep_sets, separate
from toolchain.channels.groups import Group, groups
from toolchain.channels.index_spaces import kept_positions, leaves
from toolchain.channels.layout import Layout, layout
from toolchain.core.arrays import Index
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array, Feed
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Prune
from toolchain.graph import edit, query, tap
from toolchain.ops.table import macs
from toolchain.ops.weights import weight_axes
from toolchain.pruning.importance import (
    ChannelMoments,
    Consumer,
    consumers,
    fold_removed,
    needed_moments,
    producer_weights,
    rank_channels,
)
from toolchain.pruning.latency import PartClock
from toolchain.pruning.search import PruningUnit, WidthOption, aligned_widths, with_rising_losses

LOGGER = logging.getLogger(__name__)

WIDTH_FRACTIONS = (0.9375, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Widths that are measured for a group, relative to its size."""
MIN_SAVING_SHARE = 0.005
"""Smallest saving, relative to the time of the nodes around a group; less is noise."""


@dataclass(frozen=True)
class PruneBasis:
    """Everything that pruning decisions are made from.

    Attributes:
        model: the float model, with weights that no two nodes share.
        sizes: shapes of tensors in the first sample, of those whose size is only known at run time.
        integers: values of integer tensors in the first sample.
        layout: index spaces of all axes.
        free: the groups that may be cut, by name.
        readers: the consumers of each group.
        moments: second moments, by (tensor, axis).
        order: channels of each group, the least important first.
        feed: the first sample.
    """

    model: ir.Model
    sizes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, Array]
    layout: Layout
    free: Mapping[str, Group]
    readers: Mapping[str, Sequence[Consumer]]
    moments: Mapping[tuple[str, int], ChannelMoments]
    order: Mapping[str, Index]
    feed: Feed

    def sized(self, model: ir.Model) -> ir.Model:
        """Set the shapes of a model that was cut from this one to those of the first sample, in place.

        Axes whose size is only known at run time are never cut, so they keep their size.
        """
        for value in query.activations(model):
            known = self.sizes.get(str(value.name))
            if known is not None and value.shape is not None and len(known) == len(value.shape):
                value.shape = ir.Shape(
                    [d if isinstance(d, int) else n for d, n in zip(value.shape, known, strict=True)]
                )
        return model

    def part(self, model: ir.Model, names: Sequence[str]) -> ir.Model:
        """Extract the named nodes of a model that was cut from this one, with the shapes of the first sample."""
        known = {node.name for node in self.model.graph}
        shapes = [str(node.name) for node in model.graph if node.name not in known]  # added by the cut
        part = edit.extract(self.sized(model), [*names, *shapes])
        for value in list(part.graph.inputs):
            numbers = self.integers.get(str(value.name))
            if numbers is not None:
                value.replace_all_uses_with(edit.add_constant(part.graph, f"{value.name}_first", numbers))
                part.graph.inputs.remove(value)
        return part


def prune_basis(model: ir.Model, data: CalibrationData, settings: Prune, progress: Progress) -> PruneBasis:
    """Find the groups of a model and their consumers, and rank their channels.

    Args:
        model: an optimized float model.
        data: samples that moments are computed from.
        settings: criterion and seed.
        progress: called at every step.
    """
    separated = separate(model)
    spaces = layout(separated)
    free = {group.name: group for group in groups(separated, spaces) if group.free}
    readers = {name: consumers(separated, spaces, group) for name, group in free.items()}
    needed = needed_moments(consumer for some in readers.values() for consumer in some)
    moments = (
        {at: ChannelMoments(*m) for at, m in channel_moments(separated, data, needed, progress=progress).items()}
        if needed
        else {}
    )
    order = {}
    for number, (name, group) in enumerate(free.items()):
        progress("ranking channels", number + 1, len(free))
        order[name] = rank_channels(
            group,
            readers[name],
            moments,
            settings.criterion,
            producers=producer_weights(separated, spaces, group),
            seed=settings.seed,
            min_greedy=max(1, group.size // 5),
        )
    feed = next(iter(data))
    return PruneBasis(separated, *_first_run(separated, feed), spaces, free, readers, moments, order, feed)


def _first_run(model: ir.Model, feed: Feed) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
    """Run one sample; return the shapes of tensors that are only known at run time, and values of integer tensors."""
    values = {str(value.name): value for value in query.activations(model) if not value.is_graph_input()}
    names = [name for name, value in values.items() if -1 in _sizes(value) or value.dtype == ir.DataType.INT64]
    tensors = dict(feed)
    if names:
        tensors |= tap.capture(model, names, [feed])[0]
    integers = {name: array for name, array in tensors.items() if array.dtype.kind == "i"}
    return {name: array.shape for name, array in tensors.items()}, integers


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return query.sizes(value, dynamic=-1) or ()


# --------------------------------------------------------------------------------- options and their losses


def pruning_units(
    basis: PruneBasis, settings: Prune, judge: Judge, clock: PartClock, multiple: int, progress: Progress
) -> list[PruningUnit]:
    """Measure loss and saving of every group's widths and of every branch.

    Args:
        basis: the model with its groups and moments.
        settings: tells whether branches may be removed, and whether losses are measured after folding.
        judge: measures noise at the outputs.
        clock: measures the time of parts.
        multiple: widths are multiples of it.
        progress: called at every step.
    """
    units = []
    droppable = branches(basis.model) if settings.branches and settings.criterion != "random" else ()
    total = len(basis.free) + len(droppable)
    for number, (name, group) in enumerate(basis.free.items()):
        progress("measuring widths", number + 1, total)
        around = _nodes_around(basis.layout, basis.model, group)
        widths = aligned_widths(group.size, multiple, WIDTH_FRACTIONS)
        cuts = [{name: kept_channels(basis, name, width)} for width in widths]
        models = [basis.model.clone(), *(apply_cuts(basis.model, cut) for cut in cuts)]
        parts = [basis.part(model, around) for model in models]
        base, *times = clock(parts)
        options = []
        for width, cut, ms in zip(widths, cuts, times, strict=True):
            if base - ms > MIN_SAVING_SHARE * base:
                loss = judge.noise(_folded(basis, cut, settings.repair))
                options.append(WidthOption(width, loss, base - ms))
        if options:
            units.append(with_rising_losses(PruningUnit(name, group.size, tuple(options), _work(basis.model, around))))
    nodes_of = {name: set(_nodes_around(basis.layout, basis.model, group)) for name, group in basis.free.items()}
    for number, branch in enumerate(droppable):
        progress("measuring branches", len(basis.free) + number + 1, total)
        units.append(_branch_unit(basis, branch, nodes_of, judge, clock))
    LOGGER.info("%d groups and %d branches can save time", len(units) - len(droppable), len(droppable))
    return units


def _branch_unit(
    basis: PruneBasis, branch: Branch, nodes_of: Mapping[str, set[str]], judge: Judge, clock: PartClock
) -> PruningUnit:
    inside = tuple(name for name, nodes in nodes_of.items() if nodes <= set(branch.nodes))
    whole = [*branch.nodes, branch.name]
    (time_ms,) = clock([basis.part(basis.model.clone(), whole)])
    loss = judge.noise(drop_branches(basis.model, [branch.name]))
    return PruningUnit(branch.name, 1, (WidthOption(0, loss, time_ms),), _work(basis.model, branch.nodes), inside)


def _nodes_around(spaces: Layout, model: ir.Model, group: Group) -> list[str]:
    """List the nodes that read or make a tensor with the group in it."""

    def has(value: ir.Value | None) -> bool:
        return value is not None and any(group.leaf in set(leaves(axis)) for axis in spaces.axes.get(value, ()))

    return [str(n.name) for n in model.graph if any(has(v) for v in n.inputs) or any(has(v) for v in n.outputs)]


def _work(model: ir.Model, names: Sequence[str]) -> dict[str, float]:
    """Return the multiply-accumulates of the named nodes, without those that have none."""
    chosen = set(names)
    return {str(n.name): float(macs(n) or 0) for n in model.graph if n.name in chosen and (macs(n) or 0)}


def kept_channels(basis: PruneBasis, name: str, width: int) -> list[int]:
    """Return the channels that a group keeps at a width, sorted."""
    return sorted(int(channel) for channel in basis.order[name][basis.free[name].size - width :])


def _folded(basis: PruneBasis, cuts: Mapping[str, Sequence[int]], fold: bool) -> ir.Model:
    """Cut a model. If `fold`, the weights of the kept channels take over the predictable part of the removed ones."""
    pruned = apply_cuts(basis.model, cuts)
    if not fold:
        return pruned
    keep = keep_sets(basis.model, basis.layout, cuts)
    before, after = ({n.name: n for n in m.graph} for m in (basis.model, pruned))
    names = edit.Names(pruned.graph)
    for name in cuts:
        for consumer in basis.readers[name]:
            old, new = before[consumer.node], after.get(consumer.node)
            if consumer.weight is None or new is None or old.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            if old.inputs[0] is None or old.inputs[0].name != consumer.reads or query.attribute(old, "group", 1) > 1:
                continue
            kept = kept_positions(basis.layout.axes[old.inputs[0]][consumer.axis], keep)
            rows = fold_removed(consumer.weight, basis.moments[consumer.reads, consumer.axis].second, kept)
            array = query.float_array(old.inputs[1])
            if array is None:
                continue
            out = weight_axes(old).out
            shape = (len(kept), array.shape[0], *array.shape[2:]) if old.op_type == "Conv" else rows.shape
            whole = rows.reshape(shape)
            whole = whole.swapaxes(0, 1) if out == 0 else whole
            left = kept_positions(basis.layout.axes[old.inputs[1]][out], keep)  # type: ignore[index]
            whole = np.ascontiguousarray(whole.take(left, out), np.float32)
            edit.set_constant(pruned.graph, names, new, 1, f"{consumer.node}_folded", whole)
    edit.remove_unused(pruned)
    return pruned
