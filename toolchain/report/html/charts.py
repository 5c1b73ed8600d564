"""The charts of the report, as Vega-Lite specifications that Altair checks against the schema.

Colours are properties of the style sheet (``var(--int8)``), so that dark mode and print change them without a new
drawing. A chart is as wide as its container.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from toolchain.formats.findings import NoiseSource, Profile, Pruning, TrainingStep
from toolchain.formats.manifest import TradeOff
from toolchain.report.explain import MOST_CAUSES
from toolchain.report.html.series import (
    Records,
    Series,
    accuracy_points,
    by_layer,
    by_operator,
    colour_of,
    latency_outlines,
    round_changes,
    sizes,
)

if TYPE_CHECKING:
    import altair

Spec = dict[str, Any]
"""A Vega-Lite specification, as JSON data."""
_TIP_TITLES = {"series": "variant", "ms": "median ms"}
"""Titles of tooltip entries whose field has another name."""

LOG_AXIS_RATIO = 4.0
"""Latencies that differ by more than this factor get a logarithmic axis."""
STEP_COLOURS = ("var(--int8)", "var(--pruned)", "var(--spare-1)", "var(--spare-2)", "var(--spare-3)", "var(--fp32)")
"""Colours of the steps of a training recipe, in their order."""
CAUSE_COLOURS = {"activation": "var(--int8)", "weight": "var(--spare-3)"}
"""Colours of causes of the error, by what is rounded."""
MOST_LABELS = 6
"""Points that are labelled; the labels of more would overlap."""
MOST_TICKS = 10
"""Rounds that are numbered on the axis."""
DISTRIBUTION_HEIGHT = 62
"""Pixels of one variant's distribution."""


def accuracy(series: Sequence[Series]) -> Spec | None:
    """Draw score against latency, the best trade-offs joined by a line.

    Returns:
        None if there are fewer than two points, or several models: their scores cannot be compared.
    """
    import altair as alt

    points = accuracy_points(series)
    if len(points) < 2 or len({p["model"] for p in points}) > 1:
        return None
    share = all(0 <= p["score"] <= 1 for p in points)
    scale = 100 if share else 1
    ordered = sorted(points, key=lambda p: p["ms"])
    for number, point in enumerate(ordered):
        point |= {"score": point["score"] * scale, "above": number % 2 == 0}
    scores = [p["score"] for p in points]
    margin = max(0.25 * (max(scores) - min(scores)), 1.0 if share else 0.05 * max(map(abs, scores)))
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    pad = max((high / low) ** 0.25, 1.15)
    kind = "log" if high / low > LOG_AXIS_RATIO else "linear"
    for point in points:
        point["align"] = _label_side(point["ms"], low / pad, high * pad, kind)
    base = alt.Chart(_data(points))
    along = alt.Scale(domain=[low / pad, high * pad], type=kind, nice=False)
    x = alt.X("ms:Q", title="median latency (ms)", scale=along, axis=alt.Axis(format="~g", tickCount=6))
    y = alt.Y(
        "score:Q",
        title="score (%)" if share else "score",
        scale=alt.Scale(domain=[min(scores) - margin, max(scores) + margin], nice=False),
        axis=alt.Axis(tickCount=5, grid=True),
    )
    tip = [_tip("series"), _tip("ms", ".4~r", "median ms"), _tip("score", ".4~r")]
    best = base.transform_filter(alt.datum.front).mark_line(
        interpolate="step-before", strokeDash=[3, 3], opacity=0.5, color="currentColor"
    )
    layers = [
        best.encode(x=x, y=y, order="ms:Q"),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=along), x2="high:Q", y=y, color=_colour(series)),
        base.mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y, color=_colour(series), tooltip=tip),
    ]
    labels = {(point["above"], point["align"]) for point in ordered} if len(points) <= MOST_LABELS else set()
    for above, align in sorted(labels):
        chosen = base.transform_filter((alt.datum.above == above) & (alt.datum.align == align))
        text = chosen.mark_text(dy=-14 if above else 16, fontSize=12, align=align)
        layers.append(text.encode(x=x, y=y, text="series:N", color=alt.value("currentColor")))
    return _spec(alt.layer(*layers).properties(height=240))


def _label_side(value: float, low: float, high: float, kind: str) -> str:
    """Align the label of a point on an axis from `low` to `high` so that it stays inside the chart."""
    if kind == "log":
        value, low, high = math.log(value), math.log(low), math.log(high)
    place = (value - low) / (high - low)
    return "left" if place < 1 / 3 else "right" if place > 2 / 3 else "center"


def distributions(series: Sequence[Series]) -> Spec | None:
    """Draw a histogram of latencies for each variant, with lines at the median and (dashed) the 90th percentile."""
    import altair as alt

    outlines, marks = latency_outlines(series)
    if not outlines:
        return None
    times = [r["ms"] for r in outlines]
    kind = "log" if max(times) / min(times) > LOG_AXIS_RATIO else "linear"
    along = alt.Scale(domain=[min(times) / 1.01, max(times) * 1.01], type=kind, nice=False)
    x = alt.X("ms:Q", title="one inference (ms)", scale=along, axis=alt.Axis(format="~g", tickCount=6, grid=False))
    hidden = alt.Scale(domain=[0, len(marks)], reverse=True, nice=False)
    y = alt.Y("bottom:Q", scale=hidden, axis=None)
    shape = alt.Chart(_data(outlines)).transform_calculate(
        bottom="datum.row + 0.94", top="datum.row + 0.94 - 0.58 * datum.height"
    )
    lines = alt.Chart(_data(marks)).transform_calculate(
        bottom="datum.row + 0.94", top="datum.row + 0.34", words="datum.row + 0.16",
        label="datum.series + ', median ' + format(datum.median, '.3~r') + ' ms'",
    )  # fmt: skip
    tip = [
        _tip("series"),
        _tip("median", ".4~r", "median ms"),
        _tip("p90", ".4~r", "p90 ms"),
        _tip("p99", ".4~r", "p99 ms"),
    ]
    rule = lines.mark_rule(strokeWidth=2).encode(y=y, y2="top", color=_colour(series), tooltip=tip)
    layers = [
        shape.mark_area(opacity=0.45, interpolate="monotone").encode(x=x, y=y, y2="top", color=_colour(series)),
        rule.encode(x=alt.X("median:Q", scale=along)),
        rule.mark_rule(strokeDash=[3, 3], strokeWidth=1.5).encode(x=alt.X("p90:Q", scale=along)),
        lines.mark_text(align="left", baseline="middle", fontSize=12, limit=310).encode(
            x=alt.value(2), y=alt.Y("words:Q", scale=hidden, axis=None), text="label:N", color=alt.value("currentColor")
        ),
    ]
    return _spec(alt.layer(*layers).properties(height=DISTRIBUTION_HEIGHT * len(marks)))


def steadiness(series: Sequence[Series]) -> Spec | None:
    """Draw how much each round's median differs from the overall median; None if there was only one round."""
    import altair as alt

    records = round_changes(series)
    if max((r["round"] for r in records), default=1) < 2:
        return None
    limit = max(0.06, *(abs(r["change"]) * 1.15 for r in records))
    last = max(r["round"] for r in records)
    ticks = list(range(1, last + 1, math.ceil(last / MOST_TICKS)))
    chart = (
        alt.Chart(_data(records))
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=40), strokeWidth=2)
        .encode(
            x=alt.X("round:Q", title="round", axis=alt.Axis(format="d", values=ticks, grid=False)),
            y=alt.Y(
                "change:Q", title="change from the median", axis=alt.Axis(format="+.0%", tickCount=5),
                scale=alt.Scale(domain=[-limit, limit], nice=False),
            ),
            color=_colour(series),
            tooltip=[_tip("series"), _tip("round"), _tip("median", ".4~r", "median ms"), _tip("change", "+.1%")],
        )
    )  # fmt: skip
    return _spec(chart.properties(height=170))


def memory(series: Sequence[Series]) -> Spec:
    """Draw the sizes of file and memory."""
    bars = {s.short: s.colour for s in series}
    return _bars(sizes(series), "size", "MB", "MB", list(bars), _scale(list(bars), list(bars.values())))


def operators(profiles: Sequence[Profile]) -> Spec:
    """Draw time by kind of operator."""
    records = by_operator(profiles)
    variants = [p.variant for p in profiles]
    return _bars(records, "operator", "us", "µs for one inference", variants, _colours_of(profiles))


def layers(profiles: Sequence[Profile]) -> Spec | None:
    """Draw time by layer, one variant in front of the other; None if no layer is known in two variants."""
    import altair as alt

    records = by_layer(profiles)
    if not records:
        return None
    count = max(r["number"] for r in records)
    width = max(1.5, min(16.0, 300 / count))
    order = {p.variant: number for number, p in enumerate(profiles)}
    x = alt.X("number:Q", title="layer, in order of execution", scale=alt.Scale(domain=[0, count + 1], nice=False),
              axis=alt.Axis(grid=False, tickMinStep=1, tickCount=8, format="d"))  # fmt: skip
    parts = [
        alt.Chart(_data([r for r in records if r["series"] == variant]))
        .mark_bar(size=width * 0.6**number, opacity=0.7 if number == 0 else 1.0)
        .encode(
            x=x,
            y=alt.Y("us:Q", title="µs", stack=None),
            color=_colours_of(profiles),
            tooltip=[_tip("layer"), _tip("operator"), _tip("series"), _tip("us", ".4~r", "µs")],
        )
        for variant, number in order.items()
    ]
    return _spec(alt.layer(*parts).properties(height=200))


def causes(sources: Sequence[NoiseSource]) -> Spec:
    """Draw the largest causes of the remaining error, as shares of it."""
    import altair as alt

    records: Records = [
        {"cause": c.at + (" (weight)" if c.kind == "weight" else ""), "kind": c.kind, "operator": c.op,
         "share": c.share, "dB": c.fidelity_db, "order": number}
        for number, c in enumerate(sources[:MOST_CAUSES])
    ]  # fmt: skip
    colours = alt.Scale(domain=list(CAUSE_COLOURS), range=list(CAUSE_COLOURS.values()))
    tip = [_tip("cause"), _tip("operator"), _tip("share", ".1%"), _tip("dB", ".1f", "dB with only this rounded")]
    chart = (
        alt.Chart(_data(records))
        .mark_bar()
        .encode(
            y=_ranked("cause"),
            x=alt.X("share:Q", title="share of the error", axis=alt.Axis(format="%", tickCount=4)),
            color=alt.Color("kind:N", legend=None, scale=colours),
            tooltip=tip,
        )
    )  # fmt: skip
    return _spec(chart.properties(height=20 * len(records)))


def tradeoff(points: Sequence[TradeOff]) -> Spec:
    """Draw the plans that were tried to stay within the allowed drop."""
    import altair as alt

    records: Records = [{"operators in float": p.float_nodes, "score": p.score, "speedup": p.speedup} for p in points]
    base = alt.Chart(_data(records)).encode(
        x=alt.X(
            "speedup:Q",
            title="speed-up over fp32, 1 thread",
            scale=alt.Scale(zero=False, padding=16),
            axis=alt.Axis(tickCount=6),
        ),
        y=alt.Y("score:Q", title="score", scale=alt.Scale(zero=False, padding=16), axis=alt.Axis(tickCount=5)),
        order="operators in float:Q",
        tooltip=[_tip("operators in float"), _tip("score", ".4~r"), _tip("speedup", ".3~r", "speed-up")],
    )
    line = base.mark_line(color="var(--int8)", point=alt.OverlayMarkDef(size=70, filled=True, color="var(--int8)"))
    numbers = base.mark_text(dy=-12, fontSize=12).encode(text="operators in float:Q", color=alt.value("currentColor"))
    return _spec(alt.layer(line, numbers).properties(height=200))


def training(steps: Sequence[TrainingStep], measure: Literal["loss", "accuracy"]) -> Spec | None:
    """Draw a measure on held-out samples during training, with a dot where a checkpoint was kept.

    Returns:
        None if the measure does not apply to the outputs.
    """
    import altair as alt

    records: Records = [
        {
            "step": f"{number + 1} {step.technique}",
            "at": number + checkpoint.share,
            "value": getattr(checkpoint.evaluation, measure),
            "kept": place == step.kept,
        }
        for number, step in enumerate(steps)
        for place, checkpoint in enumerate(step.checkpoints)
    ]
    records = [r for r in records if r["value"] is not None]
    if not records:
        return None
    positive = min(float(r["value"]) for r in records) > 0
    scale = alt.Scale(type="log") if measure == "loss" and positive else alt.Scale(zero=False)
    axis = alt.Axis(format="~g", tickCount=5) if measure == "loss" else alt.Axis(format=".0%", tickCount=5)
    colours = alt.Scale(range=list(STEP_COLOURS))
    legend = alt.Legend(title=None, orient="top", labelFontSize=12, labelColor="currentColor")
    base = alt.Chart(_data(records)).encode(
        x=alt.X("at:Q", title="step of the recipe", axis=alt.Axis(format="d", values=list(range(len(steps) + 1)))),
        y=alt.Y("value:Q", title=measure, scale=scale, axis=axis),
        color=alt.Color("step:N", scale=colours, legend=legend if steps[1:] else None),
        tooltip=[_tip("step"), _tip("value", ".4~r", measure)],
    )
    dots = base.transform_filter(alt.datum.kept).mark_point(filled=True, size=90, opacity=1)
    return _spec(alt.layer(base.mark_line(), dots).properties(height=200))


def pruned_groups(pruning: Pruning) -> Spec:
    """Draw the channels of each pruned group: those kept in front of all there were."""
    import altair as alt

    records: Records = [
        {"group": g.name, "channels": g.size, "kept": g.kept, "share": g.kept / g.size, "order": number}
        for number, g in enumerate(pruning.groups)
    ]
    tip = [_tip("group"), _tip("kept"), _tip("channels", None, "of"), _tip("share", ".0%")]
    base = alt.Chart(_data(records)).encode(y=_ranked("group"), tooltip=tip)
    chart = alt.layer(
        base.mark_bar(color="var(--fp32)", opacity=0.35).encode(
            x=alt.X("channels:Q", title="channels", axis=alt.Axis(tickCount=6))
        ),
        base.mark_bar(color="var(--pruned)", size=8).encode(x="kept:Q"),
    )
    return _spec(chart.properties(height=18 * len(records)))


# --------------------------------------------------------------------------------------------- what charts share


def _bars(
    records: Records,
    group: str,
    value: str,
    title: str,
    order: Sequence[str],
    colour: altair.Color,
    format: str = ".3~r",
) -> Spec:
    """Draw groups of bars, one bar for each variant, with their numbers at the end."""
    import altair as alt

    highest = max(r[value] for r in records)
    base = alt.Chart(_data(records)).encode(
        y=alt.Y(f"{group}:N", title=None, sort=None, scale=alt.Scale(paddingInner=0.3), axis=_names()),
        yOffset=alt.YOffset("series:N", sort=list(order), scale=alt.Scale(paddingInner=0.12)),
        x=alt.X(
            f"{value}:Q",
            title=title,
            scale=alt.Scale(domain=[0, highest * 1.16], nice=False),
            axis=alt.Axis(tickCount=4, labelOverlap=True),
        ),
        tooltip=[_tip(group), _tip("series"), _tip(value, format, title)],
    )
    numbers = base.mark_text(align="left", dx=4, fontSize=11).encode(
        text=alt.Text(f"{value}:Q", format=format), color=alt.value("currentColor")
    )
    height = len({r[group] for r in records}) * (16 * len(order) + 10)
    return _spec(alt.layer(base.mark_bar().encode(color=colour), numbers).properties(height=height))


def _ranked(field: str) -> altair.Y:
    """Return a vertical axis with names in the order of the records."""
    import altair as alt

    scale = alt.Scale(paddingInner=0.25)
    return alt.Y(f"{field}:N", title=None, sort=alt.EncodingSortField("order"), scale=scale, axis=_names())


def _names() -> altair.Axis:
    import altair as alt

    return alt.Axis(labelLimit=140, labelPadding=6, grid=False)


def _tip(field: str, format: str | None = None, title: str | None = None) -> altair.Tooltip:
    import altair as alt

    kind = "N" if format is None else "Q"
    more = {} if format is None else {"format": format}
    return alt.Tooltip(f"{field}:{kind}", title=title or _TIP_TITLES.get(field, field), **more)


def _colour(series: Sequence[Series]) -> altair.Color:
    return _scale([s.name for s in series], [s.colour for s in series])


def _colours_of(profiles: Sequence[Profile]) -> altair.Color:
    return _scale([p.variant for p in profiles], [colour_of(p.variant) or "var(--spare-0)" for p in profiles])


def _scale(names: list[str], colours: list[str]) -> altair.Color:
    import altair as alt

    return alt.Color("series:N", legend=None, scale=alt.Scale(domain=names, range=colours))


def _data(records: Records) -> altair.Data:
    import altair as alt

    return alt.Data(
        values=[
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in records
        ]
    )


def _spec(chart: Any) -> Spec:
    """Return the chart as JSON data, with the style that all charts share."""
    import altair as alt

    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}
    axis = {**ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titleOpacity": 0.75,
            "domain": False, "ticks": False, "grid": True, "gridColor": "currentColor", "gridOpacity": 0.12,
            "labelPadding": 5, "labelOverlap": "greedy"}  # fmt: skip
    styled = chart.properties(width="container", background="transparent").configure(
        font="system-ui, sans-serif", axis=axis, view={"stroke": None}, bar={"cornerRadiusEnd": 2}
    )
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
        spec: Spec = styled.to_dict()
    return spec
