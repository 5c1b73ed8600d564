"""`inspect`: what a model is made of."""

from __future__ import annotations

from pathlib import Path

from toolchain.devices.catalogue import load_target
from toolchain.formats.target import Target
from toolchain.inspection.groups import Grouping, inspect_groups
from toolchain.inspection.model import Inspection
from toolchain.inspection.model import inspect as inspect_model


def inspect(model: str | Path, *, target: str | Target | None = None, groups: bool = False) -> Inspection | Grouping:
    """Look into a model file: operators, cost, parameters, and which nodes stay float and why.

    Args:
        model: an ``.onnx`` or ``.pt2`` file, or a folder that export wrote, whose certificate is then included.
        target: compare with the budgets of this profile: its name, its path, or the profile.
        groups: look at the channels that can only be removed together instead.

    Returns:
        An `Inspection`; a `Grouping` with `groups`.

    Raises:
        InputError and its subclasses: the file cannot be read, or uses what the toolchain does not know.
        GateError: the file has an old opset and computes something else after its upgrade.
    """
    if groups:
        return inspect_groups(Path(model))
    return inspect_model(Path(model), load_target(target) if isinstance(target, str) else target)
