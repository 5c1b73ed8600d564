"""Rendering of a verdict: how much of the float model's answer is left, part by part."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.verdict import Decision, PartFidelity, Verdict

MAX_PARTS = 12
"""Number of parts that are shown; those with the lowest fidelity come first."""


def render(verdict: Verdict) -> RenderableType:
    """Show a row for each part, the worst first, and the decisions that are made from it."""
    if not verdict.parts and not verdict.decisions:
        return Text("")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("part of the answer", overflow="fold")
    table.add_column("fidelity", justify="right")
    table.add_column("worst index", justify="right")
    table.add_column("decisions kept", overflow="fold")
    decisions = _by_part(verdict)
    for part in sorted(verdict.parts, key=lambda part: part.fidelity_db)[:MAX_PARTS]:
        table.add_row(_name(part), f"{part.fidelity_db:.1f} dB", _worst(part), decisions.pop(part.name, ""))
    for name, kept in list(decisions.items())[:MAX_PARTS]:
        table.add_row(name, "", "", kept)
    hidden = len(verdict.parts) - MAX_PARTS
    more = [Text(f"and {hidden} parts with a higher fidelity")] if hidden > 0 else []
    title = f"what is left of float's answer, each part against its own variation ({verdict.samples} held-out samples):"
    return Group(Text(title), table, *more)


def warnings(verdict: Verdict) -> list[str]:
    """Return a sentence for each part or decision that was lost, and one where samples are too few to tell."""
    lost = [f"LOST: {sentence}" for sentence in verdict.lost]
    if not verdict.doubtful:
        return lost
    more = f" (and {len(verdict.doubtful) - 1} more)" if len(verdict.doubtful) > 1 else ""
    return [*lost, f"DOUBTFUL: {verdict.doubtful[0]}{more}; give more samples to find out"]


def _by_part(verdict: Verdict) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for decision in verdict.decisions:
        found.setdefault(decision.part, []).append(_decision(decision))
    return {name: ", ".join(texts) for name, texts in found.items()}


def _decision(decision: Decision) -> str:
    return f"{decision.kind} {decision.kept:.3f}"


def _name(part: PartFidelity) -> str:
    return f"{part.name}{' (lost)' if part.lost else ''}"


def _worst(part: PartFidelity) -> str:
    return "" if part.worst_db is None or part.indices == 1 else f"{part.worst_db:.1f} dB ({part.worst_index})"
