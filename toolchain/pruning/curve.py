"""The refusal of a goal that costs too much, with the curve of speed against loss on the way to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

from toolchain.formats.findings import CutPoint
from toolchain.optimization.passes import optimize
from toolchain.pruning.loss import LossLimit, PruningLossError
from toolchain.pruning.search import WidthPlan
from toolchain.pruning.task import PruneTask

LOGGER = logging.getLogger(__name__)

MAX_TRIED = 5
"""Largest number of smaller cuts that are made to find the most that keeps to the limits."""


@dataclass(frozen=True)
class Goal:
    """A goal as a factor.

    Attributes:
        kind: what is given: a speed-up, a latency or a share of the multiply-accumulates.
        factor: time before over time after, or multiply-accumulates before over those after.
        first_ms: latency before, in milliseconds; 0 where the goal is a share.
    """

    kind: Literal["speedup", "latency_ms", "keep"]
    factor: float
    first_ms: float = 0.0

    def __str__(self) -> str:
        if self.kind == "keep":
            return f"keeping {1 / self.factor:.2f} of the multiply-accumulates"
        return f"a speed-up of {self.factor:.2f} times"

    def option(self, factor: float, speedup: str) -> str:
        """Return the option that asks for another factor, rounded to less.

        Args:
            factor: the factor.
            speedup: name of the option for a speed-up.
        """
        if self.kind == "keep":
            return f"--keep {ceil(100 / factor) / 100:g}"
        if self.kind == "latency_ms":
            return f"--latency-ms {float(f'{1.005 * self.first_ms / factor:.3g}'):g}"
        return f"{speedup} {floor(100 * factor) / 100:g}"


def too_costly(
    task: PruneTask, limit: LossLimit, goal: Goal, path: Sequence[WidthPlan], index: int, last: CutPoint
) -> PruningLossError:
    """Return the error for a plan that meets the goal and loses too much.

    Args:
        task: the request.
        limit: the most that may be lost.
        goal: what was asked for.
        path: plans, from nothing cut to more and more.
        index: number of the plan.
        last: what it gains and loses.
    """
    return _error(
        task, limit, goal, f"{goal} costs too much: {last.fault}", _points(task, limit, goal, path, index, last)
    )


def out_of_reach(task: PruneTask, limit: LossLimit, goal: Goal, path: Sequence[WidthPlan]) -> PruningLossError:
    """Return the error for a goal that no plan of the path meets."""
    last = _tried(task, limit, goal, path[-1])
    points = _points(task, limit, goal, path, len(path) - 1, last)
    return _error(task, limit, goal, f"{goal} is out of reach: outputs degrade before", points)


def _points(
    task: PruneTask, limit: LossLimit, goal: Goal, path: Sequence[WidthPlan], index: int, last: CutPoint
) -> list[CutPoint]:
    """Find the largest cut that keeps to the limits, by bisection; return everything that was tried, sorted."""
    points, low, high = [last], 0, index
    for number in range(MAX_TRIED if last.fault else 0):
        if high - low < 2:
            break
        task.progress("finding the most that keeps the answer", number + 1, MAX_TRIED)
        middle = (low + high) // 2
        points.append(_tried(task, limit, goal, path[middle]))
        low, high = (low, middle) if points[-1].fault else (middle, high)
    return sorted(points, key=lambda point: point.factor)


def _error(task: PruneTask, limit: LossLimit, goal: Goal, cause: str, curve: Sequence[CutPoint]) -> PruningLossError:
    kept = max((point.factor for point in curve if not point.fault and point.factor > 1), default=None)
    accept = "or accept the loss with --max-drop"
    if kept is None:
        found, hint = "no smaller cut that was tried keeps enough", f"give more samples, {accept}"
    else:
        most = f"{1 / kept:.2f} is the least" if goal.kind == "keep" else f"{kept:.2f} times is the most"
        found, hint = f"{most} that keeps enough", f"give {goal.option(kept, limit.option)}, {accept}"
    return PruningLossError(f"{cause}; {found}", where=task.basis.model.graph.name, hint=hint, curve=curve)


def _tried(task: PruneTask, limit: LossLimit, goal: Goal, plan: WidthPlan) -> CutPoint:
    """Make, measure and judge a smaller model, without training."""
    model = optimize(task.make(plan).model).model
    factor = task.macs_factor(model) if goal.kind == "keep" else task.deployed_speed(model).speedup.value
    point = limit.loss(model).point(factor)
    LOGGER.info("%.2f times: %s", point.factor, point.fault or "keeps enough")
    return point
