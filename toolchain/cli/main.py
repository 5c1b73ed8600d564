"""The command line's entry point: the commands, and errors turned into one sentence and an exit code.

Every command takes ``--json``, which prints the result on stdout as JSON; everything else goes to stderr. The exit code
is 0 on success, 1 if a gate fails, 2 for bad input (with one sentence), and 130 when interrupted. No command leaves an
incomplete file. Heavy imports happen inside the commands, so that ``--help``, ``bench`` and ``targets`` need neither
torch nor onnx.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn, cast

import typer

from toolchain.cli import emulator, models, targets, timing  # noqa: F401 - they register commands
from toolchain.cli.command import app
from toolchain.cli.terminal import complain, set_verbosity, show
from toolchain.core.errors import ToolchainError

INTERRUPTED_EXIT_CODE = 130
"""128 + the number of SIGINT, as in shells."""

app.add_typer(targets.app, name="targets")
app.add_typer(emulator.app, name="emulator")


def _show_version(given: bool) -> None:
    if given:
        show(f"toolchain {version('edge-toolchain')}")
        raise typer.Exit


@app.callback()
def toolchain(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From a PyTorch or ONNX model to a small, fast, verified int8 model for each target device."""


class _Interrupted(BaseException):
    """Ctrl-C, a closed terminal, or a signal to end the process.

    Not KeyboardInterrupt, which typer turns into an exit code of its own.
    """


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise _Interrupted


# click's UsageError. Some versions of typer contain a copy of click and others import it, so it has no fixed module.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])


def main() -> None:
    """Run the command line; an error becomes one sentence and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored for nohup and for shells' background jobs
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that cannot print × and ± still shows the numbers
        sys.stdout.reconfigure(errors="replace")
    # Other libraries' log records and warnings are not shown: we report those that matter to users in our own words.
    logging.getLogger().addHandler(logging.NullHandler())
    set_verbosity(0)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        _fail_usage(error)
    except ToolchainError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}; free some space or check permissions", 2)
    except (_Interrupted, KeyboardInterrupt):
        _fail("interrupted; no result was written", INTERRUPTED_EXIT_CODE)


def _fail_usage(error: typer.BadParameter) -> NoReturn:
    message = error.format_message().rstrip(". ")
    if "\n" in message:  # the help, which a command without any arguments shows
        complain(message)
        sys.exit(error.exit_code)
    message = f"{message[0].lower()}{message[1:]}".replace(". Did you mean", "; did you mean")
    if not message.endswith("?"):
        message += f"; see `{error.ctx.command_path if error.ctx else 'toolchain'} --help`"
    _fail(message, error.exit_code)


def _fail(sentence: str, code: int) -> NoReturn:
    complain(f"error: {sentence}")
    sys.exit(code)
