"""The terminal: results on stdout, everything else on stderr, progress only where somebody watches."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from toolchain.core import progress

MINIMUM_WIDTH = 100
"""Tables are made for this many columns; a narrower pipe would only cut words."""


def show(content: RenderableType) -> None:
    """Print a result: text as it stands, anything else as rich draws it."""
    if isinstance(content, str):
        sys.stdout.write(content if content.endswith("\n") else content + "\n")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, MINIMUM_WIDTH))
    console.print(content)


def show_json(data: object) -> None:
    """Print a result for machines."""
    show(json.dumps(data, indent=2))


def say(line: str) -> None:
    """Tell the user something that is not the result."""
    sys.stderr.write(line + "\n")


@contextmanager
def _stdout_aside() -> Iterator[None]:
    """Python's stdout and the process's own both lead to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def working() -> Iterator[progress.Progress]:
    """Yields ``report(what, done, total)``, a progress line on stderr; silent where stderr is not a terminal.

    What users' modules, and native libraries, print meanwhile goes to stderr too: stdout holds the result alone.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(file=sys.stderr)  # this very stream: steps may lead sys.stderr elsewhere for a while
    bar = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
    with _stdout_aside(), bar:
        task = bar.add_task("starting", total=None)

        def report(what: str, done: int = 0, total: int = 0) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield report
