"""Channel groups of a model: ``inspect --groups``."""

from __future__ import annotations

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.inspection.groups import Grouping
from toolchain.report.amounts import count_text

MOST_MEMBERS = 3
"""Members of a group that are named."""
_WEIGHTED = ("Conv", "Gemm", "MatMul", "LSTM")
"""Members with these operators are named first: their weights are what pruning removes."""


def render(grouping: Grouping) -> RenderableType:
    """Show a row for each group: name, channels, share of the MACs, members, and why it cannot be pruned, if so."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("group", "channels", "MACs", "members", "cannot be pruned because"):
        table.add_column(header, justify="right" if header in ("channels", "MACs") else "left", overflow="fold")
    for group in grouping.groups:
        members = [f"{m.node}[{m.axis}]" for m in group.members if m.op in _WEIGHTED]
        members = list(dict.fromkeys(members)) or [f"{m.node}[{m.axis}]" for m in group.members]
        more = f", {len(members) - MOST_MEMBERS} more" if len(members) > MOST_MEMBERS else ""
        table.add_row(
            group.name,
            str(group.size),
            f"{group.macs / max(grouping.macs, 1):.1%}",
            ", ".join(members[:MOST_MEMBERS]) + more,
            "" if group.free else group.pins[0],
        )
    free = sum(group.free for group in grouping.groups)
    total = f"{count_text(grouping.macs)} multiply-accumulates (MACs) in total"
    return Lines(table, Text(f"{free} of {len(grouping.groups)} groups can be pruned; {total}"))
