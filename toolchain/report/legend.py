"""What the words and marks of a table mean, and which of its rows need a second look; each thing said once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from toolchain.benchmark.stats import sustained
from toolchain.formats.results import Evidence, Window
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row

EVIDENCE: dict[Evidence, str] = {
    "measured": "measured",
    "host": "this host",
    "emulated": "emulated",
    "estimated": "estimated",
}
_MEANING: dict[Evidence, str] = {
    "measured": "run on the target itself; the target host is the machine named above the table",
    "host": "run on that machine in the device's stead: times in ( ) are not the device's",
    "emulated": "run under an emulator: right answers, no times",
    "estimated": "computed from a model of the device, not run",
}


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Words of the table and their meanings, only of what is in it, in the order of its columns."""
    rows = [row for block in comparison.blocks for row in block.rows]
    measurements = [row.measurement for row in rows]
    found = [("MB", "size of the model file"), ("score", "; ".join(_scores(rows)))]
    if any(m.latency for m in measurements):
        found.append(("median ms", "of one inference, with its 95 % interval; nine of ten took less than p90 ms"))
    if compared := [row for row in rows if row.speedup]:
        names = " and ".join(sorted({str(row.baseline) for row in compared}))
        found.append(
            ("speed-up", f"against {names} on the same host, round by round where they ran interleaved{_by(rows)}")
        )
        if any(_unsure(row) for row in compared):
            found.append(("~", "the speed-up's 95 % interval includes 1, so there may be none"))
    if empty := [m.memory.baseline_bytes for m in measurements if m.memory]:
        without = f"{max(empty) / 1e6:.0f} without a model"
        found.append(("RAM", f"MB of the process at its peak, loading included; {without}"))
    found += [(EVIDENCE[e], _MEANING[e]) for e in dict.fromkeys(m.evidence for m in measurements)]
    return [(word, meaning) for word, meaning in found if meaning]


def _scores(rows: Sequence[Row]) -> Iterator[str]:
    scores = [row.measurement.score for row in rows if row.measurement.score]
    if any(score.kind == "evaluate" for score in scores):
        yield "what the evaluation returned, higher is better"
    if agreed := [score.samples for score in scores if score.kind == "agreement"]:
        samples = f" on {agreed[0]} samples" if agreed[0] and len(set(agreed)) == 1 else ""
        yield f"≈ agreement with the source model's answers{samples}, not accuracy"


def _unsure(row: Row) -> bool:
    return row.speedup is not None and row.speedup.low <= 1 <= row.speedup.high


def notes(comparison: Comparison) -> list[str]:
    """A sentence each: unsteady rows (!), what was noted of rows, and rows the gate refused."""
    rows = [row for block in comparison.blocks for row in block.rows]
    lines = []
    if len(comparison.blocks) > 1:
        lines.append(f"The rows differ in {_apart(comparison.blocks)}: no speed-up is taken from one block to another.")
    sweep = len({block.threads for block in comparison.blocks}) > 1
    shaky = [(f"{r.verdict.kind}, {r.verdict.reason}", r) for r in rows if r.verdict and r.verdict.kind != "steady"]
    lines += [f"! {names(group, sweep)}: {text}." for text, group in _grouped(shaky)]
    noted = [(row.measurement.note, row) for row in rows if row.measurement.note]
    lines += [f"{names(group)}: {text.removesuffix('.')}." for text, group in _grouped(noted)]
    lines += [line for row in rows for line in _sustained(row)]
    limit = comparison.max_regression
    if comparison.baseline is not None or limit is not None:
        lines += [f"{r.label} against {r.baseline}: {r.difference}." for r in rows if r.difference and not r.regressed]
    if limit is not None:
        if comparison.without_baseline:
            lines.append(f"Not held against anything, for want of a baseline: {names(comparison.without_baseline)}.")
        lines += [
            f"REGRESSION {r.label} against {r.baseline}: {r.difference}, allowed {limit * 100:.1f} %."
            for r in comparison.regressions
        ]
    return lines


def _by(rows: Sequence[Row]) -> str:
    one = [row for row in rows if row.speedup and row.measurement.latency and row.measurement.latency.cpu_ms]
    return "; with one thread by the time it computed, without the turns of others" if one else ""


def _apart(blocks: Sequence[Block]) -> str:
    """What blocks differ in."""
    facts: dict[str, set[object]] = {
        "processor": {block.host.cpu for block in blocks},
        "number of cores": {block.host.cores for block in blocks},
        "onnxruntime": {block.host.onnxruntime for block in blocks},
        "threads": {block.threads for block in blocks},
        "the cores they were bound to": {block.cpus for block in blocks},
    }
    found = [name for name, values in facts.items() if len(values) > 1]
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def _sustained(row: Row) -> Iterator[str]:
    """What a sustained run came to."""
    windows = row.measurement.sustained
    found = sustained(windows)
    if found is not None:
        machine = [f"{_ends(windows, name)} {unit}" for name, unit in _MACHINE if _ends(windows, name)]
        times = f"{found.first_ms:.3g} ms at first, {found.last_ms:.3g} ms at last ({found.change * 100:+.0f} %)"
        yield f"{row.label}, sustained for {found.minutes:.3g} minutes: {'; '.join([times, *machine])}."


_MACHINE: tuple[tuple[Literal["clock_mhz", "temperature_c"], str], ...] = (
    ("clock_mhz", "MHz"),
    ("temperature_c", "°C"),
)


def _ends(windows: Sequence[Window], name: Literal["clock_mhz", "temperature_c"]) -> str:
    known = [value for window in windows if (value := getattr(window, name)) is not None]
    return f"{known[0]:.0f} to {known[-1]:.0f}" if known else ""


def _grouped(texts: Iterable[tuple[str, Row]]) -> Iterable[tuple[str, list[Row]]]:
    """Rows by text: those of absent devices are copies of the host's, and would repeat every remark on it."""
    groups: dict[str, list[Row]] = {}
    for text, row in texts:
        groups.setdefault(text, []).append(row)
    return groups.items()


def names(rows: Sequence[Row], with_threads: bool = False) -> str:
    """Rows in words, targets of one model and variant together: ``net int8 for host, rk3588``."""
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for row in rows:
        m = row.measurement
        threads = f" with {m.latency.threads} threads" if with_threads and m.latency else ""
        groups.setdefault((m.model, m.variant + threads, row.source), []).append(m.target or "host")
    return "; ".join(
        f"{model} {variant} for {', '.join(targets)}" + (f" in {source}" if source else "")
        for (model, variant, source), targets in groups.items()
    )
