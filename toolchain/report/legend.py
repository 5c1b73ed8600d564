"""Explanations below the results table: the legend of its columns and marks, and notes on single rows.

Each explanation appears once, and only if the table needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from toolchain.benchmark.stats import difference, speedup, sustained
from toolchain.formats.results import Evidence, Score, Window
from toolchain.report.amounts import bytes_text, plural, short_number
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row

EVIDENCE: dict[Evidence, str] = {
    "measured": "measured",
    "host": "this host",
    "emulated": "emulated",
    "estimated": "estimated",
}
"""The word in the column "evidence", by where the measurement comes from."""

_EVIDENCE_MEANING: dict[Evidence, str] = {
    "measured": "timed on the target itself; the target host is the machine named above the table",
    "host": "in ( ): timed on this computer, because the device was not connected; expect other times there",
    "emulated": "run in an emulator: its answers count, its times do not",
    "estimated": "calculated from a model of the device, not run",
}


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the words and marks that occur in the table, each with its meaning, in the order of the columns."""
    rows = [row for block in comparison.blocks for row in block.rows]
    measurements = [row.measurement for row in rows]
    entries = [*_variants(rows), ("MB", "size of the model file"), (score_header(rows), "; ".join(_scores(rows)))]
    if any(m.latency for m in measurements):
        entries.append(("median ms", "half of the inferences took less time; ± its 95 % confidence interval"))
        entries.append(("p90 ms", "nine of ten inferences took less time"))
    if compared := [row for row in rows if row.speedup]:
        names = " and ".join(sorted({str(row.baseline) for row in compared}))
        how = f"round by round if both ran in turns{_cpu_time(rows)}"
        entries.append(("speed-up", f"compared with {names} on the same computer; {how}"))
        if any(row.uncertain for row in compared):
            entries.append(("~", "the 95 % interval of the speed-up includes 1, so there may be no difference"))
    if empty := [m.memory.baseline_bytes for m in measurements if m.memory]:
        without = f"{max(empty) / 1e6:.0f} MB without a model"
        entries.append(("RAM", f"peak memory of the process in MB, loading included ({without})"))
    entries += [(EVIDENCE[e], _EVIDENCE_MEANING[e]) for e in dict.fromkeys(m.evidence for m in measurements)]
    return [(word, meaning) for word, meaning in entries if meaning]


def score_header(rows: Sequence[Row]) -> str:
    """Name the column of scores: "agreement" where it holds nothing else."""
    kinds = {row.measurement.score.kind for row in rows if row.measurement.score}
    return "agreement" if kinds == {"agreement"} else "score"


def _variants(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Explain the variants of models that stayed float."""
    variants = {row.measurement.variant for row in rows}
    return [(v, "no operator is int8") for v in ("float", "pruned+float") if v in variants]


def _scores(rows: Sequence[Row]) -> Iterator[str]:
    scores = [row.measurement.score for row in rows if row.measurement.score]
    if any(score.kind == "evaluate" for score in scores):
        yield "result of your evaluation function; higher is better"
    if agreed := [score.samples for score in scores if score.kind == "agreement"]:
        samples = f"{agreed[0]} samples; " if agreed[0] and len(set(agreed)) == 1 else ""
        others = "cosine similarity for outputs that are not class scores"
        yield f"≈ how often the model gives the same answer as the original ({samples}{others}); not accuracy"


def scores_text(before: Score, after: Score, name: str) -> str:
    """Compare the score of a model with float's in a sentence; agreement with itself says nothing.

    Args:
        before: the float model's.
        after: the other model's.
        name: what the other model is called.
    """
    if after.kind == "agreement":
        samples = f" on {plural(after.samples, 'held-out sample')}" if after.samples else ""
        return f"{name} agrees with float{samples}: {after.value:.4f} (how often, or how nearly; not accuracy)"
    return f"score: float {before.value:.4f}, {name} {after.value:.4f}"


def notes(comparison: Comparison) -> list[str]:
    """Return a sentence for each: unsteady rows (!), notes on rows, sustained runs, and what the gate found."""
    rows = [row for block in comparison.blocks for row in block.rows]
    lines = []
    if len(comparison.blocks) > 1:
        lines.append(f"The tables differ in {_differences(comparison.blocks)}: no speed-up is computed between them.")
    sweep = len({block.threads for block in comparison.blocks}) > 1
    unsteady = [(f"{r.verdict.kind}, {r.verdict.reason}", r) for r in rows if r.verdict and r.verdict.kind != "steady"]
    lines += [f"! {row_names(group, sweep)}: {text}." for text, group in _grouped(unsteady)]
    noted = [(row.measurement.note, row) for row in rows if row.measurement.note]
    lines += [f"{row_names(group)}: {text.removesuffix('.')}." for text, group in _grouped(noted)]
    lines += [line for row in rows for line in _original(row)]
    lines += [line for row in rows for line in _sustained(row)]
    limit = comparison.max_regression
    if comparison.baseline is not None or limit is not None:
        passed = [row for row in rows if row.difference and not row.regressed]
        lines += [f"{row.label} compared with {row.baseline}: {row.difference}." for row in passed]
    if limit is not None:
        if comparison.without_baseline:
            lines.append(f"No baseline to compare with: {row_names(comparison.without_baseline)}.")
        lines += [
            f"REGRESSION: {r.label} compared with {r.baseline}: {r.difference}, {limit * 100:.1f} % allowed."
            for r in comparison.regressions
        ]
    return lines


def _cpu_time(rows: Sequence[Row]) -> str:
    single = [row for row in rows if row.speedup and row.measurement.latency and row.measurement.latency.cpu_ms]
    return "; with one thread, CPU times are compared" if single else ""


def _differences(blocks: Sequence[Block]) -> str:
    """Name the settings that blocks differ in."""
    facts: dict[str, set[object]] = {
        "processor": {block.host.cpu for block in blocks},
        "number of cores": {block.host.cores for block in blocks},
        "onnxruntime": {block.host.onnxruntime for block in blocks},
        "threads": {block.threads for block in blocks},
        "the cores they were pinned to": {block.cpus for block in blocks},
    }
    different = [name for name, values in facts.items() if len(values) > 1]
    return " and ".join(filter(None, [", ".join(different[:-1]), different[-1]]))


def _original(row: Row) -> Iterator[str]:
    """Compare the float model with the file it was made from."""
    own, latency = row.measurement.original, row.measurement.latency
    if own is not None and latency is not None:
        change = difference(speedup(own.latency, latency, paired=True))
        size, takes = bytes_text(own.size_bytes), f"{short_number(own.latency.p50_ms)} ms"
        yield f"{row.label}: your own file {own.name} has {size} and takes {takes}; compared with it: {change}."


def _sustained(row: Row) -> Iterator[str]:
    windows = row.measurement.sustained
    run = sustained(windows)
    if run is not None:
        machine = [f"{_ends(windows, name)} {unit}" for name, unit in _SENSORS if _ends(windows, name)]
        times = f"{run.first_ms:.3g} ms at the start, {run.last_ms:.3g} ms at the end ({run.change * 100:+.0f} %)"
        yield f"{row.label}, run continuously for {run.minutes:.3g} minutes: {'; '.join([times, *machine])}."


_SENSORS: tuple[tuple[Literal["clock_mhz", "temperature_c"], str], ...] = (
    ("clock_mhz", "MHz"),
    ("temperature_c", "°C"),
)


def _ends(windows: Sequence[Window], name: Literal["clock_mhz", "temperature_c"]) -> str:
    known = [value for window in windows if (value := getattr(window, name)) is not None]
    return f"{known[0]:.0f} to {known[-1]:.0f}" if known else ""


def _grouped(texts: Iterable[tuple[str, Row]]) -> Iterable[tuple[str, list[Row]]]:
    """Group rows by text. Rows of devices that were not connected are copies of the host's row and share its notes."""
    groups: dict[str, list[Row]] = {}
    for text, row in texts:
        groups.setdefault(text, []).append(row)
    return groups.items()


def row_names(rows: Sequence[Row], with_threads: bool = False) -> str:
    """Name rows in a sentence, the targets of one model and variant together: ``net int8 for host, rk3588``."""
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for row in rows:
        m = row.measurement
        threads = f" with {plural(m.latency.threads, 'thread')}" if with_threads and m.latency else ""
        groups.setdefault((m.model, m.variant + threads, row.source), []).append(m.target or "host")
    return "; ".join(
        f"{model} {variant} for {', '.join(targets)}" + (f" in {source}" if source else "")
        for (model, variant, source), targets in groups.items()
    )
