"""The search for widths: the smallest loss for the time that has to be saved.

Every group of channels can have several widths, and every residual branch can be removed as a whole. Each of these
options has a loss (noise that it adds to the outputs) and a saving (milliseconds of the nodes around it). Both were
measured with everything else uncut:

losses     add up, as long as they are small
savings    of two groups in one operator overlap: the time left is (1-a)(1-b), not 1-a-b. A saving is multiplied by the
           mean of the remaining and the original size of every other group in its operators, weighted by their work

The search starts with nothing cut and repeatedly takes the option with the smallest ratio of added loss to added
saving: greedy along the convex hull of a multiple-choice knapsack (Sinha and Zoltners 1979), computed again after every
step because savings change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LOGGER = logging.getLogger(__name__)

MIN_SAVING_MS = 1e-6
"""An option that adds less than this to the saving is not taken."""
MAX_LOSS = 1.0
"""Loss at which the noise has the variance of the outputs, before repair; with more, too little is left to repair."""


@dataclass(frozen=True)
class WidthOption:
    """A width of a group, or the removal of a branch.

    Attributes:
        kept: channels that stay; 0 for a branch that is removed.
        loss: noise at the outputs relative to their variance.
        saving_ms: time that the nodes around it save, with everything else uncut.
    """

    kept: int
    loss: float
    saving_ms: float


@dataclass(frozen=True)
class PruningUnit:
    """A group of channels or a residual branch, with its options.

    Attributes:
        name: name of the group or branch.
        size: channels of the group; 1 for a branch.
        options: widths that were measured.
        work: multiply-accumulates of each operator it changes, by node.
        inside: names of the units inside a branch, which no longer count when the branch is removed.
    """

    name: str
    size: int
    options: tuple[WidthOption, ...]
    work: Mapping[str, float]
    inside: tuple[str, ...] = ()


@dataclass(frozen=True)
class WidthPlan:
    """The widths of all groups.

    Attributes:
        kept: channels that stay, by group, where any are cut.
        dropped: branches that are removed.
        loss: predicted noise at the outputs.
        saving_ms: predicted saving.
    """

    kept: Mapping[str, int]
    dropped: tuple[str, ...]
    loss: float
    saving_ms: float


def greedy_path(units: Sequence[PruningUnit]) -> list[WidthPlan]:
    """List plans from nothing cut to as much as possible, one choice at a time, while the loss is below `MAX_LOSS`."""
    search = _Search(units)
    path = [search.plan]
    while search.step() and search.plan.loss < MAX_LOSS:
        path.append(search.plan)
    LOGGER.info(
        "pruning search: %d steps; the last plan cuts %d groups and %d branches, predicted loss %.3g",
        len(path) - 1,
        len(path[-1].kept),
        len(path[-1].dropped),
        path[-1].loss,
    )
    return path


class _Search:
    """The option chosen for each unit so far."""

    def __init__(self, units: Sequence[PruningUnit]) -> None:
        self._units = {unit.name: unit for unit in units}
        self._chosen: dict[str, WidthOption] = {}

    @property
    def plan(self) -> WidthPlan:
        return self._as_plan(self._chosen)

    def step(self) -> bool:
        """Take the option with the smallest ratio of loss to saving; False where none saves time."""
        loss, saving = self._loss(self._chosen), self._saving(self._chosen)
        best: tuple[float, str, dict[str, WidthOption]] | None = None
        for unit in self._units.values():
            current = self._chosen.get(unit.name)
            if self._is_removed(unit.name, self._chosen):
                continue
            for option in unit.options:
                if current is not None and option.kept >= current.kept:
                    continue
                chosen = {**self._chosen, unit.name: option}
                saved = self._saving(chosen) - saving
                if saved <= MIN_SAVING_MS:
                    continue
                ratio = max(self._loss(chosen) - loss, 1e-12) / saved
                if best is None or ratio < best[0]:
                    best = ratio, unit.name, chosen
        if best is None:
            return False
        _, name, self._chosen = best
        option = self._chosen[name]
        LOGGER.debug("%s keeps %d of %d channels: loss %.3g, saving %.4f ms", name, option.kept, self._units[name].size,
                     self._loss(self._chosen), self._saving(self._chosen))  # fmt: skip
        return True

    def _is_removed(self, name: str, chosen: Mapping[str, WidthOption]) -> bool:
        return any(name in unit.inside for other in chosen if (unit := self._units[other]).inside)

    def _remaining(self, chosen: Mapping[str, WidthOption]) -> dict[str, WidthOption]:
        return {name: option for name, option in chosen.items() if not self._is_removed(name, chosen)}

    def _loss(self, chosen: Mapping[str, WidthOption]) -> float:
        return sum(option.loss for option in self._remaining(chosen).values())

    def _saving(self, chosen: Mapping[str, WidthOption]) -> float:
        remaining = self._remaining(chosen)
        left: dict[str, dict[str, float]] = {}
        for name, option in remaining.items():
            unit = self._units[name]
            for node in unit.work:
                left.setdefault(node, {})[name] = option.kept / unit.size
        total = 0.0
        for name, option in remaining.items():
            work = self._units[name].work
            whole = sum(work.values()) or 1.0
            share = 0.0
            for node, macs in work.items():
                factor = 1.0
                for other, fraction in left[node].items():
                    factor *= 1.0 if other == name else (1 + fraction) / 2
                share += macs / whole * factor
            total += option.saving_ms * share
        return total

    def _as_plan(self, chosen: Mapping[str, WidthOption]) -> WidthPlan:
        remaining = self._remaining(chosen)
        dropped = tuple(name for name, option in remaining.items() if option.kept == 0)
        kept = {name: option.kept for name, option in remaining.items() if option.kept}
        return WidthPlan(kept, dropped, self._loss(chosen), self._saving(chosen))


def aligned_widths(size: int, multiple: int, fractions: Sequence[float]) -> list[int]:
    """Compute widths of a group at these fractions, in multiples of `multiple` (of 1 for groups too small for it)."""
    step = multiple if size >= 2 * multiple else 1
    widths = {max(step, round(size * fraction / step) * step) for fraction in fractions}
    return sorted((width for width in widths if width < size), reverse=True)


def with_rising_losses(unit: PruningUnit) -> PruningUnit:
    """Raise losses so that a narrower width never has a smaller one: measured on few samples, they scatter."""
    worst, options = 0.0, []
    for option in sorted(unit.options, key=lambda o: -o.kept):
        worst = max(worst, option.loss)
        options.append(replace(option, loss=worst))
    return replace(unit, options=tuple(options))
