"""edge-toolchain: from a PyTorch or ONNX model to a small, fast, verified int8 model for each target device.

    import toolchain
    toolchain.export("model.onnx", targets=["raspberry-pi-5"], calibration="samples.npz", output="exported")

Each command of the command line is a function here, with the same name, arguments and messages. The names in
``__all__`` are public; everything else is internal and may change with any release.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# From version 1.29, onnxruntime's wheels report models and timings to their maker, with an uploading thread and a
# database in the user's cache, unless this is set before they are imported. A value that the user has set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:  # type checkers and editors see the real functions, and report a misspelt name
    from toolchain.api.bench import bench as bench
    from toolchain.api.compare import compare as compare
    from toolchain.api.convert import convert as convert
    from toolchain.api.export import export as export
    from toolchain.api.inspect import inspect as inspect
    from toolchain.api.optimize import optimize as optimize
    from toolchain.api.prune import prune as prune
    from toolchain.api.quantize import quantize as quantize
    from toolchain.api.train import train as train
    from toolchain.api.verify import verify as verify
    from toolchain.conversion.inputs import parse_input as parse_input
    from toolchain.core.errors import ConfigError as ConfigError
    from toolchain.core.errors import DataError as DataError
    from toolchain.core.errors import DeviceError as DeviceError
    from toolchain.core.errors import GateError as GateError
    from toolchain.core.errors import InputError as InputError
    from toolchain.core.errors import ModelError as ModelError
    from toolchain.core.errors import ToolchainError as ToolchainError
    from toolchain.devices.catalogue import load_target as load_target
    from toolchain.formats.recipe import Recipe as Recipe
    from toolchain.formats.target import Target as Target
    from toolchain.formats.training_recipe import TrainingRecipe as TrainingRecipe
    from toolchain.pruning.loss import PruningLossError as PruningLossError

    __version__: str

_HOMES = {
    "api.{name}": (
        "bench", "compare", "convert", "export", "inspect", "optimize", "prune", "quantize", "train", "verify",
    ),
    "core.errors": (
        "ConfigError", "DataError", "DeviceError", "GateError", "InputError", "ModelError", "ToolchainError",
    ),
    "conversion.inputs": ("parse_input",),
    "devices.catalogue": ("load_target",),
    "formats.recipe": ("Recipe",),
    "formats.target": ("Target",),
    "formats.training_recipe": ("TrainingRecipe",),
    "pruning.loss": ("PruningLossError",),
}  # fmt: skip
"""Public names by their module. A module is imported when one of its names is first used, because a device that only
runs benchmarks has neither onnx nor torch."""

_MODULES = {name: home.format(name=name) for home, names in _HOMES.items() for name in names}

__all__ = [
    "ConfigError", "DataError", "DeviceError", "GateError", "InputError", "ModelError", "PruningLossError", "Recipe",
    "Target", "ToolchainError", "TrainingRecipe", "__version__", "bench", "compare", "convert", "export", "inspect",
    "load_target", "optimize", "parse_input", "prune", "quantize", "train", "verify",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value: object = version("edge-toolchain")
        elif name in _MODULES:
            value = getattr(import_module(f"toolchain.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return list(__all__)
