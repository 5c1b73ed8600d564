"""What pruning took, what it is worth, and how that is known."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import Pruning
from toolchain.formats.results import Score
from toolchain.report.amounts import count_text

SHOWN = 24


def render(found: Pruning, scores: Sequence[Score] = ()) -> RenderableType:
    """A line for every group that was cut, and the sums."""
    if not found.helped:
        return Text(f"nothing was pruned: {found.reason}; the model is as it was given")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("group", "channels", "of", "in"):
        table.add_column(header, justify="right" if header in ("channels", "of") else "left", no_wrap=header == "group")
    for cut in sorted(found.groups, key=lambda c: c.kept / c.size)[:SHOWN]:
        others = f" and {len(cut.nodes) - 2} more" if len(cut.nodes) > 2 else ""
        table.add_row(cut.name, str(cut.kept), str(cut.size), f"{', '.join(cut.nodes[:2])}{others}")
    lines: list[RenderableType] = [table] if found.groups else []
    if len(found.groups) > SHOWN:
        lines.append(Text(f"... and {len(found.groups) - SHOWN} groups more"))
    if found.dropped:
        lines.append(Text(f"residual branches dropped, by their sums: {', '.join(found.dropped)}"))
    lines += [Text(line) for line in _sums(found, scores)]
    return Group(*lines)


def _sums(found: Pruning, scores: Sequence[Score]) -> list[str]:
    lines = []
    if found.proof is not None:
        how = "bit for bit on selection weights" if found.proof.exact else "within rounding"
        lines.append(f"proved against the masked dense graph: {how}; own weights moved by {found.proof.error:.0e}")
    if not found.groups and not found.dropped:  # single weights: nothing of this changed
        return [*found.notes, *_score_line(scores)]
    (macs, left_macs), (params, left) = found.macs, found.parameters
    lines.append(
        f"multiply-accumulates {count_text(macs)} -> {count_text(left_macs)}, "
        f"parameters {count_text(params)} -> {count_text(left)}"
    )
    int8 = f"; as int8, {found.int8_speedup:.2f}x int8 alone" if found.int8_speedup is not None else ""
    lines.append(
        f"fp32 {found.speedup:.2f}x as fast, measured here, 1 thread{int8}; widths chosen by: {found.chosen_by}"
    )
    if found.fidelity_db is not None:
        lines.append(
            f"fidelity {found.fidelity_db.cut:.1f} dB as cut, {found.fidelity_db.repaired:.1f} dB after repair"
        )
    return [*lines, *found.notes, *_score_line(scores)]


def _score_line(scores: Sequence[Score]) -> list[str]:
    if len(scores) != 2:
        return []
    return [f"{scores[1].kind}: before {scores[0].value:.4f}, pruned {scores[1].value:.4f}"]
