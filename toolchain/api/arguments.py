"""Types of the arguments of the public functions, checked before anything else.

The command line gives texts and numbers only; from Python anything may come. Each argument name has one meaning in all
ten functions, and so one reader here: it returns the value as the function takes it, or raises one sentence.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from toolchain.core.errors import InputError
from toolchain.data.calibration import check_kind
from toolchain.formats.recipe import Recipe
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.training_recipe import TrainingRecipe

P = ParamSpec("P")
R = TypeVar("R")
Reader = Callable[[str, object], object]
"""Takes the name of an argument and its value; returns the value to use, or raises InputError."""


def checked(**readers: Reader) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that reads every argument of a public function. None is passed on where it is the default.

    Args:
        readers: readers of arguments that `READERS` does not have, or that differ in this function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        chosen = {name: readers.get(name) or READERS[name] for name in parameters}
        order = [name for name, parameter in parameters.items() if parameter.kind != parameter.KEYWORD_ONLY]

        def read(name: str, value: object) -> object:
            if name not in chosen or (value is None and parameters[name].default is None):
                return value
            return chosen[name](name, value)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            positional = [read(name, value) for name, value in zip(order, args, strict=False)]
            named = {name: read(name, value) for name, value in kwargs.items()}
            # Arguments that the function does not have are left to Python, which names them.
            return function(*positional, *args[len(positional) :], **named)  # type: ignore[arg-type]

        return run

    return decorate


def read_path(name: str, value: object) -> object:
    """Read a path: a text, or an object that has one."""
    if isinstance(value, os.PathLike) and not isinstance(value, Path):
        value = os.fspath(value)
    if isinstance(value, str) and (not value or "\0" in value):
        raise InputError(f"is {value!r}, which names no file", where=name, hint="give a path")
    return value if isinstance(value, str | Path) else _refuse(name, value, "give a path")


def read_text(name: str, value: object) -> object:
    """Read a text."""
    return value if isinstance(value, str) and "\0" not in value else _refuse(name, value, "give a text")


def read_number(name: str, value: object) -> object:
    """Read a number; numpy's become Python's, which results files can hold."""
    return _number(name, value, "give a number")


def _number(name: str, value: object, hint: str) -> object:
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number above 1e308
            pass
    return _refuse(name, value, hint)


def read_flag(name: str, value: object) -> object:
    """Read a yes or no. Other types are refused, since the text "no" would count as yes."""
    return bool(value) if isinstance(value, bool | np.bool_) else _refuse(name, value, "give True or False")


def read_function(name: str, value: object) -> object:
    """Read a function."""
    return value if callable(value) else _refuse(name, value, "give a function, or leave it out")


def read_metric(name: str, value: object) -> object:
    """Read a function or its name."""
    hint = "give a function, or the text package.module:function"
    return value if callable(value) or isinstance(value, str) else _refuse(name, value, hint)


def read_source(name: str, value: object) -> object:
    """Read a model: a path, the name of a function, or a torch module."""
    if isinstance(value, str | os.PathLike):
        return read_path(name, value)
    torch = sys.modules.get("torch")  # without it nothing can be a torch module
    if torch is not None and isinstance(value, torch.nn.Module):
        return value
    if isinstance(value, type):
        raise InputError(f"is the class {value.__name__}", where=name, hint="give an instance of it")
    return _refuse(name, value, "give a path, package.module:function, or a torch module")


def read_data(name: str, value: object) -> object:
    """Read samples: a path, or an object of a kind that gives samples."""
    if isinstance(value, str | os.PathLike):
        return read_path(name, value)
    check_kind(value)
    return value


def read_target(name: str, value: object) -> object:
    """Read a target: the name or the path of a profile, or a profile."""
    if isinstance(value, Target):
        return value
    named = isinstance(value, str | os.PathLike)
    return read_path(name, value) if named else _refuse(name, value, "give the name or the path of a profile")


def read_recipe_of(kind: type[Recipe] | type[TrainingRecipe]) -> Reader:
    """Return a reader of recipes of one kind, and of their paths."""

    def read(name: str, value: object) -> object:
        if isinstance(value, kind):
            return value
        hint = f"give the path of a recipe, or a toolchain.{kind.__name__}"
        return read_path(name, value) if isinstance(value, str | os.PathLike) else _refuse(name, value, hint)

    return read


def read_list(read: Reader, kind: str, *, least: int = 0, single: tuple[type, ...] = ()) -> Reader:
    """Return a reader of lists.

    Args:
        read: reads each item.
        kind: of the items, in messages.
        least: the smallest number of items.
        single: types of an item that may stand alone, instead of a list with it.
    """

    def read_items(name: str, value: object) -> object:
        if isinstance(value, single):
            value = [value]
        if isinstance(value, str):
            raise InputError(f"is the text {value!r}", where=name, hint=f"give a list of {kind}")
        if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes | type):
            return _refuse(name, value, f"give a list of {kind}")
        items = [read(f"{name}[{i}]", item) for i, item in enumerate(value)]
        if len(items) < least:
            raise InputError("is empty", where=name, hint=f"give at least {least} of the {kind}")
        return items

    return read_items


def read_input(name: str, value: object) -> object:
    """Read the description of one input of a torch module."""
    hint = "give a text such as image:batch,3,224,224"
    return value if isinstance(value, str | TensorSpec) else _refuse(name, value, hint)


def read_sizes(name: str, value: object) -> object:
    """Read sizes of axes: a dictionary, or texts."""
    if not isinstance(value, Mapping):
        return read_list(read_text, "texts such as batch=1, or a dictionary")(name, value)
    return {read_text(f"a name in {name}", key): _read_size(f"{name}[{key!r}]", size) for key, size in value.items()}


def read_threads(name: str, value: object) -> object:
    """Read numbers of threads: a text, a whole number, or several."""
    if isinstance(value, str):
        return value
    return read_list(_read_size, "whole numbers", single=(Integral,))(name, value)


def read_max_drop(name: str, value: object) -> object:
    """Read a largest loss of score: a number, or "off"."""
    return value if value == "off" else _number(name, value, "give a number, or 'off'")


def read_share(name: str, value: object) -> object:
    """Read a share: a number, or a text."""
    return value if isinstance(value, str) else read_number(name, value)


def _read_size(name: str, value: object) -> object:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if whole else _refuse(name, value, "give a whole number")  # type: ignore[call-overload]


def _refuse(name: str, value: object, hint: str) -> object:
    simple = value is None or isinstance(value, str | bytes | bool | Real)
    what = f"is {value!r:.80}" if simple else f"is of type {type(value).__name__}"
    raise InputError(what, where=name, hint=hint)


_paths = read_list(read_path, "paths", single=(str, os.PathLike))

READERS: Mapping[str, Reader] = {
    **dict.fromkeys(("artifact", "library", "ndk", "output", "preprocess", "suite"), read_path),
    **dict.fromkeys(("arena", "baseline", "cpus", "criterion", "format", "on", "python"), read_text),
    **dict.fromkeys(("keep", "latency_ms", "minutes", "prune", "speedup", "sustained"), read_number),
    **dict.fromkeys(("explain", "for_int8", "fp16_weights", "groups", "operators", "resume"), read_flag),
    **dict.fromkeys(("calibration", "data"), read_data),
    **dict.fromkeys(("model", "source"), read_source),
    **dict.fromkeys(("max_regression", "sparsity"), read_share),
    **dict.fromkeys(("models", "results"), _paths),
    "evaluate": read_metric,
    "freeze": read_sizes,
    "max_drop": read_max_drop,
    "inputs": read_list(read_input, "inputs"),
    "progress": read_function,
    "recipe": read_recipe_of(Recipe),
    "target": read_target,
    "targets": read_list(read_target, "targets", least=1),
    "threads": read_threads,
}
"""The reader of each argument."""
