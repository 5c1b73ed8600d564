"""Data of the report's section on what is left of the float model's answer."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.formats.manifest import Manifest
from toolchain.report.explain import clipped_cells
from toolchain.report.verdict import decisions_by_part, worst_first, worst_index

MOST_PARTS = 40
"""Parts that are shown, the worst first."""
MOST_CLIPPED = 20
"""Tensors with values outside their range that are shown."""


@dataclass(frozen=True)
class PartRow:
    """A row of the table: a part of the answer, and texts of what was measured; empty where nothing was."""

    name: str
    lost: bool
    fidelity: str = ""
    worst: str = ""
    constant: str = ""
    decisions: str = ""


@dataclass(frozen=True)
class Answer:
    """Content of the section.

    Attributes:
        samples: number of samples that the models were compared on.
        lost: what fell under the floor, one sentence each.
        doubtful: what looks lost on samples that are too few to tell.
        rows: the parts, the worst first, then decisions that belong to no part.
        hidden: number of parts that are not shown.
        clipped: tensors with values outside their range: the share, the farthest, the name.
        more_clipped: number of such tensors that are not shown.
    """

    samples: int
    lost: tuple[str, ...]
    doubtful: tuple[str, ...]
    rows: tuple[PartRow, ...]
    hidden: int
    clipped: tuple[tuple[str, str, str], ...]
    more_clipped: int


def answer(manifest: Manifest) -> Answer | None:
    """Return the content of the section; None where nothing was judged."""
    verdict = manifest.verdict
    if verdict is None or not verdict.judged:
        return None
    decisions = decisions_by_part(verdict)
    rows = [
        PartRow(
            name=part.name,
            lost=part.lost,
            fidelity=f"{part.fidelity_db:.1f} dB",
            worst=worst_index(part),
            constant=f"{part.constant} of {part.constant + part.indices}" if part.constant else "",
            decisions=decisions.pop(part.name, ""),
        )
        for part in worst_first(verdict)[:MOST_PARTS]
    ]
    parts = {part.name for part in verdict.parts}
    rows += [
        PartRow(name=name, lost=any(sentence.startswith(f"{name}: ") for sentence in verdict.lost), decisions=kept)
        for name, kept in decisions.items()
        if name not in parts
    ]
    return Answer(
        samples=verdict.samples,
        lost=verdict.lost,
        doubtful=verdict.doubtful,
        rows=tuple(rows),
        hidden=max(0, len(verdict.parts) - MOST_PARTS),
        clipped=tuple(clipped_cells(tensor) for tensor in manifest.clipped[:MOST_CLIPPED]),
        more_clipped=max(0, len(manifest.clipped) - MOST_CLIPPED),
    )
