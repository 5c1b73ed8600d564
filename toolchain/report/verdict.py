"""Rendering of a verdict: how much of the float model's answer is left, part by part."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.verdict import WHOLE_DB, PartFidelity, Verdict
from toolchain.report.amounts import plural

MAX_PARTS = 12
"""Number of parts that are shown; those with the lowest fidelity come first."""

FIDELITY_MEANING = "0 dB: nothing is left; 10 dB: off by a third of what the part varies by; 20 dB: a tenth"
WORST_MEANING = "the index of the features, such as a class, that is nearest to being lost; its number in ( )"
DECISIONS_MEANING = "share that is as in float, right or wrong; not accuracy"


def render(verdict: Verdict) -> RenderableType:
    """Show a row for each part, the worst first, the decisions that are made from it, and what the numbers mean."""
    if not verdict.judged:
        return Text("")
    samples = plural(verdict.samples, "sample that was held out", "samples that were held out")
    if all(part.fidelity_db >= WHOLE_DB for part in verdict.parts) and not verdict.lost:
        return Text(f"what is left of float's answer, on {samples}: all of it")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("part of the answer", overflow="fold")
    table.add_column("fidelity", justify="right")
    table.add_column("worst index", justify="right")
    table.add_column("decisions kept", overflow="fold")
    decisions = decisions_by_part(verdict)
    for part in worst_first(verdict)[:MAX_PARTS]:
        name = f"{part.name}{' (lost)' if part.lost else ''}"
        table.add_row(name, f"{part.fidelity_db:.1f} dB", worst_index(part), decisions.pop(part.name, ""))
    for name, kept in list(decisions.items())[:MAX_PARTS]:
        table.add_row(name, "", "", kept)
    hidden = len(verdict.parts) - MAX_PARTS
    more = [Text(f"and {plural(hidden, 'part')} with a higher fidelity")] if hidden > 0 else []
    words = Table.grid(padding=(0, 2, 0, 0))
    words.add_row(Text("fidelity"), Text(FIDELITY_MEANING))
    if any(map(worst_index, verdict.parts)):
        words.add_row(Text("worst index"), Text(WORST_MEANING))
    if verdict.decisions:
        words.add_row(Text("decisions"), Text(DECISIONS_MEANING))
    return Group(Text(f"what is left of float's answer, on {samples}:"), table, *more, words)


def warnings(verdict: Verdict) -> list[str]:
    """Return a sentence for each part or decision that was lost, and one where samples are too few to tell."""
    lost = [f"LOST: {sentence}" for sentence in verdict.lost]
    if not verdict.doubtful:
        return lost
    more = f" (and {len(verdict.doubtful) - 1} more)" if len(verdict.doubtful) > 1 else ""
    return [*lost, f"DOUBTFUL: {verdict.doubtful[0]}{more}; give more samples to find out"]


def worst_first(verdict: Verdict) -> list[PartFidelity]:
    """Sort the parts: those that were lost, then by fidelity."""
    return sorted(verdict.parts, key=lambda part: (not part.lost, part.fidelity_db))


def decisions_by_part(verdict: Verdict) -> dict[str, str]:
    """Return the decisions of each part as text, by its name."""
    found: dict[str, list[str]] = {}
    for decision in verdict.decisions:
        found.setdefault(decision.part, []).append(decision.label)
    return {name: ", ".join(texts) for name, texts in found.items()}


def worst_index(part: PartFidelity) -> str:
    """Return the fidelity of the worst index and its number; empty where the part is judged as a whole."""
    return "" if part.worst_db is None or part.indices == 1 else f"{part.worst_db:.1f} dB ({part.worst_index})"
