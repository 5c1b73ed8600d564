"""The exactness certificate of an exported model in a few lines: each kernel with its proof, then what may differ."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolchain.artifact import Exactness, Manifest
from toolchain.errors import ConfigError
from toolchain.files import sha256

MANIFEST = "manifest.json"


def certificate_of(path: Path) -> Exactness | None:
    """The certificate of an exported folder, or of a model file that lies in one as it was exported; else None."""
    folder = path if path.is_dir() else path.parent
    try:
        manifest = Manifest.load(folder / MANIFEST)
    except ConfigError:  # none, or a manifest of something else
        return None
    if path.is_dir():
        return manifest.exactness
    known = {entry.name: entry.sha256 for entry in manifest.files}
    return manifest.exactness if path.is_file() and known.get(path.name) == sha256(path) else None


def certified(exactness: Exactness) -> RenderableType:
    """For reading, 100 columns wide."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for proof in exactness.proofs:
        used = "" if proof.used is None else f" (at most {proof.used:.2%} of what that allows)"
        table.add_row(Text(f"{len(proof.nodes)} × {proof.kernel}"), Text(proof.proof + used))
    lines: list[RenderableType] = [Text(_verdict(exactness)), Padding(table, (0, 0, 0, 2))]
    if exactness.doubts:
        lines += [Text("may differ:"), Padding(_doubts(exactness), (0, 0, 0, 2))]
    return Group(*lines)


def _verdict(exactness: Exactness) -> str:
    spelt = f"activations as {exactness.activations}"
    if any(doubt.kernel for doubt in exactness.doubts) or not exactness.overflow_free:
        return f"exactness: not every int8 operator is proven to give the same integers everywhere ({spelt})"
    if exactness.exceptions:
        return f"exactness: int8 is exact on every processor, float operators may differ in the last place ({spelt})"
    return f"exactness: exact on every processor, bit for bit ({spelt})"


def _doubts(exactness: Exactness) -> RenderableType:
    """Nodes of one operator together, with the reason of the first."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    first = {(doubt.op, doubt.kernel): doubt for doubt in reversed(exactness.doubts)}
    for (op, kernel), doubt in reversed(first.items()):
        nodes = sum(len(other.nodes) for other in exactness.doubts if (other.op, other.kernel) == (op, kernel))
        table.add_row(Text(f"{nodes} × {kernel or op}"), Text(f"{doubt.reason} (e.g. {doubt.nodes[0]})"))
    return table
