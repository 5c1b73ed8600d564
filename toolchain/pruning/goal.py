"""`prune_model`: a smaller, faster graph from a float model and unlabelled data, without training.

    groups ──► rank their channels ──► loss and saving of every width ──► search ──► cut ──► prove ──► repair
                                                                            ▲                            │
                                                                            └──── measure the whole ◄────┘

Losses are measured at the model's outputs, savings in the precision that will be deployed. What comes back is never
slower than what was given: where nothing helps, that is said, and the input returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import onnx_ir as ir

from toolchain.channels.branches import drop_branches
from toolchain.channels.cut import Cuts, apply_cuts, keep_sets, parameter_count
from toolchain.channels.groups import Group, groups
from toolchain.channels.index_spaces import kept_positions
from toolchain.channels.proof import verify_cuts
from toolchain.core.arrays import Index
from toolchain.core.errors import GateError, ModelError
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Feed
from toolchain.evaluation.fidelity import Probe
from toolchain.formats.findings import CutFidelity, CutGroup, Pruning
from toolchain.formats.recipe import Prune
from toolchain.graph import run
from toolchain.latency.race import Race, race
from toolchain.ops.cost import total_macs
from toolchain.pruning.latency import Clock, counted, measured, quick_int8
from toolchain.pruning.options import PruneBasis, basis_of, items, kept_of
from toolchain.pruning.repair import repair
from toolchain.pruning.search import Widths, aligned, walk
from toolchain.training.engine.distil import distil, require_trainable

CHECK_SAMPLES = 16
"""So many samples judge an option."""
INT8_SAMPLES = 4
"""So many are enough for an int8 model whose speed alone is of interest."""


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune_model`. model: the pruned graph, or the input where pruning did not help."""

    model: ir.Model
    record: Pruning


def prune_model(
    model: ir.Model,
    data: CalibrationData,
    settings: Prune,
    *,
    check: CalibrationData | None = None,
    int8: bool = False,
    multiple: int = 16,
    here: bool = True,
    progress: Progress = silent,
) -> Pruned:
    """Prune an optimized float model.

    Args:
        model: as :func:`toolchain.optimization.passes.optimize` leaves it.
        data: unlabelled samples that decisions and repairs are made from.
        settings: the goal, and how.
        check: samples that losses are judged by; None holds a quarter of `data` out.
        int8: whether int8 follows; latency is then int8's.
        multiple: channels that the target's kernels take at once.
        here: whether latency is measured on this machine; else it is counted.
        progress: told about every step.

    Raises:
        ModelError: nothing in the model can be cut. GateError: the goal is out of reach, or the proof fails.
        DataError: a sample cannot be run.
    """
    if settings.minutes:
        require_trainable(model)
    if check is None:
        data, check = data.split()
    basis = basis_of(model, data, settings, progress)
    if not basis.free:
        reasons = sorted({pin for group in groups(basis.model, basis.layout) for pin in group.pins})
        raise ModelError(
            "has no channels that may be cut", where=model.graph.name, hint=f"they are pinned: {'; '.join(reasons[:4])}"
        )
    clock, savings = _clock(settings, int8=int8, multiple=multiple, here=here)
    job = _PruneTask(
        basis, data, check, settings, Probe(basis.model, list(check.take(CHECK_SAMPLES))), int8, savings, progress
    )
    if settings.uniform:
        return _finish(job, _uniform(basis, settings, multiple))
    return _reach_goal(job, walk(items(basis, settings, job.probe, clock, multiple, progress)))


def _clock(settings: Prune, *, int8: bool, multiple: int, here: bool) -> tuple[Clock, str]:
    """What tells the time, and how reports name it."""
    if settings.uniform or settings.keep is not None:
        return counted(1), "multiply-accumulates"
    if here:
        return measured(int8=int8), f"measured here in {'int8' if int8 else 'fp32'}"
    return counted(multiple), "counted, not measured: the target is not this machine"


# --------------------------------------------------------------------------------------------- to the goal


@dataclass(frozen=True)
class _PruneTask:
    """What is asked for, and everything it is decided by. savings: what widths are chosen by."""

    basis: PruneBasis
    data: CalibrationData
    check: CalibrationData
    settings: Prune
    probe: Probe
    int8: bool
    savings: str
    report: Progress

    def deployed(self, model: ir.Model) -> ir.Model:
        """As fast as it will be."""
        return quick_int8(model, self.data.take(INT8_SAMPLES)) if self.int8 else model

    def cuts(self, widths: Widths) -> dict[str, list[int]]:
        """The places that widths keep."""
        return {name: kept_of(self.basis, name, width) for name, width in widths.kept.items()}

    def macs(self, model: ir.Model) -> int:
        """Multiply-accumulates for the first sample; the model's shapes are filled in."""
        return total_macs(self.basis.sized(model))

    def cut(self, widths: Widths) -> ir.Model:
        """The model with these widths, not repaired."""
        return drop_branches(apply_cuts(self.basis.model, self.cuts(widths)), widths.dropped)


def _uniform(basis: PruneBasis, settings: Prune, multiple: int) -> Widths:
    """The same part of every group: the largest with which the goal's part of the work is left."""
    wanted = (settings.keep or 1 / (settings.speedup or 1.0)) * total_macs(basis.sized(basis.model.clone()))
    widths: dict[str, int] = {}
    for percent in range(95, 4, -5):
        tried = {name: aligned(group.size, multiple, (percent / 100,)) for name, group in basis.free.items()}
        widths = {name: found[0] for name, found in tried.items() if found}
        cut = apply_cuts(basis.model, {name: kept_of(basis, name, width) for name, width in widths.items()})
        if total_macs(basis.sized(cut)) <= wanted:
            break
    return Widths(widths, (), 0.0, 0.0)


def _reach_goal(job: _PruneTask, path: Sequence[Widths]) -> Pruned:
    """The first point of the walk at which the goal is met: found by bisection, and measured, not predicted."""
    basis, settings = job.basis, job.settings
    if settings.keep is not None:
        whole = job.macs(basis.model.clone())

        def reached(widths: Widths) -> float:
            return whole / job.macs(job.cut(widths))

        goal = 1 / settings.keep
    else:
        dense = job.deployed(basis.model)
        base_ms = _race(dense, dense, basis.feed).medians_s[0] * 1e3
        goal = settings.speedup or base_ms / (settings.latency_ms or base_ms)
        if goal <= 1:
            return _unpruned(job, f"it takes {base_ms:.2f} ms already")

        def reached(widths: Widths) -> float:
            return _speedup(_race(dense, job.deployed(job.cut(widths)), basis.feed))

    if len(path) == 1:
        return _unpruned(job, "no cut that was tried saves time and leaves the answer")
    low, high, turns = 1, len(path) - 1, ceil(log2(len(path)))
    while low < high:
        job.report("measuring whole models", turns - ceil(log2(high - low + 1)), turns)
        middle = (low + high) // 2
        low, high = (low, middle) if reached(path[middle]) >= goal else (middle + 1, high)
    if low == len(path) - 1 and (most := reached(path[low])) < goal:
        if most <= 1:
            return _unpruned(job, "pruned, it was measured slower")
        raise GateError(
            f"cannot be pruned so far: {most:.2f} of {goal:.2f} times, and little of its answer is left",
            where=basis.model.graph.name,
            hint="ask for less; `toolchain inspect --groups` tells what cannot be cut",
        )
    return _finish(job, path[low])


def _race(dense: ir.Model, pruned: ir.Model, feed: Feed) -> Race:
    return race(run.session(dense, threads=1), run.session(pruned, threads=1), feed, seconds=1.0)


def _speedup(found: Race) -> float:
    """Median over rounds, in each of which both ran: what slows one round slows both."""
    return float(np.median(np.array(found.first_s) / np.array(found.second_s)))


def _finish(job: _PruneTask, widths: Widths) -> Pruned:
    """Prove, repair and measure a choice of widths."""
    basis, settings, cuts = job.basis, job.settings, job.cuts(widths)
    if not cuts and not widths.dropped:
        return _unpruned(job, "no cut that was tried saves time and leaves the answer")
    job.report("proving the cut", 0, 0)
    proof = verify_cuts(basis.model, cuts, apply_cuts(basis.model, cuts)) if cuts else None
    if proof is not None and proof.mismatches:
        hint = "report the model; meanwhile prune with fewer groups"
        raise GateError(f"the pruned graph is not the masked one: {proof.mismatches[0]}", where="prune", hint=hint)
    pruned = job.cut(widths)
    before_db = job.probe.fidelity_db(pruned)
    if settings.repair:
        pruned = _repaired(job, cuts, pruned)
    if settings.minutes:
        pruned = distil(
            pruned,
            basis.model,
            job.data,
            minutes=settings.minutes,
            seed=settings.seed,
            check=job.check,
            progress=job.report,
        ).model
    deployed = fp32 = _race(basis.model, pruned, basis.feed)
    if job.int8:
        deployed = _race(job.deployed(basis.model), job.deployed(pruned), basis.feed)
    record = Pruning(
        helped=True,
        speedup=_speedup(fp32),
        int8_speedup=_speedup(deployed) if job.int8 else None,
        fidelity_db=CutFidelity(cut=before_db, repaired=job.probe.fidelity_db(pruned)),
        macs=(job.macs(basis.model.clone()), job.macs(pruned.clone())),
        parameters=(parameter_count(basis.model), parameter_count(pruned)),
        chosen_by=job.savings,
        groups=tuple(_cut_group(basis.free[name], width) for name, width in widths.kept.items()),
        dropped=widths.dropped,
        proof=proof,
    )
    if deployed.second_is_slower(by=1.0):
        slower = record.model_copy(update={"helped": False, "reason": "pruned, it was measured slower"})
        return Pruned(basis.model, slower)
    return Pruned(pruned, record)


def _unpruned(job: _PruneTask, reason: str) -> Pruned:
    return Pruned(job.basis.model, Pruning(helped=False, reason=reason, chosen_by=job.savings))


def _cut_group(group: Group, kept: int) -> CutGroup:
    nodes = tuple(dict.fromkeys(member.node for member in group.members))
    return CutGroup(name=group.name, size=group.size, kept=kept, nodes=nodes)


def _repaired(job: _PruneTask, cuts: Cuts, pruned: ir.Model) -> ir.Model:
    """Fitted to the dense model's answers, where that brings the outputs nearer to them."""
    basis = job.basis
    keep = keep_sets(basis.model, basis.layout, cuts)
    known = {str(value.name): (value, axes) for value, axes in basis.layout.axes.items()}

    def kept(tensor: str) -> Index | None:
        value, axes = known[tensor]
        axis = axes[1] if _has_channels_first(value) else axes[-1]
        found = kept_positions(axis, keep) if axis.root.size is not None else None
        return None if found is None or len(found) == axis.root.size else found

    mended = repair(pruned, basis.model, job.data, kept, progress=job.report)
    return mended if job.probe.fidelity_db(mended) > job.probe.fidelity_db(pruned) else pruned


def _has_channels_first(value: ir.Value) -> bool:
    """Whether a convolution makes it, or a sum of which one is a part."""
    node = value.producer()
    while node is not None and node.op_type == "Add":
        conv = any(v is not None and (n := v.producer()) is not None and n.op_type == "Conv" for v in node.inputs)
        if conv:
            return True
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Conv"
