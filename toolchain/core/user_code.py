"""Running code that the user names as ``package.module:callable``.

This is the only module that catches every exception, because a user's code may raise any. The exception is reported
with its file and line, and stays the cause of our error.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.core.errors import InputError, ToolchainError, did_you_mean

_PACKAGE = Path(__file__).parents[1]
_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_callable_spec(text: str) -> bool:
    """Return whether `text` has the form ``package.module:callable``."""
    return _SPEC.fullmatch(text) is not None


@contextmanager
def user_code(
    where: object, error: type[InputError] = InputError, hint: str = "correct the code there"
) -> Iterator[None]:
    """Turn every exception in the block into `error`, with its file and line; our own errors pass unchanged."""
    try:
        yield
    except ToolchainError:
        raise
    except (Exception, SystemExit) as fault:  # without SystemExit, user code could end the program without a message
        raise error(f"raised {_message(fault)}", where=where, hint=hint) from fault


def _message(fault: BaseException) -> str:
    """Return the exception's type, the first line of its text, and its place."""
    lines = str(fault).strip().splitlines()
    if any(line.startswith("Original Traceback") for line in lines):  # torch adds the traceback of a loader's worker
        return lines[-1][:300]
    text = f"{type(fault).__name__}: {lines[0][:300]}" if lines else type(fault).__name__
    return f"{text}{_place(fault)}"


def _place(fault: BaseException) -> str:
    """Return the innermost line of code outside the toolchain; a SyntaxError's message already names its line."""
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if not Path(f.filename).is_relative_to(_PACKAGE)]
    if isinstance(fault, SyntaxError) or not frames:
        return ""
    return f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})"


def load_callable(spec: str, *, error: type[InputError] = InputError) -> Callable[..., object]:
    """Import ``package.module:callable``, with the current folder first on ``sys.path``, as ``python -m`` does.

    Raises:
        error: `spec` is not of that form, does not exist, cannot be imported, or is not callable.
    """
    if not is_callable_spec(spec) or ".py:" in spec:
        raise error("is not of the form package.module:callable", where=spec, hint=_form_hint(spec))
    module_name, _, path = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    # Python caches listings of folders, so it might not see a module that was just written.
    importlib.invalidate_caches()
    with user_code(spec, error, hint=f"make `python -c 'import {module_name}'` work in {here}"):
        try:
            named: object = importlib.import_module(module_name)
        except ModuleNotFoundError as fault:
            if fault.name is None or not f"{module_name}.".startswith(f"{fault.name}."):
                raise
            raise error(
                f"there is no module {fault.name!r} in {here} or among the installed packages",
                where=spec,
                hint="check the spelling, or change to the folder that holds it",
            ) from None
    for part in path.split("."):
        if not hasattr(named, part):
            names = [name for name in vars(named) if not name.startswith("_")]
            raise error(f"{module_name} has no {part!r}", where=spec, hint=did_you_mean(part, names))
        named = getattr(named, part)
    if not callable(named):
        raise error(f"is of type {type(named).__name__} and cannot be called", where=spec, hint="name a function")
    return named


def _form_hint(spec: str) -> str:
    file, colon, name = spec.partition(".py:")
    if colon:
        return f"write {file.strip('./').replace('/', '.')}:{name}"
    return "write my_data:samples for the function samples in my_data.py, for example"
