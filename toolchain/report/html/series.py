"""Data of the report's charts: the variants of a block, each with its colour, and the records that are drawn.

Everything here is plain data; the charts are made in ``charts.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.formats.findings import Profile
from toolchain.formats.results import Latency, Measurement
from toolchain.report.derive import Block, Row

COLOURED_VARIANTS = ("fp32", "int8", "pruned", "pruned+int8")
"""Variants with a colour of their own, ``--fp32`` and so on in the style sheet; the others take the spare colours."""
SPARE_COLOURS = 6
"""Number of spare colours in the style sheet."""
HISTOGRAM_BINS = 160
MOST_LAYERS = 400
"""Layers that can be told apart in a chart; if there are more, the slowest are shown."""
MOST_KINDS = 12
"""Kinds of operators shown one by one; the rest is summed."""

Records = list[dict[str, Any]]
"""Data of a chart, a dictionary for each mark."""


@dataclass(frozen=True)
class Series:
    """A row of the table, with the name and colour that it has in every chart of its block.

    Attributes:
        name: name of the variant, with the model if the block has several models.
        short: name of the variant without the model.
        colour: a CSS value; a variant has the same colour for all models.
        row: the row.
    """

    name: str
    short: str
    colour: str
    row: Row

    @property
    def measurement(self) -> Measurement:
        """The row's measurement."""
        return self.row.measurement


def series_of(block: Block) -> list[Series]:
    """List the rows of a block to be drawn, without those of other devices that repeat the host's samples."""
    runs: dict[tuple[object, ...], Row] = {}
    for row in block.rows:
        m = row.measurement
        key = (m.model, m.variant, row.source, m.latency.samples_ms if m.latency else m.target)
        runs.setdefault(key, row)
    rows = list(runs.values())
    models, sources = {r.measurement.model for r in rows}, {r.source for r in rows}
    spare = (f"var(--spare-{i % SPARE_COLOURS})" for i in itertools.count())
    colours: dict[str, str] = {}
    series: list[Series] = []
    for row in rows:
        m = row.measurement
        short = f"{m.variant} ({row.source})" if row.source and len(sources) > 1 else m.variant
        if any((s.short, s.measurement.model) == (short, m.model) for s in series):
            short += f" for {m.target or 'host'}"
        if short not in colours:
            own = colour_of(m.variant)
            colours[short] = own if own and own not in colours.values() else next(spare)
        series.append(Series(f"{m.model} {short}" if len(models) > 1 else short, short, colours[short], row))
    return series


def colour_of(variant: str) -> str | None:
    """Return the colour of a variant that has one of its own, as a CSS value."""
    return f"var(--{variant.replace('+', '-')})" if variant in COLOURED_VARIANTS else None


def latency_outlines(series: Sequence[Series]) -> tuple[Records, Records]:
    """Compute the distributions of latency.

    Samples above the 99th percentile of the slowest series are not drawn.

    Returns:
        Outlines of histograms over logarithmic bins, each scaled to a height of 1, and the median, 90th and 99th
        percentile of each series.
    """
    timed = [(s, s.measurement.latency) for s in series if s.measurement.latency]
    if not timed:
        return [], []
    low = min(min(latency.samples_ms) for _, latency in timed)
    high = max(latency.percentile_ms(99) for _, latency in timed)
    edges = np.geomspace(low, max(high, low * 1.05), HISTOGRAM_BINS + 1)
    outlines: Records = []
    for number, (s, latency) in enumerate(timed):
        counts, _ = np.histogram(latency.samples_ms, edges)
        # Smoothed over three bins, because a clock with coarse ticks would leave gaps between bins.
        smooth = np.convolve(counts, [0.25, 0.5, 0.25], mode="same") / max(1, counts.max())
        filled = np.flatnonzero(smooth)
        inside = slice(max(filled[0] - 1, 0), filled[-1] + 2)
        for left, right, height in zip(edges[:-1][inside], edges[1:][inside], smooth[inside], strict=True):
            outlines.append(
                {"series": s.name, "row": number, "ms": float(np.sqrt(left * right)), "height": float(height)}
            )
    return outlines, [
        {"series": s.name, "row": number, "median": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms}
        for number, (s, latency) in enumerate(timed)
    ]


def round_changes(series: Sequence[Series]) -> Records:
    """Compute the median of each round, and its change from the overall median (0: none)."""
    return [
        {"series": s.name, "round": number, "median": value, "change": value / latency.p50_ms - 1}
        for s in series
        if (latency := s.measurement.latency) is not None
        for number, value in enumerate(_round_medians(latency), 1)
    ]


def _round_medians(latency: Latency) -> list[float]:
    ends = (*latency.rounds[1:], len(latency.samples_ms))
    return [float(np.median(latency.samples_ms[a:b])) for a, b in zip(latency.rounds, ends, strict=True)]


def accuracy_points(series: Sequence[Series]) -> Records:
    """List score and median latency.

    A point has ``front`` set if no other point is at least as fast and as accurate, and better in one of the two.
    """
    points: Records = []
    for s in series:
        m = s.measurement
        if m.latency and m.score and s.row.p50_ms:
            p50 = s.row.p50_ms
            points.append(
                {"series": s.name, "model": m.model, "ms": p50.value, "low": p50.low, "high": p50.high,
                 "score": m.score.value}
            )  # fmt: skip
    for point in points:
        point["front"] = not any(_beats(rival, point) for rival in points)
    return points


def _beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    better = (a["ms"] <= b["ms"], a["score"] >= b["score"])
    return all(better) and (a["ms"], a["score"]) != (b["ms"], b["score"])


def sizes(series: Sequence[Series]) -> Records:
    """List megabytes of the file, and of peak memory beyond that of a process without a model."""
    records: Records = []
    several = len({s.measurement.model for s in series}) > 1
    for s in series:
        m = s.measurement
        amounts = {"file": m.size_bytes}
        if m.memory:
            amounts["loading"] = max(0, m.memory.peak_load_bytes - m.memory.baseline_bytes)
            amounts["running"] = max(0, m.memory.peak_run_bytes - m.memory.baseline_bytes)
        prefix = f"{m.model} " if several else ""
        records += [{"series": s.short, "size": prefix + name, "MB": amount / 1e6} for name, amount in amounts.items()]
    return records


def by_operator(profiles: Sequence[Profile]) -> Records:
    """Sum microseconds by kind of operator, quantized and float ones together: the slowest first, the rest in one."""
    sums: dict[tuple[str, str], float] = {}
    for profile in profiles:
        for operator in profile.operators:
            key = kind_of(operator.op), profile.variant
            sums[key] = sums.get(key, 0.0) + operator.median_us
    largest: dict[str, float] = {}
    for (kind, _), us in sums.items():
        largest[kind] = max(largest.get(kind, 0.0), us)
    order = sorted(largest, key=lambda kind: -largest[kind])
    shown, rest = order[:MOST_KINDS], order[MOST_KINDS:]
    records = [
        {"operator": kind, "series": profile.variant, "us": sums[kind, profile.variant]}
        for kind in shown
        for profile in profiles
        if (kind, profile.variant) in sums
    ]
    left = {p.variant: sum(sums.get((kind, p.variant), 0.0) for kind in rest) for p in profiles}
    name = f"{len(rest)} other kinds"
    return records + [{"operator": name, "series": variant, "us": us} for variant, us in left.items() if rest]


def kind_of(op: str) -> str:
    """Return the float operator that a fused or quantized one computes: ``QLinearConv`` is a Conv, ``QGemm`` a Gemm."""
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return "int8 conversion"
    if op.startswith("Reorder"):
        return "layout change"
    for prefix in ("QLinear", "Fused", "DynamicQuantize", "Nhwc", "Q"):
        rest = op.removeprefix(prefix)
        if rest != op and rest[:1].isupper():
            return rest
    return op


@dataclass(frozen=True)
class LayerTimes:
    """Times of a node of the float graph.

    Attributes:
        name: the node's name.
        op: its operator.
        number: its place in the order of execution, from 1.
        us: microseconds by variant.
    """

    name: str
    op: str
    number: int
    us: Mapping[str, float]


def layers_of(profiles: Sequence[Profile]) -> list[LayerTimes]:
    """List the layers that are known in more than one variant, in the order of execution."""
    times: dict[str, dict[str, float]] = {}
    kinds: dict[str, str] = {}
    for profile in profiles:
        for operator in profile.operators:
            if operator.layer is not None:
                layer_us = times.setdefault(operator.layer, {})
                layer_us[profile.variant] = layer_us.get(profile.variant, 0.0) + operator.median_us
                kinds.setdefault(operator.layer, kind_of(operator.op))
    shared = [(name, us) for name, us in times.items() if len(us) > 1]
    return [LayerTimes(name, kinds[name], number, us) for number, (name, us) in enumerate(shared, 1)]


def slowest_layers(profiles: Sequence[Profile], most: int) -> list[LayerTimes]:
    """List the layers that take longest in any variant, the slowest first."""
    return sorted(layers_of(profiles), key=lambda layer: -max(layer.us.values()))[:most]


def by_layer(profiles: Sequence[Profile]) -> Records:
    """List microseconds of layers by variant; of very many layers only the slowest."""
    return [
        {"layer": layer.name, "number": layer.number, "operator": layer.op, "series": variant, "us": us}
        for layer in sorted(slowest_layers(profiles, MOST_LAYERS), key=lambda layer: layer.number)
        for variant, us in layer.us.items()
    ]
