"""The terminal: results on stdout, everything else on stderr.

Progress is a bar if stderr is a terminal, otherwise one line for each stage. With ``-q`` only results and errors are
printed; ``-v`` adds the decisions that the packages log (INFO), ``-vv`` everything they log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from toolchain.core import progress

PIPE_WIDTH = 100
"""Least width, in characters, of tables that go to a pipe or a file, which has no width of its own."""

MIN_STAGE_SHARE = 0.03
"""The last line of ``-v`` names the stages that took at least this share of the time."""

log = logging.getLogger("toolchain")


@dataclass
class _State:
    """Verbosity of this process: -1 result and errors, 0 also stages, 1 also decisions, 2 everything."""

    verbosity: int = 0


_state = _State()


class _ToStderr(logging.Handler):
    """Writes log records to the present ``sys.stderr``, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.name.removeprefix('toolchain.')}: {record.getMessage()}\n")


def set_verbosity(verbosity: int) -> None:
    """Set how much is printed for the rest of the process; see `_State`."""
    _state.verbosity = verbosity
    log.handlers[:] = [_ToStderr()] if verbosity > 0 else []
    log.setLevel({1: logging.INFO}.get(verbosity, logging.DEBUG) if verbosity > 0 else logging.NOTSET)
    log.propagate = verbosity <= 0


def show(content: RenderableType) -> None:
    """Print a result: text as it is, anything else as rich draws it."""
    if isinstance(content, str):
        sys.stdout.write(content if content.endswith("\n") else content + "\n")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, PIPE_WIDTH))
    console.print(content)


def show_json(data: object) -> None:
    """Print a result as JSON."""
    show(json.dumps(data, indent=2))


def say(line: str) -> None:
    """Print a remark that is not the result; ``-q`` leaves it out."""
    if _state.verbosity >= 0:
        sys.stderr.write(line + "\n")


def explain_error(content: RenderableType) -> None:
    """Print what belongs to an error."""
    Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH).print(content)


def complain(line: str) -> None:
    """Print an error."""
    sys.stderr.write(line + "\n")


@contextmanager
def _stdout_aside() -> Iterator[None]:
    """Redirect stdout to stderr, for Python and for native libraries (file descriptor 1)."""
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
    """Yield a progress function. Until the block ends, output of users' modules and native libraries goes to stderr."""
    with _stdout_aside():
        if _state.verbosity < 0:
            yield progress.silent
            return
        with _bar() if sys.stderr.isatty() else nullcontext(_lines()) as report:
            clock = progress.StageClock(report)
            yield clock
        if _state.verbosity > 0:
            say(_total(clock.seconds()))


def _total(stages: Mapping[str, float]) -> str:
    """Return one line with the sum of all stages, and the stages that took most of it."""
    total = sum(stages.values())
    longest = sorted(stages.items(), key=lambda item: -item[1])
    parts = [f"{stage} {seconds:.1f} s" for stage, seconds in longest if seconds >= MIN_STAGE_SHARE * total]
    return f"{total:7.1f} s  in all: {', '.join(parts)}"


def _lines() -> progress.Progress:
    """Return a progress function that prints one line for each stage, with the seconds since the start."""
    started, printed = time.monotonic(), set[str]()

    def report(what: str, done: int = 0, total: int = 0) -> None:
        if what not in printed:
            printed.add(what)
            say(f"{time.monotonic() - started:7.1f} s  {what}")

    return report


@contextmanager
def _bar() -> Iterator[progress.Progress]:
    """Yield a progress function that draws the current stage, with a bar where its steps are counted."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    console = Console(file=sys.stderr)  # keeps the present stream, because a stage may replace sys.stderr for a while
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        shown: tuple[str, TaskID] = "", bar.add_task("starting", total=None, count="")

        def report(what: str, done: int = 0, total: int = 0) -> None:
            nonlocal shown
            name, task = shown
            if name != what:  # a new task, because an update with total=None would keep the old total
                bar.remove_task(task)
                task = bar.add_task(what, total=total or None, count="")
                shown = what, task
            count = f"{done}/{total}" if total else ""
            bar.update(task, completed=done, total=total or None, count=count)

        yield report
