"""edge-toolchain: from a PyTorch or ONNX model to a small, fast, verified int8 model for each target.

    import toolchain
    toolchain.export("model.onnx", targets=["raspberry-pi-5"], calibration="samples.npz", output="exported")

Every command has its function: ``export`` and ``quantize`` in :mod:`toolchain.api.export`, ``convert``, ``optimize``,
``bench``, ``compare`` and ``verify`` each in the room of that name (``verify`` in :mod:`toolchain.api.verify`).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# From 1.29 on, onnxruntime's own wheels report models and timings to their maker, with an uploading thread and a
# database in the user's cache, unless this is set before they are imported. Users' models are nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from toolchain.api.export import export as export
    from toolchain.conversion.inputs import parse_input as parse_input
    from toolchain.devices.catalogue import load_target as load_target
    from toolchain.formats.recipe import Recipe as Recipe
    from toolchain.formats.target import Target as Target

_LAZY = {
    "export": "api.export",
    "parse_input": "conversion.inputs",
    "Recipe": "formats.recipe",
    "Target": "formats.target",
    "load_target": "devices.catalogue",
}
"""Loaded when first asked for: a machine that only benchmarks has neither onnx nor torch."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
    return getattr(import_module(f"toolchain.{_LAZY[name]}"), name)
