"""`prune_model`: structured pruning of a float model to a goal, from unlabelled data, without training.

    groups ──► rank their channels ──► loss and saving of every width ──► search ──► cut ──► prove ──► repair
                                                                            ▲                            │
                                                                            └──── measure the whole ◄────┘

Losses are measured at the model's outputs, savings in the precision of the deployment. The result is never slower than
the input: where pruning does not help, the input model is returned with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import CutFidelity, CutGroup, Pruning
from toolchain.formats.recipe import Prune
from toolchain.graph import run
from toolchain.latency.race import Race, race
from toolchain.ops.cost import total_macs
from toolchain.pruning.latency import PartClock, counted_clock, measured_clock, quick_int8
from toolchain.pruning.options import PruneBasis, kept_channels, prune_basis, pruning_units
from toolchain.pruning.repair import repair
from toolchain.pruning.search import WidthPlan, aligned_widths, greedy_path
from toolchain.training.engine.distil import distil, require_trainable

LOGGER = logging.getLogger(__name__)

NO_USEFUL_CUT = "no cut saves time before the outputs degrade"
MEASURED_SLOWER = "the pruned model was measured slower"

CHECK_SAMPLES = 16
"""Number of held-out samples that losses are measured on."""
INT8_SAMPLES = 4
"""Number of samples for an int8 model of which only the speed is measured."""
RACE_SECONDS = 1.0
"""Time for one comparison of two whole models."""

RaceModels = Callable[[ir.Model, ir.Model, Feed], Race]
"""A function that times two models in turn."""


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune_model`.

    Attributes:
        model: the pruned model, or the input where pruning did not help.
        record: what was cut, why, and the effect.
    """

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
    clock: PartClock | None = None,
    race_models: RaceModels | None = None,
) -> Pruned:
    """Prune an optimized float model.

    Args:
        model: the result of :func:`toolchain.optimization.passes.optimize`.
        data: unlabelled samples for moments and repair.
        settings: the goal and the method.
        check: samples that losses are measured on; None holds a quarter of `data` back.
        int8: int8 follows, so time is measured in int8.
        multiple: channels that the target's kernels process at once.
        here: time is measured on this machine; otherwise it is estimated.
        progress: called at every step.
        clock: times parts of the model; None: the one that `settings` and `here` ask for.
        race_models: times whole models; None: :func:`race_on_this_machine`.

    Raises:
        ModelError: nothing in the model can be cut.
        GateError: the goal is out of reach, or the proof fails.
        DataError: a sample cannot be run.
    """
    if settings.minutes:
        require_trainable(model)
    if check is None:
        data, check = data.split()
    basis = prune_basis(model, data, settings, progress)
    if not basis.free:
        reasons = sorted({pin for group in groups(basis.model, basis.layout) for pin in group.pins})
        raise ModelError(
            "has no channels that may be cut", where=model.graph.name, hint=f"they are pinned: {'; '.join(reasons[:4])}"
        )
    default_clock, chosen_by = _clock(settings, int8=int8, multiple=multiple, here=here)
    task = _PruneTask(
        basis,
        data,
        check,
        settings,
        Judge(basis.model, check.take(CHECK_SAMPLES)),
        int8,
        chosen_by,
        progress,
        race_models or race_on_this_machine,
    )
    if settings.uniform:
        return _finish(task, _uniform_plan(basis, settings, multiple))
    units = pruning_units(basis, settings, task.judge, clock or default_clock, multiple, progress)
    return _reach_goal(task, greedy_path(units))


def _clock(settings: Prune, *, int8: bool, multiple: int, here: bool) -> tuple[PartClock, str]:
    """Choose what measures the time of parts, and its name in reports."""
    if settings.uniform or settings.keep is not None:
        return counted_clock(1), "multiply-accumulates"
    if here:
        return measured_clock(int8=int8), f"measured on this machine in {'int8' if int8 else 'fp32'}"
    return counted_clock(multiple), "estimated, because the target is not this machine"


def race_on_this_machine(dense: ir.Model, pruned: ir.Model, feed: Feed) -> Race:
    """Time two models in turn on this machine, one thread."""
    return race(run.session(dense, threads=1), run.session(pruned, threads=1), feed, seconds=RACE_SECONDS)


# --------------------------------------------------------------------------------------------- to the goal


@dataclass(frozen=True)
class _PruneTask:
    """The request and everything that decisions are made from.

    Attributes:
        chosen_by: the cost by which widths are chosen, for the report.
    """

    basis: PruneBasis
    data: CalibrationData
    check: CalibrationData
    settings: Prune
    judge: Judge
    int8: bool
    chosen_by: str
    progress: Progress
    race_models: RaceModels

    def deployed(self, model: ir.Model) -> ir.Model:
        """Return the model itself, or an int8 model that is as fast as the deployed one."""
        return quick_int8(model, self.data.take(INT8_SAMPLES)) if self.int8 else model

    def cuts(self, plan: WidthPlan) -> dict[str, list[int]]:
        """Return the channels that each cut group keeps."""
        return {name: kept_channels(self.basis, name, width) for name, width in plan.kept.items()}

    def macs(self, model: ir.Model) -> int:
        """Count multiply-accumulates for the first sample; sets the shapes of the model."""
        return total_macs(self.basis.sized(model))

    def cut(self, plan: WidthPlan) -> ir.Model:
        """Cut the model, without repair."""
        return drop_branches(apply_cuts(self.basis.model, self.cuts(plan)), plan.dropped)

    def speedup(self, dense: ir.Model, pruned: ir.Model) -> float:
        """Measure the time of the first model divided by the time of the second."""
        return _speedup(self.race_models(dense, pruned, self.basis.feed))


def _uniform_plan(basis: PruneBasis, settings: Prune, multiple: int) -> WidthPlan:
    """Keep the same share of every group: the largest that meets the goal, counted in multiply-accumulates."""
    goal_macs = (settings.keep or 1 / (settings.speedup or 1.0)) * total_macs(basis.sized(basis.model.clone()))
    widths: dict[str, int] = {}
    for percent in range(95, 4, -5):
        options = {name: aligned_widths(group.size, multiple, (percent / 100,)) for name, group in basis.free.items()}
        widths = {name: option[0] for name, option in options.items() if option}
        cut = apply_cuts(basis.model, {name: kept_channels(basis, name, width) for name, width in widths.items()})
        if total_macs(basis.sized(cut)) <= goal_macs:
            break
    return WidthPlan(widths, (), 0.0, 0.0)


def _reach_goal(task: _PruneTask, path: Sequence[WidthPlan]) -> Pruned:
    """Find the first plan of a path that meets the goal, by bisection; every tried plan is measured as a whole.

    Raises:
        GateError: no plan of the path meets the goal.
    """
    basis, settings = task.basis, task.settings
    if settings.keep is not None:
        whole = task.macs(basis.model.clone())

        def reached(plan: WidthPlan) -> float:
            return whole / task.macs(task.cut(plan))

        goal = 1 / settings.keep
    else:
        dense = task.deployed(basis.model)
        base_ms = task.race_models(dense, dense, basis.feed).medians_s[0] * 1e3
        goal = settings.speedup or base_ms / (settings.latency_ms or base_ms)
        if goal <= 1:
            return _unpruned(task, f"the model already takes only {base_ms:.2f} ms")

        def reached(plan: WidthPlan) -> float:
            return task.speedup(dense, task.deployed(task.cut(plan)))

    if len(path) == 1:
        return _unpruned(task, NO_USEFUL_CUT)
    low, high, turns = 1, len(path) - 1, ceil(log2(len(path)))
    while low < high:
        task.progress("measuring whole models", turns - ceil(log2(high - low + 1)), turns)
        middle = (low + high) // 2
        ratio = reached(path[middle])
        LOGGER.info("plan %d of %d: reduction by a factor of %.2f, goal %.2f", middle, len(path) - 1, ratio, goal)
        low, high = (low, middle) if ratio >= goal else (middle + 1, high)
    if low == len(path) - 1 and (most := reached(path[low])) < goal:
        if most <= 1:
            return _unpruned(task, MEASURED_SLOWER)
        raise GateError(
            f"a {'reduction' if settings.keep is not None else 'speed-up'} of {goal:.2f} times is out of reach; "
            f"{most:.2f} is the most before outputs degrade",
            where=basis.model.graph.name,
            hint="ask for less; `toolchain inspect --groups` shows which channels cannot be cut",
        )
    return _finish(task, path[low])


def _speedup(times: Race) -> float:
    """Compute the median ratio over rounds; both models run in every round, so a slow round affects both."""
    return float(np.median(np.array(times.first_s) / np.array(times.second_s)))


def _finish(task: _PruneTask, plan: WidthPlan) -> Pruned:
    """Prove, repair and measure a plan.

    Raises:
        GateError: the cut graph differs from the masked original.
    """
    basis, settings, cuts = task.basis, task.settings, task.cuts(plan)
    if not cuts and not plan.dropped:
        return _unpruned(task, NO_USEFUL_CUT)
    for name, width in plan.kept.items():
        LOGGER.info("%s keeps %d of %d channels", name, width, basis.free[name].size)
    for name in plan.dropped:
        LOGGER.info("the branch at %s is removed", name)
    task.progress("proving the cut")
    proof = verify_cuts(basis.model, cuts, apply_cuts(basis.model, cuts)) if cuts else None
    if proof is not None and proof.mismatches:
        hint = "report the model, and prune fewer groups meanwhile"
        what = f"the pruned model differs from the original with these channels masked: {proof.mismatches[0]}"
        raise GateError(what, where="prune", hint=hint)
    pruned = task.cut(plan)
    before_db = task.judge.fidelity_db(pruned)
    if settings.repair:
        pruned = _repaired(task, cuts, pruned)
    if settings.minutes:
        pruned = distil(
            pruned,
            basis.model,
            task.data,
            minutes=settings.minutes,
            seed=settings.seed,
            check=task.check,
            progress=task.progress,
        ).model
    deployed = fp32 = task.race_models(basis.model, pruned, basis.feed)
    if task.int8:
        deployed = task.race_models(task.deployed(basis.model), task.deployed(pruned), basis.feed)
    record = Pruning(
        helped=True,
        speedup=_speedup(fp32),
        int8_speedup=_speedup(deployed) if task.int8 else None,
        fidelity_db=CutFidelity(cut=before_db, repaired=task.judge.fidelity_db(pruned)),
        macs=(task.macs(basis.model.clone()), task.macs(pruned.clone())),
        parameters=(parameter_count(basis.model), parameter_count(pruned)),
        chosen_by=task.chosen_by,
        groups=tuple(_cut_group(basis.free[name], width) for name, width in plan.kept.items()),
        dropped=plan.dropped,
        proof=proof,
    )
    if deployed.second_is_slower(by=1.0):
        slower = record.model_copy(update={"helped": False, "reason": MEASURED_SLOWER})
        return Pruned(basis.model, slower)
    return Pruned(pruned, record)


def _unpruned(task: _PruneTask, reason: str) -> Pruned:
    LOGGER.info("not pruned: %s", reason)
    return Pruned(task.basis.model, Pruning(helped=False, reason=reason, chosen_by=task.chosen_by))


def _cut_group(group: Group, kept: int) -> CutGroup:
    nodes = tuple(dict.fromkeys(member.node for member in group.members))
    return CutGroup(name=group.name, size=group.size, kept=kept, nodes=nodes)


def _repaired(task: _PruneTask, cuts: Cuts, pruned: ir.Model) -> ir.Model:
    """Repair the layers; keep the repair only where it brings the outputs nearer to the dense model's."""
    basis = task.basis
    keep = keep_sets(basis.model, basis.layout, cuts)
    by_name = {str(value.name): (value, axes) for value, axes in basis.layout.axes.items()}

    def kept(tensor: str) -> Index | None:
        value, axes = by_name[tensor]
        axis = axes[1] if _has_channels_first(value) else axes[-1]
        positions = kept_positions(axis, keep) if axis.root.size is not None else None
        return None if positions is None or len(positions) == axis.root.size else positions

    repaired = repair(pruned, basis.model, task.data, kept, progress=task.progress)
    before_db, after_db = (task.judge.fidelity_db(model) for model in (pruned, repaired))
    better = after_db > before_db
    LOGGER.info("layer repair: %.2f dB -> %.2f dB, %s", before_db, after_db, "kept" if better else "not kept")
    return repaired if better else pruned


def _has_channels_first(value: ir.Value) -> bool:
    """Check whether a tensor is the output of a convolution, or of sums with a convolution among their terms."""
    node = value.producer()
    while node is not None and node.op_type == "Add":
        conv = any(v is not None and (n := v.producer()) is not None and n.op_type == "Conv" for v in node.inputs)
        if conv:
            return True
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Conv"
