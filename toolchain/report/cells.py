"""Cells of the results table as text, for the terminal, Markdown and the HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolchain.benchmark.stats import Estimate
from toolchain.report.amounts import plural, short_number
from toolchain.report.derive import Block, Row
from toolchain.report.legend import EVIDENCE, score_header

COLUMNS: dict[str, int | None] = {
    "model": 12,
    "target": 13,
    "variant": 10,
    "MB": None,
    "score": None,
    "agreement": None,
    "median ms": None,
    "p90 ms": None,
    "speed-up": None,
    "RAM": None,
    "evidence": 9,
}
"""Header of every column; a table has either score or agreement. For text columns: the width to which they may be
narrowed. None: a column of numbers."""


def plus_minus(estimate: Estimate) -> str:
    """Return an interval in short, for the terminal: ``±3%``."""
    return f"±{estimate.uncertainty:.0%}"


def bracket(estimate: Estimate) -> str:
    """Return an interval with both ends, for Markdown: ``[9.81–10.2]``."""
    return f"[{short_number(estimate.low)}–{short_number(estimate.high)}]"


def table_cells(block: Block, interval: Callable[[Estimate], str] = plus_minus) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of a block. The first column, the model, is left out if all rows have the same.

    Args:
        block: rows with their statistics.
        interval: writes the 95 % interval behind the median.
    """
    rows = [_cells(row, interval) for row in block.rows]
    first = 0 if len({row[0] for row in rows}) > 1 else 1
    absent = "score" if score_header(block.rows) == "agreement" else "agreement"
    headers = [header for header in COLUMNS if header != absent]
    return headers[first:], [row[first:] for row in rows]


def is_text(header: str) -> bool:
    """Return True for a column of text, aligned left; False for one of numbers, aligned right."""
    return COLUMNS[header] is not None


def heading(block: Block) -> list[str]:
    """Return the lines above a block: the model's name if all rows have the same, then the machine and settings."""
    host = block.host
    facts = [
        host.cpu,
        plural(host.cores, "core"),
        *([f"{host.memory_mib / 1024:.1f} GiB"] if host.memory_mib else []),  # an emulated processor has none
        f"onnxruntime {host.onnxruntime}",
    ]
    facts += [plural(block.threads, "thread")] if block.threads else []
    facts += [f"pinned to {_cores(block.cpus)}"] if block.cpus else []
    facts += [f"governor {host.governor}"] if host.governor else []
    models = {row.measurement.model for row in block.rows}
    return [*(models if len(models) == 1 else ()), f"{host.name}: {', '.join(facts)}"]


def _cores(cpus: Sequence[int]) -> str:
    return f"core{'' if len(cpus) == 1 else 's'} {', '.join(map(str, cpus))}"


def _cells(row: Row, interval: Callable[[Estimate], str]) -> list[str]:
    m = row.measurement
    # Parentheses mark times that were measured on another machine than the target.
    marked = "({})" if m.evidence == "host" else "{}"
    p50 = p90 = faster = memory = ""
    if m.latency and row.p50_ms:
        p50 = marked.format(f"{short_number(row.p50_ms.value)} {interval(row.p50_ms)}")
        p50 += " !" if row.verdict and row.verdict.kind != "steady" else ""
        p90 = marked.format(short_number(m.latency.p90_ms))
    if row.speedup:
        faster = marked.format(f"{'~' if row.uncertain else ''}{row.speedup.value:.2f}×")
    elif row.baseline:
        faster = "1×"
    if m.memory:
        memory = f"{max(m.memory.peak_load_bytes, m.memory.peak_run_bytes) / 1e6:.0f}"
    return [
        m.model,
        m.target or "host",
        f"{m.variant} ({row.source})" if row.source else m.variant,
        short_number(m.size_bytes / 1e6),
        "" if m.score is None else f"{'≈' if m.score.kind == 'agreement' else ''}{m.score.value:.4g}",
        p50,
        p90,
        faster,
        memory,
        EVIDENCE[m.evidence],
    ]
