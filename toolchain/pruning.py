"""`prune_model`: a smaller, faster graph from a float model and unlabelled data, without training.

    groups ──► rank their channels ──► loss and saving of every width ──► search ──► cut ──► prove ──► repair
                                                                            ▲                            │
                                                                            └──── measure the whole ◄────┘

Losses are measured at the model's outputs, savings in the precision that will be deployed. What comes back is never
slower than what was given: where nothing helps, that is said, and the input returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.bench.race import Race, race
from toolchain.data import CalibrationData
from toolchain.errors import GateError, ModelError
from toolchain.fidelity import Probe
from toolchain.graph import edit, query, run
from toolchain.latency import Clock, counted, measured, quick_int8
from toolchain.observe import Progress
from toolchain.observe.moments import channel_moments
from toolchain.ops import macs
from toolchain.prune.apply import apply_cuts, keep_sets, parameter_count, separate
from toolchain.prune.axes import places
from toolchain.prune.branches import Branch, branches, drop_branches
from toolchain.prune.groups import Group, groups
from toolchain.prune.layout import Layout, layout
from toolchain.prune.score import Channels, Consumer, consumers, fold, makers, needed, ranking
from toolchain.prune.verify import Verified, verify_cuts
from toolchain.prune.widths import Item, Option, Widths, aligned, walk, without_dominated
from toolchain.recipe import Prune
from toolchain.reconstruct import repair
from toolchain.tensors import Feed

Places = npt.NDArray[np.intp]

FRACTIONS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Widths that are tried for a group."""
CHECK_SAMPLES = 16
"""So many samples judge an option."""
MOST_TURNS = 5
CLOSE_ENOUGH = 0.01


@dataclass(frozen=True)
class Cut:
    """One group's share in the result. nodes: the products it is a part of."""

    group: str
    size: int
    kept: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune_model` made.

    model: the pruned graph, or the input where nothing helped (`helped` False; `reason` says why).
    cuts, dropped: what was taken. verified: the proof, before repair. speedup: of the float model on this machine, one
    thread, interleaved; int8_speedup: of plain int8, where int8 follows. fidelity_db: of the outputs, against the dense
    model's, on samples that were held out: cut, after repair. savings: what the widths were chosen by.
    """

    model: ir.Model
    helped: bool
    reason: str
    cuts: tuple[Cut, ...] = ()
    dropped: tuple[str, ...] = ()
    verified: Verified | None = None
    speedup: float = 1.0
    int8_speedup: float | None = None
    fidelity_db: tuple[float, float] | None = None
    savings: str = ""
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Basis:
    """What every decision is made from. sized: the model with every axis as long as in the first sample."""

    model: ir.Model
    sized: ir.Model
    layout: Layout
    free: Mapping[str, Group]
    read: Mapping[str, Sequence[Consumer]]
    moments: Mapping[tuple[str, int], Channels]
    order: Mapping[str, Places]
    feed: Feed


def prune_model(
    model: ir.Model,
    data: CalibrationData,
    settings: Prune,
    *,
    check: CalibrationData | None = None,
    int8: bool = False,
    multiple: int = 16,
    here: bool = True,
    progress: Progress | None = None,
) -> Pruned:
    """Prune an optimized float model.

    Args:
        model: as :func:`toolchain.optimize.optimize` leaves it.
        data: unlabelled samples that decisions and repairs are made from.
        settings: the goal, and how.
        check: samples that losses are judged by; None holds a quarter of `data` out.
        int8: whether int8 follows; latency is then int8's.
        multiple: channels that the target's kernels take at once.
        here: whether latency is measured on this machine; else it is counted.
        progress: told about every step.

    Raises:
        ModelError: nothing in the model can be cut. GateError: the cut model is not the masked one.
        DataError: a sample cannot be run.
    """
    report = progress or (lambda what, done, total: None)
    if check is None:
        data, check = data.split()
    basis = _basis(model, data, settings, multiple, report)
    if not basis.free:
        reasons = sorted({pin for group in groups(basis.model, basis.layout) for pin in group.pins})
        raise ModelError(
            "has no channels that may be cut", where=model.graph.name, hint=f"they are pinned: {'; '.join(reasons[:4])}"
        )
    probe = Probe(basis.model, list(check.take(CHECK_SAMPLES)))
    if settings.uniform or settings.keep is not None:
        clock: Clock = counted(1)
        savings = "multiply-accumulates"
    elif here:
        clock, savings = measured(int8=int8), f"measured here in {'int8' if int8 else 'fp32'}"
    else:
        clock, savings = counted(multiple), "counted, not measured: the target is not this machine"
    if settings.uniform:
        found = _uniform(basis, settings, multiple)
        return _finish(basis, data, settings, found, probe, int8, savings, report)
    path = walk(_items(basis, settings, probe, clock, multiple, report))
    return _reach_goal(basis, data, settings, path, probe, int8, savings, report)


# ------------------------------------------------------------------------------------------------- basis


def _basis(model: ir.Model, data: CalibrationData, settings: Prune, multiple: int, report: Progress) -> _Basis:
    separated = separate(model)
    found = layout(separated)
    free = {group.name: group for group in groups(separated, found) if group.free}
    read = {name: consumers(separated, found, group) for name, group in free.items()}
    wanted = needed(consumer for some in read.values() for consumer in some)
    moments = (
        {at: Channels(*m) for at, m in channel_moments(separated, data, wanted, progress=report).items()}
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
    return _Basis(separated, _sized(separated, feed), found, free, read, moments, order, feed)


def _sized(model: ir.Model, feed: Feed) -> ir.Model:
    """A clone whose tensors have the sizes that they have for a sample."""
    probe = model.clone()
    values = {str(value.name): value for value in query.activations(probe)}
    wanted = [name for name, value in values.items() if not value.is_graph_input() and -1 in _sizes(value)]
    clone = model.clone()
    sizes = {name: array.shape for name, array in feed.items()}
    if wanted:
        edit.keep_outputs(probe, [values[name] for name in wanted])
        found = run.session(probe, pattern=False).run(None, feed)
        sizes |= {name: array.shape for name, array in zip(wanted, found, strict=True)}
    for value in query.activations(clone):
        if value.name in sizes:
            value.shape = ir.Shape(sizes[value.name])
    return clone


def _sizes(value: ir.Value) -> tuple[int, ...]:
    return query.sizes(value, dynamic=-1) or ()


# ------------------------------------------------------------------------------------- options, and what they cost


def _items(basis: _Basis, settings: Prune, probe: Probe, clock: Clock, multiple: int, report: Progress) -> list[Item]:
    items = []
    droppable = branches(basis.model) if settings.branches and settings.criterion != "random" else ()
    total = len(basis.free) + len(droppable)
    for number, (name, group) in enumerate(basis.free.items()):
        report("measuring widths", number + 1, total)
        around = _touched(basis.layout, basis.model, group)
        widths = aligned(group.size, multiple, FRACTIONS)
        cuts = [{name: _kept(basis, name, width)} for width in widths]
        parts = [edit.extract(basis.sized, around)]
        parts += [edit.extract(apply_cuts(basis.sized, cut), around) for cut in cuts]
        base, *times = clock(parts)
        options = []
        for width, cut, ms in zip(widths, cuts, times, strict=True):
            if base - ms > 0.005 * base:
                loss = _loss(probe, _folded(basis, cut, settings.repair))
                options.append(Option(width, loss, base - ms))
        if options:
            items.append(without_dominated(Item(name, group.size, tuple(options), _work(basis.model, around))))
    nodes_of = {name: set(_touched(basis.layout, basis.model, group)) for name, group in basis.free.items()}
    for number, branch in enumerate(droppable):
        report("measuring branches", len(basis.free) + number + 1, total)
        items.append(_branch_item(basis, branch, nodes_of, probe, clock))
    return items


def _branch_item(basis: _Basis, branch: Branch, nodes_of: Mapping[str, set[str]], probe: Probe, clock: Clock) -> Item:
    inside = tuple(name for name, nodes in nodes_of.items() if nodes <= set(branch.nodes))
    whole = [*branch.nodes, branch.name]
    (time_ms,) = clock([edit.extract(basis.sized, whole)])
    loss = _loss(probe, drop_branches(basis.model, [branch.name]))
    return Item(branch.name, 1, (Option(0, loss, time_ms),), _work(basis.model, branch.nodes), inside)


def _touched(found: Layout, model: ir.Model, group: Group) -> list[str]:
    """The nodes that read or make a tensor with the group in it."""
    from toolchain.prune.axes import leaves

    def has(value: ir.Value | None) -> bool:
        return value is not None and any(group.leaf in set(leaves(axis)) for axis in found.axes.get(value, ()))

    return [str(n.name) for n in model.graph if any(has(v) for v in n.inputs) or any(has(v) for v in n.outputs)]


def _work(model: ir.Model, names: Sequence[str]) -> dict[str, float]:
    chosen = set(names)
    return {str(n.name): float(macs(n) or 0) for n in model.graph if n.name in chosen and (macs(n) or 0)}


def _kept(basis: _Basis, name: str, width: int) -> list[int]:
    return sorted(int(place) for place in basis.order[name][basis.free[name].size - width :])


def _loss(probe: Probe, model: ir.Model) -> float:
    return float(10 ** (-probe.fidelity_db(model) / 10))


def _folded(basis: _Basis, cuts: Mapping[str, Sequence[int]], mend: bool) -> ir.Model:
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
            kept = places(basis.layout.axes[old.inputs[0]][consumer.axis], keep)
            rows = fold(consumer.weight, basis.moments[consumer.reads, consumer.axis].second, kept)
            array = query.float_array(old.inputs[1])
            if array is None:
                continue
            out = 0 if old.op_type == "Conv" or query.attribute(old, "transB", 0) else 1
            shape = (len(kept), array.shape[0], *array.shape[2:]) if old.op_type == "Conv" else rows.shape
            whole = rows.reshape(shape)
            whole = whole.swapaxes(0, 1) if out == 0 else whole
            left = places(basis.layout.axes[old.inputs[1]][out], keep)  # type: ignore[index]
            whole = np.ascontiguousarray(whole.take(left, out), np.float32)
            edit.set_input(new, 1, edit.add_constant(pruned.graph, names.fresh(f"{consumer.node}_folded"), whole))
    edit.remove_unused(pruned)
    return pruned


# --------------------------------------------------------------------------------------------- to the goal


def _uniform(basis: _Basis, settings: Prune, multiple: int) -> Widths:
    """The same part of every group: with which the goal's part of the work is left."""
    whole = _total_macs(basis.sized)
    wanted = settings.keep if settings.keep is not None else 1 / (settings.speedup or 1.0)
    best: dict[str, int] = {}
    for percent in range(95, 4, -5):
        best = {
            name: width
            for name, group in basis.free.items()
            for width in aligned(group.size, multiple, (percent / 100,))
        }
        cut = apply_cuts(basis.sized, {name: _kept(basis, name, width) for name, width in best.items()})
        if _total_macs(cut) <= wanted * whole:
            break
    return Widths(best, (), 0.0, 0.0)


def _total_macs(model: ir.Model) -> int:
    return sum(macs(node) or 0 for node in model.graph)


def _reach_goal(
    basis: _Basis,
    data: CalibrationData,
    settings: Prune,
    path: Sequence[Widths],
    probe: Probe,
    int8: bool,
    savings: str,
    report: Progress,
) -> Pruned:
    """The first point of the walk at which the goal is met: found by bisection, measured, not predicted."""
    if settings.keep is not None:
        wanted = settings.keep * _total_macs(basis.sized)

        def met(widths: Widths) -> bool:
            return _total_macs(_sized(_cut_model(basis, widths), basis.feed)) <= wanted
    else:
        some = data.take(4)
        dense = quick_int8(basis.model, some) if int8 else basis.model
        base_ms = race(run.session(dense, threads=1), run.session(dense, threads=1), basis.feed).medians_s[0] * 1e3
        goal = settings.speedup or base_ms / (settings.latency_ms or base_ms)
        if goal <= 1:
            return Pruned(basis.model, False, f"it takes {base_ms:.2f} ms already", savings=savings)

        def met(widths: Widths) -> bool:
            pruned = _cut_model(basis, widths)
            return _speedup(_race(dense, quick_int8(pruned, some) if int8 else pruned, basis.feed)) >= goal

    low, high = 0, len(path) - 1
    turns = max(1, int(np.ceil(np.log2(len(path)))))
    while low < high:
        report("measuring whole models", min(turns, turns - int(np.log2(high - low))), turns)
        middle = (low + high) // 2
        if met(path[middle]):
            high = middle
        else:
            low = middle + 1
    return _finish(basis, data, settings, path[low], probe, int8, savings, report)


def _cut_model(basis: _Basis, widths: Widths) -> ir.Model:
    cut = apply_cuts(basis.model, {name: _kept(basis, name, width) for name, width in widths.kept.items()})
    return drop_branches(cut, widths.dropped)


def _race(dense: ir.Model, pruned: ir.Model, feed: Feed) -> Race:
    return race(run.session(dense, threads=1), run.session(pruned, threads=1), feed, seconds=1.0)


def _speedup(found: Race) -> float:
    before, after = found.medians_s
    return before / after


def _finish(
    basis: _Basis,
    data: CalibrationData,
    settings: Prune,
    widths: Widths,
    probe: Probe,
    int8: bool,
    savings: str,
    report: Progress,
) -> Pruned:
    """Prove, repair and measure a choice of widths."""
    cuts = {name: _kept(basis, name, width) for name, width in widths.kept.items()}
    if not cuts and not widths.dropped:
        return Pruned(basis.model, False, "no width that was tried is faster", savings=savings)
    report("proving the cut", 0, 0)
    cut = apply_cuts(basis.model, cuts)
    verified = verify_cuts(basis.model, cuts, cut) if cuts else None
    if verified is not None and verified.mismatches:
        hint = "report the model; meanwhile prune with fewer groups"
        raise GateError(f"the pruned graph is not the masked one: {verified.mismatches[0]}", where="prune", hint=hint)
    pruned = drop_branches(cut, widths.dropped)
    before_db = probe.fidelity_db(pruned)
    if settings.repair:
        pruned = _repaired(basis, cuts, pruned, data, probe, report)
    after_db = probe.fidelity_db(pruned)
    fp32 = deployed = _race(basis.model, pruned, basis.feed)
    if int8:
        some = data.take(4)
        deployed = _race(quick_int8(basis.model, some), quick_int8(pruned, some), basis.feed)
    result = Pruned(
        pruned,
        True,
        "",
        cuts=tuple(
            Cut(name, basis.free[name].size, width, tuple(dict.fromkeys(m.node for m in basis.free[name].members)))
            for name, width in widths.kept.items()
        ),
        dropped=widths.dropped,
        verified=verified,
        speedup=_speedup(fp32),
        int8_speedup=_speedup(deployed) if int8 else None,
        fidelity_db=(before_db, after_db),
        savings=savings,
        parameters=(parameter_count(basis.model), parameter_count(pruned)),
        macs=(_total_macs(basis.sized), _total_macs(_sized(pruned, basis.feed))),
    )
    if deployed.second_is_slower(by=1.0):
        return replace(result, model=basis.model, helped=False, reason="pruned, it was measured slower")
    return result


def _repaired(
    basis: _Basis,
    cuts: Mapping[str, Sequence[int]],
    pruned: ir.Model,
    data: CalibrationData,
    probe: Probe,
    report: Progress,
) -> ir.Model:
    keep = keep_sets(basis.model, basis.layout, cuts)
    known = {str(value.name): axes for value, axes in basis.layout.axes.items()}
    rank4 = {str(value.name): query.rank(value) for value in basis.layout.axes}

    def kept(tensor: str) -> Places | None:
        axes = known[tensor]
        axis = axes[1] if (rank4[tensor] or 0) > 2 and _is_image(basis.model, tensor) else axes[-1]
        found = places(axis, keep) if axis.root.size is not None else None
        return None if found is None or len(found) == axis.root.size else found

    mended = repair(pruned, basis.model, data, kept, progress=report)
    return mended if probe.fidelity_db(mended) > probe.fidelity_db(pruned) else pruned


def _is_image(model: ir.Model, tensor: str) -> bool:
    """Whether a tensor's channels are axis 1: a convolution makes it, or what follows one."""
    value = next((v for v in query.activations(model) if v.name == tensor), None)
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Add", "Relu", "Clip") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Conv"
