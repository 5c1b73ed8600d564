"""Which nodes compute in int8, and why the others do not, in a few lines."""

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


def render(choices: Sequence[NodePrecision]) -> RenderableType:
    """How many nodes are int8 in which way, then one entry a reason for the rest: counts by operator, an example."""
    counts = Counter(choice.precision for choice in choices)
    floats = counts.pop("float", 0)
    ways = [f"int8: {counts.pop('int8', 0)} of {len(choices)} nodes"]
    ways += [f"{way}: {count} ({_operators(choices, way)})" for way, count in counts.items()]
    head = "; ".join(ways)
    if not floats:
        return Text(head)
    return Group(Text(f"{head}; the others are float:"), reasons(float_groups(choices)))


def _operators(choices: Sequence[NodePrecision], way: str) -> str:
    return ", ".join(dict.fromkeys(choice.op for choice in choices if choice.precision == way))


def reasons(groups: Sequence[FloatGroup]) -> RenderableType:
    """One entry a reason; of what follows its colon (times, sizes: other for every node) one example is shown."""
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
        shared = {group.reason for group in alike} == {first.reason}
        example = first.example if counts.total() == 1 else f"e.g. {first.example}"
        why = f"{first.reason} ({example})" if shared else f"{clause} ({example}{first.reason.removeprefix(clause)})"
        table.add_row(Text(_lines([f"{n} × {op}" for op, n in counts.items()])), Text(why))
    return Padding(table, (0, 0, 0, 2))


def _lines(items: Sequence[str]) -> str:
    """Separated by commas, and broken only between items."""
    return fill(", ".join(item.replace(" ", "\xa0") for item in items), 36, break_long_words=False).replace("\xa0", " ")
