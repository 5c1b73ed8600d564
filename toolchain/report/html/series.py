"""What the charts of a report draw: the runs of a block, each once and in one colour, and numbers made of them.

Everything here is plain data; the drawing is done in ``html_charts.py``.
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

KNOWN = ("fp32", "int8", "pruned", "pruned+int8")
"""Variants with a colour of their own; the style sheet has it as ``--fp32`` and so on, and spare ones."""
SPARES = 6
BINS = 160
LAYERS = 400
"""More layers than this cannot be told apart in a chart: those that take longest are shown."""

KINDS = 12
"""Kinds of operators shown one by one."""

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Series:
    """A run under the name and in the colour it has in every chart of its block.

    short: without the model. A colour is that of a variant, for all models.
    """

    name: str
    short: str
    colour: str
    row: Row

    @property
    def measurement(self) -> Measurement:
        """What was measured."""
        return self.row.measurement


def series_of(block: Block) -> list[Series]:
    """The runs of a block; rows of absent devices that repeat the host's are left out."""
    runs: dict[tuple[object, ...], Row] = {}
    for row in block.rows:
        m = row.measurement
        key = (m.model, m.variant, row.source, m.latency.samples_ms if m.latency else m.target)
        runs.setdefault(key, row)
    rows = list(runs.values())
    models, sources = {r.measurement.model for r in rows}, {r.source for r in rows}
    spare = (f"var(--spare-{i % SPARES})" for i in itertools.count())
    colours: dict[str, str] = {}
    found: list[Series] = []
    for row in rows:
        m = row.measurement
        short = f"{m.variant} ({row.source})" if row.source and len(sources) > 1 else m.variant
        if any((s.short, s.measurement.model) == (short, m.model) for s in found):
            short += f" for {m.target or 'host'}"
        if short not in colours:
            own = colour_of(m.variant)
            colours[short] = own if own and own not in colours.values() else next(spare)
        found.append(Series(f"{m.model} {short}" if len(models) > 1 else short, short, colours[short], row))
    return found


def colour_of(variant: str) -> str | None:
    """A known variant's colour."""
    return f"var(--{variant.replace('+', '-')})" if variant in KNOWN else None


def spread(found: Sequence[Series]) -> tuple[Records, Records]:
    """Distributions of latency: outlines of histograms over logarithmic bins, and a record of numbers a series.

    Outlines have a height of 1 at their highest. What is slower than the slowest series' 99th percentile is not drawn.
    """
    timed = [(s, s.measurement.latency) for s in found if s.measurement.latency]
    if not timed:
        return [], []
    low = min(min(latency.samples_ms) for _, latency in timed)
    high = max(latency.percentile_ms(99) for _, latency in timed)
    edges = np.geomspace(low, max(high, low * 1.05), BINS + 1)
    outlines: Records = []
    for number, (s, latency) in enumerate(timed):
        counts, _ = np.histogram(latency.samples_ms, edges)
        # A window of three bins: as fine as the eye follows, and no comb where the clock's ticks are coarse.
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


def rounds(found: Sequence[Series]) -> Records:
    """Every round's median, and how far it lies from the whole's (1 is none)."""
    return [
        {"series": s.name, "round": number, "median": value, "change": value / latency.p50_ms - 1}
        for s in found
        if (latency := s.measurement.latency) is not None
        for number, value in enumerate(_round_medians(latency), 1)
    ]


def _round_medians(latency: Latency) -> list[float]:
    ends = (*latency.rounds[1:], len(latency.samples_ms))
    return [float(np.median(latency.samples_ms[a:b])) for a, b in zip(latency.rounds, ends, strict=True)]


def tradeoff(found: Sequence[Series]) -> Records:
    """Score against median latency. front: nothing is both faster and at least as good."""
    points: Records = []
    for s in found:
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


def sizes(found: Sequence[Series]) -> Records:
    """Megabytes of file, and of memory above that of a process without a model."""
    records: Records = []
    several = len({s.measurement.model for s in found}) > 1
    for s in found:
        m = s.measurement
        amounts = {"file": m.size_bytes}
        if m.memory:
            amounts["loading"] = max(0, m.memory.peak_load_bytes - m.memory.baseline_bytes)
            amounts["running"] = max(0, m.memory.peak_run_bytes - m.memory.baseline_bytes)
        of = f"{m.model} " if several else ""
        records += [{"series": s.short, "what": of + what, "MB": amount / 1e6} for what, amount in amounts.items()]
    return records


def by_operator(profiles: Sequence[Profile]) -> Records:
    """Microseconds of kinds of operators, quantized and plain ones together: the costliest first, small ones summed."""
    sums: dict[tuple[str, str], float] = {}
    for profile in profiles:
        for operator in profile.operators:
            key = kind_of(operator.op), profile.variant
            sums[key] = sums.get(key, 0.0) + operator.median_us
    worst: dict[str, float] = {}
    for (kind, _), us in sums.items():
        worst[kind] = max(worst.get(kind, 0.0), us)
    order = sorted(worst, key=lambda kind: -worst[kind])
    shown, rest = order[:KINDS], order[KINDS:]
    found = [
        {"operator": kind, "series": profile.variant, "us": sums[kind, profile.variant]}
        for kind in shown
        for profile in profiles
        if (kind, profile.variant) in sums
    ]
    left = {p.variant: sum(sums.get((kind, p.variant), 0.0) for kind in rest) for p in profiles}
    name = f"{len(rest)} other kinds"
    return found + [{"operator": name, "series": variant, "us": us} for variant, us in left.items() if rest]


def kind_of(op: str) -> str:
    """An operator as models have it: ``QLinearConv`` is a Conv, ``QGemm`` a Gemm."""
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return "to and from int8"
    if op.startswith("Reorder"):
        return "layout"
    for prefix in ("QLinear", "Fused", "DynamicQuantize", "Nhwc", "Q"):
        rest = op.removeprefix(prefix)
        if rest != op and rest[:1].isupper():
            return rest
    return op


@dataclass(frozen=True)
class LayerTimes:
    """A node of the float graph, its place in the order they run, and its microseconds in every variant that has it."""

    name: str
    op: str
    number: int
    us: Mapping[str, float]


def layers_of(profiles: Sequence[Profile]) -> list[LayerTimes]:
    """Layers that can be told in more than one variant, in the order they run."""
    times: dict[str, dict[str, float]] = {}
    kinds: dict[str, str] = {}
    for profile in profiles:
        for operator in profile.operators:
            if operator.layer is not None:
                mine = times.setdefault(operator.layer, {})
                mine[profile.variant] = mine.get(profile.variant, 0.0) + operator.median_us
                kinds.setdefault(operator.layer, kind_of(operator.op))
    shared = [(name, us) for name, us in times.items() if len(us) > 1]
    return [LayerTimes(name, kinds[name], number, us) for number, (name, us) in enumerate(shared, 1)]


def longest(profiles: Sequence[Profile], most: int) -> list[LayerTimes]:
    """The layers that take longest in any variant, the worst first."""
    return sorted(layers_of(profiles), key=lambda layer: -max(layer.us.values()))[:most]


def by_layer(profiles: Sequence[Profile]) -> Records:
    """Microseconds of layers by variant; of very many layers, those that take longest."""
    return [
        {"layer": layer.name, "number": layer.number, "operator": layer.op, "series": variant, "us": us}
        for layer in sorted(longest(profiles, LAYERS), key=lambda layer: layer.number)
        for variant, us in layer.us.items()
    ]
