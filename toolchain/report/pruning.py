"""The result of pruning: the channels that were removed, the gain, and the check of the pruned graph."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import CutPoint, Pruning
from toolchain.formats.results import Score
from toolchain.report.amounts import count_text, plural

MOST_GROUPS = 24
"""Groups shown one by one, the most pruned first."""


def render(pruning: Pruning, scores: Sequence[Score] = ()) -> RenderableType:
    """Show a row for each pruned group, then the totals.

    Args:
        pruning: the result of pruning.
        scores: of the model before and after; empty if they were not measured.
    """
    if not pruning.helped:
        return Text(f"nothing was pruned: {pruning.reason}; the model is unchanged")
    lines: list[RenderableType] = [_groups(pruning)] if pruning.groups else []
    if len(pruning.groups) > MOST_GROUPS:
        lines.append(Text(f"... and {plural(len(pruning.groups) - MOST_GROUPS, 'more group')}"))
    if pruning.dropped:
        lines.append(Text(f"residual branches removed (named by their Add): {', '.join(pruning.dropped)}"))
    lines += [Text(line) for line in _totals(pruning, scores)]
    return Group(*lines)


def curve(points: Sequence[CutPoint]) -> RenderableType:
    """Show what smaller models gain and lose, the largest first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    kind = points[0].score.kind if points else "score"
    for header in ("factor", "fidelity", "agreement" if kind == "agreement" else "score", ""):
        table.add_column(header, justify="right" if header else "left")
    for point in points:
        fidelity = "" if point.fidelity_db is None else f"{point.fidelity_db:.1f} dB"
        table.add_row(f"{point.factor:.2f}×", fidelity, f"{point.score.value:.4f}", point.fault or "keeps enough")
    return Group(Text("what a smaller model gains and loses, on held-out samples:"), table)


def speed_text(speedup: float, interval: tuple[float, float] | None) -> str:
    """Return a speed-up with its interval where it is known."""
    return f"{speedup:.2f}×" + ("" if interval is None else f" (95 %: {interval[0]:.2f} to {interval[1]:.2f})")


def check_text(exact: bool) -> str:
    """Say what the check of the pruned graph showed: equal bit for bit if `exact`, otherwise up to rounding."""
    extent = "" if exact else ", up to rounding"
    return f"the pruned model computes what the original does with those channels switched off{extent}"


def int8_text(speedup: float | None, interval: tuple[float, float] | None) -> str:
    """Say how much faster pruning makes the int8 model; return an empty text if that was not measured."""
    return "" if speedup is None else f"; as int8, {speed_text(speedup, interval)} as fast as int8 without pruning"


def _groups(pruning: Pruning) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("group", "kept", "of", "nodes"):
        table.add_column(header, justify="right" if header in ("kept", "of") else "left", no_wrap=header == "group")
    for cut in sorted(pruning.groups, key=lambda c: c.kept / c.size)[:MOST_GROUPS]:
        others = f" and {len(cut.nodes) - 2} more" if len(cut.nodes) > 2 else ""
        table.add_row(cut.name, str(cut.kept), str(cut.size), f"{', '.join(cut.nodes[:2])}{others}")
    return table


def _totals(pruning: Pruning, scores: Sequence[Score]) -> list[str]:
    lines = []
    if pruning.proof is not None:
        difference = f"largest difference with the real weights: {pruning.proof.error:.0e}"
        lines.append(f"checked: {check_text(pruning.proof.exact)} ({difference})")
    if not pruning.groups and not pruning.dropped:  # only single weights were set to zero: size and speed are the same
        return [*pruning.notes, *_score_line(scores)]
    (macs, macs_left), (parameters, parameters_left) = pruning.macs, pruning.parameters
    lines.append(
        f"multiply-accumulates {count_text(macs)} → {count_text(macs_left)}, "
        f"parameters {count_text(parameters)} → {count_text(parameters_left)}"
    )
    int8 = int8_text(pruning.int8_speedup, pruning.int8_speedup_interval)
    fp32 = speed_text(pruning.speedup, pruning.speedup_interval)
    lines.append(f"speed: fp32 {fp32} as fast on this computer, 1 thread{int8}")
    lines.append(f"channel counts were chosen by {pruning.chosen_by}")
    if (fidelity := pruning.fidelity_db) is not None:
        lines.append(f"fidelity {fidelity.cut:.1f} dB after removal, {fidelity.repaired:.1f} dB after repair")
    return [*lines, *pruning.notes, *_score_line(scores)]


def _score_line(scores: Sequence[Score]) -> list[str]:
    if len(scores) != 2:
        return []
    return [f"{scores[1].kind}: before {scores[0].value:.4f}, pruned {scores[1].value:.4f}"]
