"""The exactness certificate of a quantized model: each int8 kernel with its proof, then what may differ.

An export stores the certificate in its manifest. For a single file, no matter which tool wrote it, it is made from the
scales, zero points, integer weights and biases in the file.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolchain.formats.manifest import STEPS_MEANING, Exactness


def render(exactness: Exactness) -> RenderableType:
    """Show the verdict in one line, a row for each proof, and a row for each operator that may differ."""
    proofs = _two_columns()
    for proof in exactness.proofs:
        used = "" if proof.used is None else f" (uses at most {proof.used:.2%} of what the proof allows)"
        proofs.add_row(Text(f"{len(proof.nodes)} × {proof.kernel}"), Text(proof.proof + used))
    lines: list[RenderableType] = [Text(_verdict(exactness)), Padding(proofs, (0, 0, 0, 2))]
    if exactness.doubts:
        lines += [Text("may differ between processors:"), Padding(_doubts(exactness), (0, 0, 0, 2))]
    return Group(*lines)


def _verdict(exactness: Exactness) -> str:
    if any(doubt.kernel for doubt in exactness.doubts) or not exactness.overflow_free:
        verdict = "not proven; int8 operators may differ between processors"
    elif exactness.steps:
        verdict = STEPS_MEANING
    elif exactness.exceptions and not exactness.proofs:
        verdict = "float; the last digits may differ between processors"
    elif exactness.exceptions:
        verdict = "same integers on every processor; float may differ in the last digits"
    else:
        verdict = "same bits on every processor"
    encoding = f" ({exactness.activations} activations)" if exactness.proofs or not exactness.doubts else ""
    return f"exactness: {verdict}{encoding}"


def _doubts(exactness: Exactness) -> RenderableType:
    """List the nodes of one operator together, with the reason of the first."""
    table = _two_columns()
    first = {(doubt.op, doubt.kernel): doubt for doubt in reversed(exactness.doubts)}
    for (op, kernel), doubt in reversed(first.items()):
        nodes = sum(len(other.nodes) for other in exactness.doubts if (other.op, other.kernel) == (op, kernel))
        table.add_row(Text(f"{nodes} × {kernel or op}"), Text(f"{doubt.reason} (e.g. {doubt.nodes[0]})"))
    return table


def _two_columns() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
