"""Registration of commands. Every command has examples in its help, and the options ``-v``, ``-q`` and ``-h``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import typer

from toolchain.cli import options
from toolchain.cli.terminal import set_verbosity

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}

Function = TypeVar("Function", bound=Callable[..., None])


def new_app(**settings: Any) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT_SETTINGS,
        **settings,
    )


app = new_app(name="toolchain", add_completion=True)
"""The group ``toolchain``: ten commands, each with a function of the same name in :mod:`toolchain`, and two groups."""


def command(group: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """Register a function as a command with ``-v``, ``-q`` and ``-h``.

    Args:
        group: the group that the command joins.
        examples: command lines for the end of the help, without ``toolchain``.
        name: name of the command; None: the function's name.
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
        del run.__wrapped__  # otherwise typer reads the annotations of `function`, which lack -v and -q
        run.__signature__ = inspect.Signature([*given, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*given, *common)}
        group.command(name, epilog=epilog, context_settings=CONTEXT_SETTINGS)(run)
        return function

    return register
