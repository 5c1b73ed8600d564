"""Precision of the nodes: how many compute in int8, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import fill

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolchain.formats.manifest import NodePrecision
from toolchain.inspection.precision import FloatGroup, float_groups

COUNTS_WIDTH = 36
"""Characters of the column that counts nodes by operator."""


def render(choices: Sequence[NodePrecision]) -> RenderableType:
    """Show how many nodes have each precision, then the reasons of those that stay float."""
    counts = Counter(choice.precision for choice in choices)
    float_nodes, int8_nodes = counts.pop("float", 0), counts.pop("int8", 0)
    if float_nodes == len(choices):
        return Group(Text(f"no operator is int8; all {len(choices)} stay float:"), reasons(float_groups(choices)))
    parts = [f"int8: {int8_nodes} of {len(choices)} nodes"] if int8_nodes else []
    for precision, count in counts.items():
        of_all = "" if parts else f" of {len(choices)} nodes"
        parts.append(f"{precision}: {count}{of_all} ({_operators(choices, precision)})")
    head = "; ".join(parts)
    if not float_nodes:
        return Text(head)
    return Group(Text(f"{head}; the others are float:"), reasons(float_groups(choices)))


def _operators(choices: Sequence[NodePrecision], precision: str) -> str:
    return ", ".join(dict.fromkeys(choice.op for choice in choices if choice.precision == precision))


def reasons(groups: Sequence[FloatGroup]) -> RenderableType:
    """Show a row for each reason: nodes by operator, the reason, and an example.

    The part of a reason behind its colon (times, sizes) differs from node to node; that of one example is shown.
    """
    by_clause: dict[str, list[FloatGroup]] = {}
    for group in groups:
        by_clause.setdefault(group.reason.partition(": ")[0], []).append(group)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for clause, alike in sorted(by_clause.items(), key=lambda item: -sum(g.nodes for g in item[1])):
        counts: Counter[str] = Counter()
        for group in alike:
            counts[group.op] += group.nodes
        first = alike[0]
        same = {group.reason for group in alike} == {first.reason}
        example = first.example if counts.total() == 1 else f"e.g. {first.example}"
        why = f"{first.reason} ({example})" if same else f"{clause} ({example}{first.reason.removeprefix(clause)})"
        table.add_row(Text(_comma_list([f"{n} × {op}" for op, n in counts.items()])), Text(why))
    return Padding(table, (0, 0, 0, 2))


def _comma_list(items: Sequence[str]) -> str:
    """Join by commas and fold to the column's width, only between items."""
    text = ", ".join(item.replace(" ", "\xa0") for item in items)
    return fill(text, COUNTS_WIDTH, break_long_words=False).replace("\xa0", " ")
