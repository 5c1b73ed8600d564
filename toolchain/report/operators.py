"""The runtime's profile of a model: what its operators take, by kind."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.results import Measurement, Results

MOST = 12
"""Kinds of operators that are shown; the rest is one line."""


def render(results: Results) -> RenderableType:
    """A table for every measurement that was profiled."""
    profiled = [row for row in results.measurements if row.operators]
    return Group(*(part for row in profiled for part in (_title(row), _table(row), "")))


def _title(row: Measurement) -> Text:
    threads = row.latency.threads if row.latency else 1
    with_threads = f"with {threads} thread{'' if threads == 1 else 's'}"
    title = f"{row.model} {row.variant} {with_threads}: operators of an inference, by the runtime's profiler"
    return Text(title, style="bold")


def _table(row: Measurement) -> Table:
    number = Counter(operator.op for operator in row.operators)
    total = dict.fromkeys(number, 0.0)
    for operator in row.operators:
        total[operator.op] += operator.median_us
    ordered = sorted(total.items(), key=lambda item: -item[1])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("operator")
    for header in ("nodes", "µs", "share"):
        table.add_column(header, justify="right")
    everything = sum(us for _, us in ordered) or 1
    for op, us in ordered[:MOST]:
        table.add_row(Text(op), str(number[op]), f"{us:.0f}", f"{us / everything:.0%}")
    if rest := ordered[MOST:]:
        us = sum(us for _, us in rest)
        table.add_row(Text("others"), str(sum(number[op] for op, _ in rest)), f"{us:.0f}", f"{us / everything:.0%}")
    return table
