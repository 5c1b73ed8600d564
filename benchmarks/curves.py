"""Curves of accuracy against latency: points from measured files, the Pareto front, and the plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolchain.core.files import replacing

MARKERS = "osD^vP*X<>phd"
COLOURS = [mpl.colormaps["tab20"].colors[i] for i in (*range(0, 20, 2), *range(1, 20, 2))]  # type: ignore[attr-defined]
"""Dark colours first. Two contestants of one colour differ in their markers."""


@dataclass(frozen=True)
class Spread:
    """The mean, least and largest value of a number over the seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A contestant at one size, over all seeds.

    Attributes:
        contestant: its name.
        size: target speed-up, or ratio of channels removed.
        speedup: over the unpruned model.
        metric: labelled, 0 to 1.
    """

    contestant: str
    size: float
    speedup: Spread
    metric: Spread


@dataclass(frozen=True)
class Run:
    """One measured file."""

    contestant: str
    size: float
    speedup: float
    metric: float


def points(runs: Iterable[Run]) -> list[Point]:
    """One point for each contestant and size; contestants in the order of the runs, sizes ascending."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.contestant, []).append(run)
    means = []
    for name, own in grouped.items():
        for size, same in groupby(sorted(own, key=lambda run: run.size), key=lambda run: run.size):
            seeds = list(same)
            means.append(Point(name, size, _spread([r.speedup for r in seeds]), _spread([r.metric for r in seeds])))
    return means


def _spread(values: Sequence[float]) -> Spread:
    low, high = min(values), max(values)
    mean = min(max(sum(values) / len(values), low), high)  # the mean of equal values may be off by a rounding error
    return Spread(mean, low, high)


def unbeaten(points: Sequence[Point], metric: float) -> list[Point]:
    """The points that no other point dominates, by their means.

    A point dominates another if it is at least as fast and as accurate, and better in one of the two.

    Args:
        points: of all contestants.
        metric: of the unpruned model, which is a point at speed-up 1.
    """
    places = [(point.speedup.mean, point.metric.mean) for point in points]
    rivals = [(1.0, metric), *places]
    return [
        point
        for point, place in zip(points, places, strict=True)
        if not any(all(a >= b for a, b in zip(other, place, strict=True)) and other != place for other in rivals)
    ]


def plot(points: Sequence[Point], metric: float, title: str, label: str, file: Path) -> None:
    """Draw one curve for each contestant into an SVG file.

    Our curve is thick; bars reach from the worst seed to the best.
    """
    mpl.rcParams.update({"svg.hashsalt": "prune", "font.size": 10})
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(groupby(points, key=lambda point: point.contestant)):
        _draw(axes, name, list(curve), MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)])
    axes.plot(1, 100 * metric, marker="+", markersize=12, color="black", linestyle="none", label="unpruned")
    axes.axvline(1, linestyle=":", color="grey", linewidth=1)
    axes.set(xlabel="speed-up over the unpruned model (median latency, 1 thread)", ylabel=label)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with replacing(file) as folder:
        figure.savefig(folder / file.name, metadata={"Date": None})


def _draw(axes: Axes, name: str, curve: Sequence[Point], marker: str, colour: tuple[float, ...]) -> None:
    ordered = sorted(curve, key=lambda point: point.speedup.mean)
    axes.errorbar(
        [p.speedup.mean for p in ordered],
        [100 * p.metric.mean for p in ordered],
        xerr=[[p.speedup.mean - p.speedup.low for p in ordered], [p.speedup.high - p.speedup.mean for p in ordered]],
        yerr=[
            [100 * (p.metric.mean - p.metric.low) for p in ordered],
            [100 * (p.metric.high - p.metric.mean) for p in ordered],
        ],
        marker=marker,
        color=colour,
        markersize=5,
        linewidth=2.5 if name == "ours" else 1,
        elinewidth=0.8,
        capsize=2,
        label=name,
    )
