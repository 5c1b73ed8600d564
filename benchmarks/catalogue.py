"""The models of `benchmarks.models` by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from benchmarks import models
from benchmarks.models import store
from toolchain.data import Feed
from toolchain.errors import InputError, did_you_mean


class Model(Protocol):
    """What a loader module offers."""

    NAME: str
    KIND: str
    METRIC: str
    REQUIRES: tuple[str, ...]

    def onnx_path(self) -> Path: ...
    def calibration(self, n: int) -> Iterator[Feed]: ...
    def evaluate(self, run: store.Run) -> float: ...


def names() -> list[str]:
    """Of all models."""
    found = (info.name for info in pkgutil.iter_modules(models.__path__))
    return [name for name in found if hasattr(importlib.import_module(f"benchmarks.models.{name}"), "METRIC")]


def find(name: str) -> Model:
    """The model of that name.

    Raises:
        InputError: there is none.
    """
    if name not in names():
        raise InputError(f"no model {name!r}", hint=did_you_mean(name, names()))
    return cast(Model, importlib.import_module(f"benchmarks.models.{name}"))
