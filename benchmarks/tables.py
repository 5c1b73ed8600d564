"""Aligned Markdown tables and the description of the host, for the pages that the benchmark scripts write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from toolchain.formats.results import Host

RESULTS = Path(__file__).parent / "results"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table that is aligned in plain text as well: the first column left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(("-" * (w + 2)) if i == 0 else ("-" * (w + 1) + ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def describe(host: Host) -> str:
    """Describe the machine in a sentence."""
    kinds = [f for f in host.features if f in ("avx2", "avx512", "avx-vnni", "avx512-vnni", "asimd", "dotprod", "i8mm")]
    return (
        f"Host: {host.cpu}, {host.cores} cores ({', '.join(kinds)}), {host.memory_mib / 1024:.0f} GiB, {host.os}, "
        f"Python {host.python}, onnxruntime {host.onnxruntime}."
    )


def slug(host: Host) -> str:
    """The processor's name for file names. VNNI is named because int8 is much slower without it."""
    name = re.sub(r"[^a-z0-9]+", "-", host.cpu.lower()).strip("-")
    return f"{name}-vnni" if any("vnni" in feature for feature in host.features) else name


def mib(size: float) -> str:
    """Bytes as whole MiB."""
    return f"{size / 2**20:.0f}"
