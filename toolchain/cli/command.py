"""Groups of commands, and what every command has: examples in its help, ``-v``, ``-q`` and ``-h``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import typer

from toolchain.cli import options
from toolchain.cli.terminal import set_verbosity

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

Function = TypeVar("Function", bound=Callable[..., None])


def new_app(**settings: Any) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP_NAMES,
        **settings,
    )


app = new_app(name="toolchain", add_completion=True)
"""The outermost group: the ten commands, which have a function of the same name in :mod:`toolchain`."""


def command(group: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """Register a function as a command with ``-v``, ``-q`` and ``-h``.

    Args:
        group: what it becomes a member of.
        examples: command lines that the help ends with, without ``toolchain``.
        name: of the command; None is the function's.
    """
    lines = [f"  toolchain {example}" for example in examples]
    epilog = "\n".join(["\b", "Examples:", *lines])  # \\b keeps the lines as they are

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def run(*, verbose: int, quiet: bool, **arguments: Any) -> None:
            set_verbosity(-1 if quiet else verbose)
            function(**arguments)

        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        given = [parameter.replace(annotation=hints[key]) for key, parameter in signature.parameters.items()]
        common = [
            inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=options.Verbose),
            inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=options.Quiet),
        ]
        del run.__wrapped__  # typer would read the annotations of the function inside
        run.__signature__ = inspect.Signature([*given, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*given, *common)}
        group.command(name, epilog=epilog, context_settings=HELP_NAMES)(run)
        return function

    return register
