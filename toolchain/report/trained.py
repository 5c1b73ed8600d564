"""The steps of a training recipe, with the quality, size and training time of each."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import Evaluation, TrainingStep
from toolchain.report.amounts import count_text


def render(steps: Sequence[TrainingStep]) -> RenderableType:
    """Show a row for each step: held-out samples before → after, the model's size, and the time taken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("step", "held out", "MACs", "zeros", "MB", "zip MB", "updates", "seconds"):
        table.add_column(header, justify="left" if header == "step" else "right", no_wrap=header != "step")
    for step in steps:
        sizes = (f"{step.bytes / 1e6:.2f}", f"{step.zip_bytes / 1e6:.2f}")
        quality = f"{evaluation_text(step.before)} → {evaluation_text(step.after)}"
        cells = (quality, count_text(step.macs), f"{step.zeros:.0%}", *sizes)
        table.add_row(f"{step.technique}: {step.summary}", *cells, str(step.steps), f"{step.seconds:.0f}")
    notes = [Text(f"{step.technique}: {note}") for step in steps for note in step.notes]
    meaning = "held out: accuracy on samples not trained on, or the outputs' fidelity in dB if they are not classes"
    return Group(table, Text(meaning), *notes)


def evaluation_text(evaluation: Evaluation) -> str:
    """Return an evaluation as one number: accuracy if the outputs are classes, else the outputs' fidelity in dB."""
    return f"{evaluation.fidelity_db:.1f} dB" if evaluation.accuracy is None else f"{evaluation.accuracy:.1%}"
