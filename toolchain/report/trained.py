"""What training did, a line a step."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import Evaluation, TrainingStep
from toolchain.report.amounts import count_text


def render(steps: Sequence[TrainingStep]) -> RenderableType:
    """Techniques with what they cost and left; held-out samples before → after."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("step", "held out", "MACs", "zeros", "MB", "zip MB", "steps", "seconds"):
        table.add_column(header, justify="left" if header == "step" else "right", no_wrap=header != "step")
    for step in steps:
        sizes = (f"{step.bytes / 1e6:.2f}", f"{step.zip_bytes / 1e6:.2f}")
        cells = (f"{told(step.before)} → {told(step.after)}", count_text(step.macs), f"{step.zeros:.0%}", *sizes)
        table.add_row(f"{step.technique}: {step.summary}", *cells, str(step.steps), f"{step.seconds:.0f}")
    notes = [Text(f"{step.technique}: {note}") for step in steps for note in step.notes]
    return Group(table, *notes)


def told(found: Evaluation) -> str:
    """A look in one number: accuracy where outputs are classes, else the outputs' fidelity."""
    return f"{found.fidelity_db:.1f} dB" if found.accuracy is None else f"{found.accuracy:.1%}"
