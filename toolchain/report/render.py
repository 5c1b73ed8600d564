"""Rows as a terminal table, Markdown, CSV or JSON.

The first two are for reading: rounded, with a legend that says what each kind of evidence means and notes
on every row that should not be trusted as it stands. The last two are for machines: full numbers, units
in the names, nothing rounded.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from textwrap import fill
from typing import Literal, get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.bench.stats import Estimate
from toolchain.errors import ConfigError, did_you_mean
from toolchain.measurement import Evidence, Results
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row, derive

Format = Literal["table", "markdown", "csv", "json"]
FORMATS: tuple[str, ...] = get_args(Format)

# Header, and for columns of words the width they are folded to, so that a table fits 100 columns.
_COLUMNS: dict[str, int | None] = {
    "model": 12,
    "target": 13,
    "variant": 10,
    "MB": None,
    "score": None,
    "p50 ms ±95 %": None,
    "p90": None,
    "speed-up": None,
    "RAM": None,
    "evidence": 10,
}
_EVIDENCE: dict[Evidence, str] = {
    "measured": "measured",
    "host": "this host, not device",
    "emulated": "emulated",
    "estimated": "estimated",
}
_LEGEND: dict[Evidence, str] = {
    "measured": "run on the target itself; host is the machine named above the table.",
    "host": "run on that machine in the target's stead; times in ( ) are not the device's.",
    "emulated": "run under an emulator: right answers, no times.",
    "estimated": "computed from a model of the device, not run.",
}


def check_format(format: str) -> None:
    """Refuse an unknown format; called before the slow step whose result is to be shown.

    Raises:
        ConfigError: with a near match.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}", where="--format", hint=did_you_mean(format, FORMATS))


def render(results: Results | Sequence[Results] | Comparison, format: str = "table") -> RenderableType:
    """Results in one of `FORMATS`: a rich renderable for ``table``, else text.

    Raises:
        ConfigError: unknown format, or no measurement.
    """
    check_format(format)
    if isinstance(results, Comparison):
        comparison = results
    else:
        given = [results] if isinstance(results, Results) else results
        comparison = Comparison(derive([(None, r) for r in given]))
    if format == "csv":
        return _csv(comparison)
    if format == "json":
        return _json(comparison)
    return _table(comparison) if format == "table" else _markdown(comparison)


def _table(comparison: Comparison) -> Group:
    parts: list[RenderableType] = []
    for block in comparison.blocks:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for header, width in _COLUMNS.items():
            table.add_column(header, justify="left" if width else "right", no_wrap=True)
        last = None
        for row in block.rows:
            if last not in (None, row.measurement.model):
                table.add_section()
            last = row.measurement.model
            style = "red" if row.regressed else "dim" if row.measurement.evidence != "measured" else ""
            cells = zip(_cells(row, _plus_minus), _COLUMNS.values(), strict=True)
            table.add_row(*(Text(fill(cell, width) if width else cell) for cell, width in cells), style=style)
        parts += [Text(_heading(block), style="bold"), table, ""]
    return Group(*parts, *(Text(line) for line in _remarks(comparison)))


def _markdown(comparison: Comparison) -> str:
    lines: list[str] = []
    for block in comparison.blocks:
        lines += [
            f"**{_heading(block)}**",
            "",
            _pipes(header.replace("±95", "[95") + "]" * ("±" in header) for header in _COLUMNS),
        ]
        lines.append(_pipes("---" if width else "---:" for width in _COLUMNS.values()))
        lines += [*(_pipes(_cells(row, _bracket)) for row in block.rows), ""]
    lines += [f"- {line}" for line in _remarks(comparison)]
    return "\n".join(lines) + "\n"


def _csv(comparison: Comparison) -> str:
    records = [_host_record(block) | _record(row) for block in comparison.blocks for row in block.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _json(comparison: Comparison) -> str:
    blocks = [_host_record(block) | {"rows": [_record(row) for row in block.rows]} for block in comparison.blocks]
    gate = {"max_regression": comparison.max_regression, "regressions": [row.label for row in comparison.regressions]}
    return json.dumps({"hosts": blocks, **gate}, indent=2) + "\n"


def _heading(block: Block) -> str:
    host = block.host
    facts = [
        host.cpu,
        _plural(host.cores, "core"),
        f"{host.memory_mib / 1024:.1f} GiB",
        f"onnxruntime {host.onnxruntime}",
    ]
    facts += [_plural(block.threads, "thread")] if block.threads else []
    facts += [f"governor {host.governor}"] if host.governor else []
    return f"{host.name}: {', '.join(facts)}"


def _cells(row: Row, interval: Callable[[Estimate], str]) -> list[str]:
    m = row.measurement
    away = "({})" if m.evidence == "host" else "{}"
    p50 = p90 = faster = memory = ""
    if m.latency and row.p50_ms:
        p50 = away.format(f"{_short(row.p50_ms.value)} {interval(row.p50_ms)}")
        p50 += " !" if row.verdict and row.verdict.kind != "steady" else ""
        p90 = away.format(_short(m.latency.p90_ms))
    if row.speedup:
        unsure = "~" if row.speedup.low <= 1 <= row.speedup.high else ""
        faster = away.format(f"{unsure}{row.speedup.value:.2f}×")
    elif row.baseline:
        faster = "1×"
    if m.memory:
        memory = f"{max(m.memory.peak_load_bytes, m.memory.peak_run_bytes) / 1e6:.0f}"
    return [
        m.model,
        m.target or "host",
        f"{m.variant} ({row.source})" if row.source else m.variant,
        _short(m.size_bytes / 1e6),
        "" if m.score is None else f"{'≈' if m.score.kind == 'agreement' else ''}{m.score.value:.4g}",
        p50,
        p90,
        faster,
        memory,
        _EVIDENCE[m.evidence],
    ]


def _plus_minus(estimate: Estimate) -> str:
    return f"±{estimate.uncertainty:.0%}"


def _bracket(estimate: Estimate) -> str:
    return f"[{_short(estimate.low)}–{_short(estimate.high)}]"


def _remarks(comparison: Comparison) -> list[str]:
    """Legend and notes: what each word means, and which rows need a second look."""
    rows = [row for block in comparison.blocks for row in block.rows]
    used = dict.fromkeys(row.measurement.evidence for row in rows)
    lines = [f"{_EVIDENCE[e]}: {_LEGEND[e]}" for e in used]
    if any(row.measurement.score and row.measurement.score.kind == "agreement" for row in rows):
        lines.append("≈ score: agreement with the source model's answers, not accuracy.")
    compared = [row for row in rows if row.speedup]
    if compared:
        names = " and ".join(sorted({str(row.baseline) for row in compared}))
        lines.append(f"speed-up: against {names} on the same host, round by round where they ran interleaved.")
    if any(row.speedup.low <= 1 <= row.speedup.high for row in compared if row.speedup):
        lines.append("~ speed-up: its 95 % interval includes 1, so there may be none.")
    empty = [row.measurement.memory.baseline_bytes for row in rows if row.measurement.memory]
    if empty:
        without = f"{max(empty) / 1e6:.0f} without a model"
        lines.append(f"MB: size of the file. RAM: peak of the process in MB, loading included; {without}.")
    if len(comparison.blocks) > 1:
        lines.append("Each block is another processor, runtime or number of threads: compare within a block only.")
    for row in rows:
        if row.verdict and row.verdict.kind != "steady":
            lines.append(f"! {row.label}: {row.verdict.kind}, {row.verdict.reason}.")
        if row.measurement.note:
            lines.append(f"{row.label}: {row.measurement.note}")
    for row in comparison.regressions:
        if row.speedup and comparison.max_regression is not None:
            slower, limit = 1 / row.speedup.value - 1, comparison.max_regression
            lines.append(f"REGRESSION {row.label}: {slower:.1%} slower than {row.baseline}, allowed {limit:.1%}.")
    return lines


def _host_record(block: Block) -> dict[str, object]:
    host = block.host
    return {
        "host": host.name,
        "cpu": host.cpu,
        "cores": host.cores,
        "onnxruntime": host.onnxruntime,
        "threads": block.threads,
    }


def _record(row: Row) -> dict[str, object]:
    m, latency, memory = row.measurement, row.measurement.latency, row.measurement.memory
    return {
        "model": m.model,
        "variant": m.variant,
        "target": m.target,
        "evidence": m.evidence,
        "file": row.source,
        "size_bytes": m.size_bytes,
        "score_kind": m.score.kind if m.score else None,
        "score": m.score.value if m.score else None,
        "score_samples": m.score.samples if m.score else None,
        "p50_ms": row.p50_ms.value if row.p50_ms else None,
        "p50_low_ms": row.p50_ms.low if row.p50_ms else None,
        "p50_high_ms": row.p50_ms.high if row.p50_ms else None,
        "p90_ms": latency.p90_ms if latency else None,
        "p99_ms": latency.p99_ms if latency else None,
        "samples": len(latency.samples_ms) if latency else None,
        "load_ms": latency.load_ms if latency else None,
        "first_ms": latency.first_ms if latency else None,
        "speedup": row.speedup.value if row.speedup else None,
        "speedup_low": row.speedup.low if row.speedup else None,
        "speedup_high": row.speedup.high if row.speedup else None,
        "baseline": row.baseline,
        "regressed": row.regressed,
        "baseline_bytes": memory.baseline_bytes if memory else None,
        "peak_load_bytes": memory.peak_load_bytes if memory else None,
        "peak_run_bytes": memory.peak_run_bytes if memory else None,
        "peak_reset": memory.peak_reset if memory else None,
        "steadiness": row.verdict.kind if row.verdict else None,
        "reason": row.verdict.reason if row.verdict else None,
        "note": m.note,
        "sha256": m.sha256,
        "when": m.when,
    }


def _short(value: float) -> str:
    """Three significant digits or the whole part, at most three decimals, no exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
