"""`prune_model`: structured pruning of a float model to a goal, from unlabelled data, without training.

    groups ──► rank their channels ──► loss and saving of every width ──► search ──► cut ──► prove ──► repair ──► judge
                                                                            ▲                                      │
                                                                            └───────── measure the whole ◄─────────┘

Losses are measured at the model's outputs, savings in the precision of the deployment. The result is never slower than
the input: where pruning does not help, the input model is returned with the reason. Where the goal costs more than is
allowed, nothing is returned: the error says how far the model can go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2

import onnx_ir as ir

from toolchain.channels.cut import apply_cuts, parameter_count
from toolchain.channels.groups import Group, groups
from toolchain.channels.proof import verify_cuts
from toolchain.core.errors import GateError, ModelError
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import CutFidelity, CutGroup, CutProof, Pruning
from toolchain.formats.recipe import Prune
from toolchain.formats.results import Score
from toolchain.ops.cost import total_macs
from toolchain.optimization.passes import optimize
from toolchain.pruning import speed
from toolchain.pruning.curve import Goal, out_of_reach, too_costly
from toolchain.pruning.latency import PartClock, counted_clock, measured_clock
from toolchain.pruning.loss import LossLimit
from toolchain.pruning.options import PruneBasis, kept_channels, prune_basis, pruning_units
from toolchain.pruning.search import WidthPlan, aligned_widths, greedy_path
from toolchain.pruning.speed import Speed, SpeedMeter
from toolchain.pruning.task import PruneTask
from toolchain.training.engine.distil import require_trainable

LOGGER = logging.getLogger(__name__)

NO_USEFUL_CUT = "no cut saves time before the outputs degrade"
MEASURED_SLOWER = "the pruned model was measured slower"

CHECK_SAMPLES = 16
"""Number of held-out samples that losses of single cuts are measured on."""
MIN_GAIN_SHARE = 0.5
"""Least part of the gain that was asked for; with less, the goal counts as failed."""
MAX_CORRECTIONS = 2
"""Number of times that more is cut because the measurement shows less than the races promised."""


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune_model`.

    Attributes:
        model: the pruned model, cleaned up, or the input where pruning did not help.
        record: what was cut, why, and the effect.
        score: its score; None where it was not measured.
    """

    model: ir.Model
    record: Pruning
    score: Score | None = None


def prune_model(
    model: ir.Model,
    data: CalibrationData,
    settings: Prune,
    *,
    check: CalibrationData | None = None,
    limit: LossLimit | None = None,
    int8: bool = False,
    multiple: int = 16,
    here: bool = True,
    progress: Progress = silent,
    clock: PartClock | None = None,
    meter: SpeedMeter | None = None,
) -> Pruned:
    """Prune an optimized float model.

    Args:
        model: the result of :func:`toolchain.optimization.passes.optimize`.
        data: unlabelled samples for moments and repair.
        settings: the goal and the method.
        check: samples that losses are measured on; None holds a quarter of `data` back.
        limit: the most that may be lost; None: everything.
        int8: int8 follows, so time is measured in int8.
        multiple: channels that the target's kernels process at once.
        here: time is measured on this machine; otherwise it is estimated.
        progress: called at every step.
        clock: times parts of the model; None: the one that `settings` and `here` ask for.
        meter: times whole models; None: :data:`toolchain.pruning.speed.HERE`.

    Raises:
        ModelError: nothing in the model can be cut.
        PruningLossError: the goal costs more than the limit allows, or is out of reach.
        GateError: the goal is out of reach, and there is no limit; the proof fails; the speed-up that is measured at
            the end is less than half of what was asked for.
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
    judge = Judge(basis.model, check.take(CHECK_SAMPLES))
    meter = meter or speed.HERE
    task = PruneTask(basis, data, check, settings, judge, limit, int8, chosen_by, progress, meter)
    if settings.uniform:
        path = _uniform_path(basis, settings, multiple)
        return _finish(task, path, len(path) - 1, Goal("keep", _macs_factor(settings)))
    units = pruning_units(basis, settings, judge, clock or default_clock, multiple, progress)
    return _reach_goal(task, greedy_path(units))


def _clock(settings: Prune, *, int8: bool, multiple: int, here: bool) -> tuple[PartClock, str]:
    """Choose what measures the time of parts, and its name in reports."""
    if settings.uniform or settings.keep is not None:
        return counted_clock(1), "multiply-accumulates"
    if here:
        return measured_clock(int8=int8), f"measured on this machine in {'int8' if int8 else 'fp32'}"
    return counted_clock(multiple), "estimated, because the target is not this machine"


def _macs_factor(settings: Prune) -> float:
    """Return the factor by which uniform widths reduce the multiply-accumulates."""
    return 1 / settings.keep if settings.keep else settings.speedup or 1.0


def _uniform_path(basis: PruneBasis, settings: Prune, multiple: int) -> list[WidthPlan]:
    """Keep the same share of every group, less and less of it, until the goal is met, in multiply-accumulates."""
    goal_macs = total_macs(basis.sized(basis.model.clone())) / _macs_factor(settings)
    path = [WidthPlan({}, (), 0.0, 0.0)]
    for percent in range(95, 4, -5):
        options = {name: aligned_widths(group.size, multiple, (percent / 100,)) for name, group in basis.free.items()}
        widths = {name: option[0] for name, option in options.items() if option}
        path.append(WidthPlan(widths, (), 0.0, 0.0))
        cut = apply_cuts(basis.model, {name: kept_channels(basis, name, width) for name, width in widths.items()})
        if total_macs(basis.sized(cut)) <= goal_macs:
            break
    return path


# --------------------------------------------------------------------------------------------- to the goal


def _reach_goal(task: PruneTask, path: Sequence[WidthPlan]) -> Pruned:
    """Find the first plan of a path that meets the goal, by bisection; every tried plan is measured as a whole.

    Raises:
        GateError: no plan of the path meets the goal; a PruningLossError where there is a limit.
    """
    basis, settings = task.basis, task.settings
    if settings.keep is not None:
        goal = Goal("keep", 1 / settings.keep)

        def reached(plan: WidthPlan) -> float:
            return task.macs_factor(task.cut(plan))
    else:
        dense = task.deployed_dense
        first_ms = task.meter.race(dense, dense, basis.feed).medians_s[0] * 1e3
        goal = _speed_goal(settings, first_ms)
        if goal.factor <= 1:
            return _unpruned(task, f"the model already takes only {first_ms:.2f} ms")

        def reached(plan: WidthPlan) -> float:
            return task.race(dense, task.deployed(task.cut(plan)))

    if len(path) == 1:
        return _unpruned(task, NO_USEFUL_CUT)
    index = _first_reaching(task, path, 1, goal.factor, reached)
    if index == len(path) - 1 and (most := reached(path[index])) < goal.factor:
        if most <= 1:
            return _unpruned(task, MEASURED_SLOWER)
        if task.limit is not None:
            raise out_of_reach(task, task.limit, goal, path)
        raise GateError(
            f"a {'reduction' if settings.keep is not None else 'speed-up'} of {goal.factor:.2f} times is out of reach; "
            f"{most:.2f} is the most before outputs degrade",
            where=basis.model.graph.name,
            hint="ask for less; `toolchain inspect --groups` shows which channels cannot be cut",
        )
    if settings.keep is None:
        index = _corrected(task, path, index, goal, reached)
    return _finish(task, path, index, goal)


def _speed_goal(settings: Prune, first_ms: float) -> Goal:
    """Return the goal as a speed-up of a model that takes `first_ms` milliseconds."""
    if settings.latency_ms is not None:
        return Goal("latency_ms", first_ms / settings.latency_ms, first_ms)
    return Goal("speedup", settings.speedup or 1.0, first_ms)


def _first_reaching(
    task: PruneTask, path: Sequence[WidthPlan], low: int, factor: float, reached: Callable[[WidthPlan], float]
) -> int:
    """Return the number of the first plan from `low` on that reaches a factor, by bisection; else of the last plan."""
    high = len(path) - 1
    turns = ceil(log2(max(high - low, 1))) + 1
    while low < high:
        task.progress("measuring whole models", turns - ceil(log2(high - low + 1)), turns)
        middle = (low + high) // 2
        ratio = reached(path[middle])
        LOGGER.info("plan %d of %d: reduction by a factor of %.2f, goal %.2f", middle, len(path) - 1, ratio, factor)
        low, high = (low, middle) if ratio >= factor else (middle + 1, high)
    return low


def _corrected(
    task: PruneTask, path: Sequence[WidthPlan], index: int, goal: Goal, reached: Callable[[WidthPlan], float]
) -> int:
    """Cut more where fresh processes show less than the races in this process."""
    factor = goal.factor
    for _ in range(MAX_CORRECTIONS):
        if index == len(path) - 1:
            break
        pruned = task.deployed(optimize(task.cut(path[index]), verify=False).model)
        measured = task.measure(task.deployed_dense, pruned)
        wanted = _speed_goal(task.settings, measured.first_ms).factor
        if measured.speedup.high >= wanted:
            break
        factor *= wanted / measured.speedup.value
        LOGGER.info("plan %d was measured at %.2f times; the next one has to race at %.2f", index,
                    measured.speedup.value, factor)  # fmt: skip
        index = _first_reaching(task, path, index + 1, factor, reached)
    return index


def _finish(task: PruneTask, path: Sequence[WidthPlan], index: int, goal: Goal) -> Pruned:
    """Prove, repair, measure and judge a plan.

    Raises:
        GateError: the cut graph differs from the masked original, or is clearly slower than was asked for.
        PruningLossError: it loses too much.
    """
    basis, settings, plan = task.basis, task.settings, path[index]
    if not plan.kept and not plan.dropped:
        return _unpruned(task, NO_USEFUL_CUT)
    for name, width in plan.kept.items():
        LOGGER.info("%s keeps %d of %d channels", name, width, basis.free[name].size)
    for name in plan.dropped:
        LOGGER.info("the branch at %s is removed", name)
    proof = _proved(task, plan)
    made = task.make(plan, minutes=settings.minutes)
    pruned = optimize(made.model).model
    fp32 = deployed = task.measure(basis.model, pruned)
    if task.int8:
        deployed = task.deployed_speed(pruned)
    if deployed.speedup.high < 1:
        return _unpruned(task, MEASURED_SLOWER)
    loss = None
    if task.limit is not None:
        task.progress("judging")
        loss = task.limit.loss(pruned)
        if loss.fault is not None:
            factor = task.macs_factor(pruned) if goal.kind == "keep" else deployed.speedup.value
            raise too_costly(task, task.limit, goal, path, index, loss.point(factor))
    record = Pruning(
        helped=True,
        speedup=fp32.speedup.value,
        speedup_interval=fp32.interval,
        int8_speedup=deployed.speedup.value if task.int8 else None,
        int8_speedup_interval=deployed.interval if task.int8 else None,
        fidelity_db=CutFidelity(cut=made.cut_db, repaired=task.judge.fidelity_db(pruned)),
        verdict=None if loss is None else loss.verdict,
        lost=() if loss is None else loss.told,
        macs=(task.dense_macs, task.macs(pruned.clone())),
        parameters=(parameter_count(basis.model), parameter_count(pruned)),
        chosen_by=task.chosen_by,
        groups=tuple(_cut_group(basis.free[name], width) for name, width in plan.kept.items()),
        dropped=plan.dropped,
        proof=proof,
        notes=_missed(task, goal, deployed),
    )
    return Pruned(pruned, record, None if loss is None else loss.score)


def _proved(task: PruneTask, plan: WidthPlan) -> CutProof | None:
    """Prove that the cut is right; None where only branches are removed.

    Raises:
        GateError: the cut graph differs from the masked original.
    """
    cuts = task.cuts(plan)
    if not cuts:
        return None
    task.progress("proving the cut")
    proof = verify_cuts(task.basis.model, cuts, apply_cuts(task.basis.model, cuts))
    if proof.mismatches:
        hint = "report the model, and prune fewer groups meanwhile"
        what = f"the pruned model differs from the original with these channels masked: {proof.mismatches[0]}"
        raise GateError(what, where="prune", hint=hint)
    return proof


def _missed(task: PruneTask, goal: Goal, deployed: Speed) -> tuple[str, ...]:
    """Say that the measured speed-up is less than was asked for.

    Raises:
        GateError: it is less than half of what was asked for above 1.
    """
    if goal.kind == "keep":
        return ()
    wanted, (low, high) = _speed_goal(task.settings, deployed.first_ms).factor, deployed.interval
    if high >= wanted:
        return ()
    what = (
        f"{wanted:.2f} times was asked for, and {deployed.speedup.value:.2f} times (95 %: {low:.2f} to {high:.2f}) "
        "was measured"
    )
    if high < 1 + (wanted - 1) * MIN_GAIN_SHARE:
        hint = "run it again on a calm computer, or ask for less"
        raise GateError(what, where=task.basis.model.graph.name, hint=hint)
    return (f"the goal was missed: {what}",)


def _unpruned(task: PruneTask, reason: str) -> Pruned:
    LOGGER.info("not pruned: %s", reason)
    return Pruned(task.basis.model, Pruning(helped=False, reason=reason, chosen_by=task.chosen_by))


def _cut_group(group: Group, kept: int) -> CutGroup:
    nodes = tuple(dict.fromkeys(member.node for member in group.members))
    return CutGroup(name=group.name, size=group.size, kept=kept, nodes=nodes)
