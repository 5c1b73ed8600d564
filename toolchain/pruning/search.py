"""How much to cut where: the least loss for the time that must go.

Every group has options, narrower and narrower; every residual branch can go as a whole. An option has a loss (what it
does to the outputs) and a saving (milliseconds of its neighbourhood). Both were measured with everything else whole:

losses     add up, as long as they are small
savings    of two groups in one operator overlap: of the time (1-a)(1-b) is left, not 1-a-b. A saving counts for the
           mean of what is left and what was there, over the operators it is in, weighted by their work

The walk starts with nothing cut and takes the option of the best ratio of added loss to added saving, again and
again: greedy along the convex hull of a multiple-choice knapsack (Sinha and Zoltners 1979), looked at anew after every
step because savings change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Option:
    """kept: places of the group that stay, 0 for a branch that goes. loss: noise over energy at the outputs.
    saving_ms: of its neighbourhood, everything else whole.
    """

    kept: int
    loss: float
    saving_ms: float


@dataclass(frozen=True)
class Item:
    """Something to decide on. work: multiply-accumulates of each operator it changes. inside: items that lie within,
    and are moot when this one goes as a whole (branches only).
    """

    name: str
    size: int
    options: tuple[Option, ...]
    work: Mapping[str, float]
    inside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Widths:
    """kept: places by group where any were cut. dropped: branches. loss, saving_ms: as predicted."""

    kept: Mapping[str, int]
    dropped: tuple[str, ...]
    loss: float
    saving_ms: float


MOST_LOSS = 1.0
"""Noise as loud as the answer, before repair: what is cut further has nothing left to be repaired from."""


def walk(items: Sequence[Item]) -> list[Widths]:
    """From nothing cut to as much as can be, one choice at a time, while the predicted loss is below `MOST_LOSS`."""
    search = _Search(items)
    path = [search.widths]
    while search.step() and search.widths.loss < MOST_LOSS:
        path.append(search.widths)
    return path


class _Search:
    def __init__(self, items: Sequence[Item]) -> None:
        self._items = {item.name: item for item in items}
        self._chosen: dict[str, Option] = {}

    @property
    def widths(self) -> Widths:
        return self._as_widths(self._chosen)

    def step(self) -> bool:
        loss, saving = self._loss(self._chosen), self._saving(self._chosen)
        best: tuple[float, dict[str, Option]] | None = None
        for item in self._items.values():
            now = self._chosen.get(item.name)
            if self._moot(item.name, self._chosen):
                continue
            for option in item.options:
                if now is not None and option.kept >= now.kept:
                    continue
                chosen = {**self._chosen, item.name: option}
                gained = self._saving(chosen) - saving
                if gained <= 1e-6:
                    continue
                ratio = max(self._loss(chosen) - loss, 1e-12) / gained
                if best is None or ratio < best[0]:
                    best = ratio, chosen
        if best is None:
            return False
        self._chosen = best[1]
        return True

    def _moot(self, name: str, chosen: Mapping[str, Option]) -> bool:
        return any(name in item.inside for other in chosen if (item := self._items[other]).inside)

    def _live(self, chosen: Mapping[str, Option]) -> dict[str, Option]:
        return {name: option for name, option in chosen.items() if not self._moot(name, chosen)}

    def _loss(self, chosen: Mapping[str, Option]) -> float:
        return sum(option.loss for option in self._live(chosen).values())

    def _saving(self, chosen: Mapping[str, Option]) -> float:
        live = self._live(chosen)
        left: dict[str, dict[str, float]] = {}
        for name, option in live.items():
            item = self._items[name]
            for node in item.work:
                left.setdefault(node, {})[name] = option.kept / item.size
        total = 0.0
        for name, option in live.items():
            work = self._items[name].work
            whole = sum(work.values()) or 1.0
            share = 0.0
            for node, macs in work.items():
                factor = 1.0
                for other, fraction in left[node].items():
                    factor *= 1.0 if other == name else (1 + fraction) / 2
                share += macs / whole * factor
            total += option.saving_ms * share
        return total

    def _as_widths(self, chosen: Mapping[str, Option]) -> Widths:
        live = self._live(chosen)
        dropped = tuple(name for name, option in live.items() if option.kept == 0)
        kept = {name: option.kept for name, option in live.items() if option.kept}
        return Widths(kept, dropped, self._loss(chosen), self._saving(chosen))


def aligned(size: int, unit: int, fractions: Sequence[float]) -> list[int]:
    """Widths of a group at these fractions, in multiples of `unit` (of one, for groups too small for it)."""
    step = unit if size >= 2 * unit else 1
    widths = {max(step, round(size * fraction / step) * step) for fraction in fractions}
    return sorted((width for width in widths if width < size), reverse=True)


def without_dominated(item: Item) -> Item:
    """Losses made to rise as more goes: measured on few samples, they scatter."""
    worst, options = 0.0, []
    for option in sorted(item.options, key=lambda o: -o.kept):
        worst = max(worst, option.loss)
        options.append(replace(option, loss=worst))
    return replace(item, options=tuple(options))
