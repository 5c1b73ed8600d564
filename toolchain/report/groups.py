"""``inspect --groups``: what can only be cut together, how much work it takes part in, and why the rest stays whole."""

from __future__ import annotations

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.inspection.groups import Grouping
from toolchain.report.amounts import count_text

SHOWN = 3


def render(found: Grouping) -> RenderableType:
    """A row a group: name, size, share of the work, members, and the reason where it is pinned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("group", "size", "work", "members", "pinned, because"):
        table.add_column(header, justify="right" if header in ("size", "work") else "left", overflow="fold")
    for group in found.groups:
        members = [f"{m.node}[{m.axis}]" for m in group.members if m.op in ("Conv", "Gemm", "MatMul", "LSTM")]
        members = list(dict.fromkeys(members)) or [f"{m.node}[{m.axis}]" for m in group.members]
        more = f", {len(members) - SHOWN} more" if len(members) > SHOWN else ""
        table.add_row(
            group.name,
            str(group.size),
            f"{group.macs / max(found.macs, 1):.1%}",
            ", ".join(members[:SHOWN]) + more,
            "" if group.free else group.pins[0],
        )
    free = sum(group.free for group in found.groups)
    return Lines(table, Text(f"{free} of {len(found.groups)} groups may be cut; {count_text(found.macs)} MACs in all"))
