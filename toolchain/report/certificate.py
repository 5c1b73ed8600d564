"""The exactness certificate of a quantized model in a few lines: each kernel with its proof, then what may differ.

An export carries it in its manifest. A file alone is certified from what it holds: the scales and zero points of its
conversions, its integer weights and biases. Whoever wrote the file, the proof is the same.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolchain.formats.manifest import Exactness


def render(found: Exactness) -> RenderableType:
    """For reading, 100 columns wide."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for proof in found.proofs:
        used = "" if proof.used is None else f" (at most {proof.used:.2%} of what that allows)"
        table.add_row(Text(f"{len(proof.nodes)} × {proof.kernel}"), Text(proof.proof + used))
    lines: list[RenderableType] = [Text(_verdict(found)), Padding(table, (0, 0, 0, 2))]
    if found.doubts:
        lines += [Text("may differ:"), Padding(_doubts(found), (0, 0, 0, 2))]
    return Group(*lines)


def _verdict(found: Exactness) -> str:
    spelt = f"activations as {found.activations}"
    if any(doubt.kernel for doubt in found.doubts) or not found.overflow_free:
        return f"exactness: not every int8 operator is proven to give the same integers everywhere ({spelt})"
    if found.exceptions:
        return f"exactness: int8 is exact on every processor, float operators may differ in the last place ({spelt})"
    return f"exactness: exact on every processor, bit for bit ({spelt})"


def _doubts(found: Exactness) -> RenderableType:
    """Nodes of one operator together, with the reason of the first."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    first = {(doubt.op, doubt.kernel): doubt for doubt in reversed(found.doubts)}
    for (op, kernel), doubt in reversed(first.items()):
        nodes = sum(len(other.nodes) for other in found.doubts if (other.op, other.kernel) == (op, kernel))
        table.add_row(Text(f"{nodes} × {kernel or op}"), Text(f"{doubt.reason} (e.g. {doubt.nodes[0]})"))
    return table
