"""Results as a terminal table, Markdown, CSV, JSON or an HTML page.

Table and Markdown are for reading: rounded numbers, a legend, and notes on rows that need caution (``legend.py``).
CSV and JSON are for programs: full numbers, with units in the names. The page is made in ``html/page.py``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Literal, get_args

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from toolchain.benchmark.stats import sustained
from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.formats.results import Results
from toolchain.report.cells import COLUMNS, bracket, heading, plus_minus, table_cells
from toolchain.report.compare import Comparison
from toolchain.report.derive import Block, Row, derive
from toolchain.report.legend import legend, notes

Format = Literal["table", "markdown", "csv", "json", "html"]
FORMATS: tuple[str, ...] = get_args(Format)

WIDTH = 100
"""Character columns that a table may take in the terminal."""
SPARE_COLUMNS = ("p90 ms", "RAM", "evidence")
"""Columns that are left out, one after the other, where a terminal is too narrow; times in parentheses still show where
they come from."""


def check_format(format: str) -> None:
    """Refuse an unknown format. Call it before the slow step whose result is to be shown.

    Raises:
        ConfigError: unknown format, with a suggestion.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}", where="--format", hint=did_you_mean(format, FORMATS))


def render(results: Results | Sequence[Results] | Comparison, format: str = "table") -> RenderableType:
    """Render results in one of `FORMATS`.

    Returns:
        A rich renderable for ``table``, text for every other format.

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
    if format == "html":
        from toolchain.report.html import page

        return page.render(comparison)
    return _table(comparison) if format == "table" else _markdown(comparison)


def _table(comparison: Comparison) -> Group:
    parts: list[RenderableType] = []
    for block in comparison.blocks:
        parts += [Text("\n".join(heading(block)), style="bold"), "", _FittedTable(block), ""]
    words = Table.grid(padding=(0, 2, 0, 0))
    for word, meaning in legend(comparison):
        words.add_row(Text(word, style="bold"), Text(meaning))
    remarks = notes(comparison)
    return Group(*parts, words, "", *map(Text, remarks), *([""] if remarks else []))


@dataclass(frozen=True)
class _FittedTable:
    """A block as a table of at most :data:`WIDTH` columns and at most the terminal's width."""

    block: Block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headers, rows = table_cells(self.block, plus_minus)
        columns = [list(column) for column in zip(headers, *rows, strict=True)]
        columns = [column if COLUMNS[column[0]] else _aligned(column) for column in columns]
        width, left_out = min(WIDTH, options.max_width), []
        for spare in SPARE_COLUMNS:
            if _least_width(columns) <= width:
                break
            left_out += [spare] if any(column[0].strip() == spare for column in columns) else []
            columns = [column for column in columns if column[0].strip() != spare]
        yield self._drawn(columns, width)
        if left_out:
            yield Text(f"(the terminal is too narrow for {', '.join(left_out)})")

    def _drawn(self, columns: Sequence[Sequence[str]], width: int) -> Table:
        widths, gap = _fit(columns, [COLUMNS[column[0].strip()] for column in columns], width)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(Text(column[0]), no_wrap=True)
        last = self.block.rows[0].measurement.model
        for row, cells in zip(self.block.rows, zip(*(c[1:] for c in columns), strict=True), strict=True):
            if row.measurement.model != last:
                table.add_section()
            last = row.measurement.model
            style = "red" if row.regressed else "dim" if row.measurement.evidence != "measured" else ""
            table.add_row(*(Text(_fold(cell, w)) for cell, w in zip(cells, widths, strict=True)), style=style)
        return table


def _least_width(columns: Sequence[Sequence[str]]) -> int:
    """Return the width of a table with single gaps, whose text columns are folded as far as their words allow."""
    return sum(_longest_word(column) for column in columns) + len(columns) - 1


def _longest_word(column: Sequence[str]) -> int:
    """Return the width to which a column can be folded; columns of numbers are not folded."""
    if COLUMNS[column[0].strip()] is None:
        return max(map(cell_len, column))
    return max(cell_len(word) for cell in column for word in re.split(r"(?<=-)|\s", cell))


def _fit(columns: Sequence[Sequence[str]], least: Sequence[int | None], width: int) -> tuple[list[int], int]:
    """Return the widths of the columns and the gap between them.

    If the table is too wide, gaps become narrower first, then text columns are folded, the widest first; `least` is the
    width that a column keeps, None where it must not be folded. Where that is not enough, they are folded as far as
    their words allow.
    """
    widths = [max(map(cell_len, cells)) for cells in columns]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    excess = sum(widths) + gap * (len(widths) - 1) - width
    for limits in ([w or 0 for w in least], [0] * len(least)):
        for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
            shortest = max(limits[i], _longest_word(columns[i])) if least[i] else widths[i]
            cut = max(0, min(excess, widths[i] - shortest))
            widths[i] -= cut
            excess -= cut
    return widths, gap


def _fold(cell: str, width: int) -> str:
    return cell if cell_len(cell) <= width else fill(cell, width)


def _aligned(column: Sequence[str]) -> list[str]:
    """Align a header and its numbers to the right by their last digits, whatever marks follow these."""
    header, *cells = column
    tails = [len(cell) - len(cell.rstrip("%×)! ")) for cell in cells]
    cells = [cell + " " * (max(tails) - tail) if cell else cell for cell, tail in zip(cells, tails, strict=True)]
    width = max(map(cell_len, (header, *cells)))
    return [cell.rjust(width) for cell in (header, *cells)]


def _markdown(comparison: Comparison) -> str:
    lines: list[str] = []
    for block in comparison.blocks:
        headers, rows = table_cells(block, bracket)
        lines += [f"**{' on '.join(heading(block))}**", "", _pipes(headers)]
        lines += [_pipes("---" if COLUMNS[header] else "---:" for header in headers), *map(_pipes, rows), ""]
    lines += [f"- **{word}**: {meaning}" for word, meaning in legend(comparison)]
    remarks = notes(comparison)
    return "\n".join([*lines, *([""] if remarks else []), *(f"- {line}" for line in remarks)]) + "\n"


def _csv(comparison: Comparison) -> str:
    records = [_host_fields(block) | _row_fields(row) for block in comparison.blocks for row in block.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _json(comparison: Comparison) -> str:
    blocks = [_host_fields(block) | {"rows": [_row_fields(row) for row in block.rows]} for block in comparison.blocks]
    gate = {"max_regression": comparison.max_regression, "regressions": [row.label for row in comparison.regressions]}
    return json.dumps({"hosts": blocks, **gate}, indent=2) + "\n"


def _host_fields(block: Block) -> dict[str, object]:
    host = block.host
    return {
        "host": host.name,
        "cpu": host.cpu,
        "cores": host.cores,
        "onnxruntime": host.onnxruntime,
        "threads": block.threads,
        "cpus": " ".join(map(str, block.cpus)) or None,
    }


def _row_fields(row: Row) -> dict[str, object]:
    m, latency, memory = row.measurement, row.measurement.latency, row.measurement.memory
    sustained_run = sustained(m.sustained)
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
        "cpu_p50_ms": latency.cpu_p50_ms if latency else None,
        "samples": len(latency.samples_ms) if latency else None,
        "load_ms": latency.load_ms if latency else None,
        "first_ms": latency.first_ms if latency else None,
        "speedup": row.speedup.value if row.speedup else None,
        "speedup_low": row.speedup.low if row.speedup else None,
        "speedup_high": row.speedup.high if row.speedup else None,
        "baseline": row.baseline,
        "difference": row.difference,
        "regressed": row.regressed,
        "baseline_bytes": memory.baseline_bytes if memory else None,
        "peak_load_bytes": memory.peak_load_bytes if memory else None,
        "peak_run_bytes": memory.peak_run_bytes if memory else None,
        "pss_run_bytes": memory.pss_run_bytes if memory else None,
        "arena": memory.arena if memory else None,
        "peak_reset": memory.peak_reset if memory else None,
        "sustained_first_ms": sustained_run.first_ms if sustained_run else None,
        "sustained_last_ms": sustained_run.last_ms if sustained_run else None,
        "steadiness": row.verdict.kind if row.verdict else None,
        "reason": row.verdict.reason if row.verdict else None,
        "note": m.note,
        "sha256": m.sha256,
        "when": m.when,
    }


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
