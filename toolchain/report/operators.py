"""Time by kind of operator, as onnxruntime's profiler measured it: ``bench --operators``."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.results import Measurement, Results
from toolchain.report.amounts import plural

MOST_KINDS = 12
"""Kinds of operators shown one by one; the rest is summed in one row."""


def render(results: Results) -> RenderableType:
    """Show a table for every measurement that was profiled."""
    profiled = [row for row in results.measurements if row.operators]
    return Group(*(part for row in profiled for part in (_title(row), _table(row), "")))


def _title(row: Measurement) -> Text:
    threads = plural(row.latency.threads if row.latency else 1, "thread")
    title = f"{row.model} {row.variant} with {threads}: time of one inference by operator (onnxruntime's profiler)"
    return Text(title, style="bold")


def _table(row: Measurement) -> Table:
    nodes = Counter(operator.op for operator in row.operators)
    times_us = dict.fromkeys(nodes, 0.0)
    for operator in row.operators:
        times_us[operator.op] += operator.median_us
    ordered = sorted(times_us.items(), key=lambda item: -item[1])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("operator")
    for header in ("nodes", "µs", "share"):
        table.add_column(header, justify="right")
    total_us = sum(us for _, us in ordered) or 1
    for op, us in ordered[:MOST_KINDS]:
        table.add_row(Text(op), str(nodes[op]), f"{us:.0f}", f"{us / total_us:.0%}")
    if rest := ordered[MOST_KINDS:]:
        us = sum(us for _, us in rest)
        table.add_row(Text("others"), str(sum(nodes[op] for op, _ in rest)), f"{us:.0f}", f"{us / total_us:.0%}")
    return table
