"""What could be cut, and what each cut would cost: the candidates that pruning chooses from.

Losses are noise at the model's outputs on held-out samples, with just this one cut made and folded into its consumers.
Savings are milliseconds of the part of the graph in which the group appears, by whatever clock is given.
"""

from __future__ import annotations

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
from toolchain.evaluation.fidelity import Probe, db_to_power
from toolchain.formats.recipe import Prune
from toolchain.graph import edit, query, tap
from toolchain.ops.table import macs
from toolchain.ops.weights import weight_axes
from toolchain.pruning.importance import ChannelMoments, Consumer, consumers, fold, makers, needed, ranking
from toolchain.pruning.latency import Clock
from toolchain.pruning.search import Item, Option, aligned, without_dominated

FRACTIONS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Widths that are tried for a group."""
LEAST_SAVING = 0.005
"""Of the time of a group's neighbourhood; what saves less is noise."""


@dataclass(frozen=True)
class PruneBasis:
    """What every decision is made from. sizes, integers: shapes and whole numbers of tensors in the first sample."""

    model: ir.Model
    sizes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, Array]
    layout: Layout
    free: Mapping[str, Group]
    read: Mapping[str, Sequence[Consumer]]
    moments: Mapping[tuple[str, int], ChannelMoments]
    order: Mapping[str, Index]
    feed: Feed

    def sized(self, model: ir.Model) -> ir.Model:
        """A model that was cut from this one, with every axis as long as in the first sample. It is changed in place.

        Axes of which only the run tells the size are never cut, so they are as long as they were.
        """
        for value in query.activations(model):
            known = self.sizes.get(str(value.name))
            if known is not None and value.shape is not None and len(known) == len(value.shape):
                value.shape = ir.Shape(
                    [d if isinstance(d, int) else n for d, n in zip(value.shape, known, strict=True)]
                )
        return model

    def part(self, model: ir.Model, names: Sequence[str]) -> ir.Model:
        """The named nodes of a model that was cut from this one, by themselves, with the shapes of the first sample."""
        known = {node.name for node in self.model.graph}
        shapes = [str(node.name) for node in model.graph if node.name not in known]  # joined anew by the cut
        found = edit.extract(self.sized(model), [*names, *shapes])
        for value in list(found.graph.inputs):
            numbers = self.integers.get(str(value.name))
            if numbers is not None:
                value.replace_all_uses_with(edit.add_constant(found.graph, f"{value.name}_first", numbers))
                found.graph.inputs.remove(value)
        return found


def basis_of(model: ir.Model, data: CalibrationData, settings: Prune, report: Progress) -> PruneBasis:
    """Groups, who reads them, and the order in which their channels go.

    Args:
        model: an optimized float model.
        data: what moments are taken from.
        settings: criterion and seed.
        report: told about every step.
    """
    separated = separate(model)
    found = layout(separated)
    free = {group.name: group for group in groups(separated, found) if group.free}
    read = {name: consumers(separated, found, group) for name, group in free.items()}
    wanted = needed(consumer for some in read.values() for consumer in some)
    moments = (
        {at: ChannelMoments(*m) for at, m in channel_moments(separated, data, wanted, progress=report).items()}
        if wanted
        else {}
    )
    order = {}
    for number, (name, group) in enumerate(free.items()):
        report("ranking channels", number + 1, len(free))
        made = makers(separated, found, group)
        order[name] = ranking(
            group, read[name], moments, settings.criterion, made=made, seed=settings.seed, least=max(1, group.size // 5)
        )
    feed = next(iter(data))
    return PruneBasis(separated, *_first_run(separated, feed), found, free, read, moments, order, feed)


def _first_run(model: ir.Model, feed: Feed) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
    """For one sample: shapes of all tensors of which only the run tells a size, and the numbers of all integer ones."""
    values = {str(value.name): value for value in query.activations(model) if not value.is_graph_input()}
    wanted = [name for name, value in values.items() if -1 in _sizes(value) or value.dtype == ir.DataType.INT64]
    found = dict(feed)
    if wanted:
        found |= tap.capture(model, wanted, [feed])[0]
    integers = {name: array for name, array in found.items() if array.dtype.kind == "i"}
    return {name: array.shape for name, array in found.items()}, integers


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return query.sizes(value, dynamic=-1) or ()


# ------------------------------------------------------------------------------------- options, and what they cost


def items(
    basis: PruneBasis, settings: Prune, probe: Probe, clock: Clock, multiple: int, report: Progress
) -> list[Item]:
    """Every group's widths and every branch, with what they lose and save.

    Args:
        basis: of the model.
        settings: whether branches may go, and whether losses are taken after folding.
        probe: measures at the outputs.
        clock: tells the time of parts.
        multiple: widths are multiples of it.
        report: progress.
    """
    items = []
    droppable = branches(basis.model) if settings.branches and settings.criterion != "random" else ()
    total = len(basis.free) + len(droppable)
    for number, (name, group) in enumerate(basis.free.items()):
        report("measuring widths", number + 1, total)
        around = _touched(basis.layout, basis.model, group)
        widths = aligned(group.size, multiple, FRACTIONS)
        cuts = [{name: kept_of(basis, name, width)} for width in widths]
        models = [basis.model.clone(), *(apply_cuts(basis.model, cut) for cut in cuts)]
        parts = [basis.part(model, around) for model in models]
        base, *times = clock(parts)
        options = []
        for width, cut, ms in zip(widths, cuts, times, strict=True):
            if base - ms > LEAST_SAVING * base:
                loss = _loss(probe, _folded(basis, cut, settings.repair))
                options.append(Option(width, loss, base - ms))
        if options:
            items.append(without_dominated(Item(name, group.size, tuple(options), _work(basis.model, around))))
    nodes_of = {name: set(_touched(basis.layout, basis.model, group)) for name, group in basis.free.items()}
    for number, branch in enumerate(droppable):
        report("measuring branches", len(basis.free) + number + 1, total)
        items.append(_branch_item(basis, branch, nodes_of, probe, clock))
    return items


def _branch_item(
    basis: PruneBasis, branch: Branch, nodes_of: Mapping[str, set[str]], probe: Probe, clock: Clock
) -> Item:
    inside = tuple(name for name, nodes in nodes_of.items() if nodes <= set(branch.nodes))
    whole = [*branch.nodes, branch.name]
    (time_ms,) = clock([basis.part(basis.model.clone(), whole)])
    loss = _loss(probe, drop_branches(basis.model, [branch.name]))
    return Item(branch.name, 1, (Option(0, loss, time_ms),), _work(basis.model, branch.nodes), inside)


def _touched(found: Layout, model: ir.Model, group: Group) -> list[str]:
    """The nodes that read or make a tensor with the group in it."""

    def has(value: ir.Value | None) -> bool:
        return value is not None and any(group.leaf in set(leaves(axis)) for axis in found.axes.get(value, ()))

    return [str(n.name) for n in model.graph if any(has(v) for v in n.inputs) or any(has(v) for v in n.outputs)]


def _work(model: ir.Model, names: Sequence[str]) -> dict[str, float]:
    chosen = set(names)
    return {str(n.name): float(macs(n) or 0) for n in model.graph if n.name in chosen and (macs(n) or 0)}


def kept_of(basis: PruneBasis, name: str, width: int) -> list[int]:
    """The places that a group of so many keeps."""
    return sorted(int(place) for place in basis.order[name][basis.free[name].size - width :])


def _loss(probe: Probe, model: ir.Model) -> float:
    return db_to_power(probe.fidelity_db(model))


def _folded(basis: PruneBasis, cuts: Mapping[str, Sequence[int]], mend: bool) -> ir.Model:
    """Cut, and what the consumers lose folded into what they keep."""
    pruned = apply_cuts(basis.model, cuts)
    if not mend:
        return pruned
    keep = keep_sets(basis.model, basis.layout, cuts)
    before, after = ({n.name: n for n in m.graph} for m in (basis.model, pruned))
    names = edit.Names(pruned.graph)
    for name in cuts:
        for consumer in basis.read[name]:
            old, new = before[consumer.node], after.get(consumer.node)
            if consumer.weight is None or new is None or old.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            if old.inputs[0] is None or old.inputs[0].name != consumer.reads or query.attribute(old, "group", 1) > 1:
                continue
            kept = kept_positions(basis.layout.axes[old.inputs[0]][consumer.axis], keep)
            rows = fold(consumer.weight, basis.moments[consumer.reads, consumer.axis].second, kept)
            array = query.float_array(old.inputs[1])
            if array is None:
                continue
            out = weight_axes(old).out
            shape = (len(kept), array.shape[0], *array.shape[2:]) if old.op_type == "Conv" else rows.shape
            whole = rows.reshape(shape)
            whole = whole.swapaxes(0, 1) if out == 0 else whole
            left = kept_positions(basis.layout.axes[old.inputs[1]][out], keep)  # type: ignore[index]
            whole = np.ascontiguousarray(whole.take(left, out), np.float32)
            edit.set_input(new, 1, edit.add_constant(pruned.graph, names.fresh(f"{consumer.node}_folded"), whole))
    edit.remove_unused(pruned)
    return pruned
