"""Text of what a renderer returns, as a terminal of a given width shows it."""

from __future__ import annotations

import io

from rich.cells import cell_len
from rich.console import Console, RenderableType


def rendered(shown: RenderableType, width: int = 100) -> str:
    """Return the text without colours; no line is longer than the terminal is wide."""
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(shown)
    text = file.getvalue()
    assert max(map(cell_len, text.splitlines()), default=0) <= width
    return text


def rendered_lines(shown: RenderableType) -> list[str]:
    """Return the lines, without the spaces at their ends."""
    return [line.rstrip() for line in rendered(shown).splitlines()]


def one_line(shown: RenderableType) -> str:
    """Return the text with every run of spaces and line breaks as one space, to look for sentences in it."""
    return " ".join(rendered(shown).split())
