"""`inspect`: the parts of a model file, its cost, and what stays float."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

from toolchain.api.arguments import checked, read_path
from toolchain.devices.catalogue import load_target
from toolchain.formats.target import Target
from toolchain.inspection.groups import Grouping, inspect_groups
from toolchain.inspection.model import Inspection
from toolchain.inspection.model import inspect as inspect_model


@overload
def inspect(
    model: str | Path, *, target: str | Path | Target | None = None, groups: Literal[False] = False
) -> Inspection: ...


@overload
def inspect(model: str | Path, *, target: str | Path | Target | None = None, groups: Literal[True]) -> Grouping: ...


@overload
def inspect(model: str | Path, *, target: str | Path | Target | None = None, groups: bool) -> Inspection | Grouping: ...


@checked(model=read_path)
def inspect(
    model: str | Path, *, target: str | Path | Target | None = None, groups: bool = False
) -> Inspection | Grouping:
    """Inspect a model file: its operators, cost and parameters, and the nodes that stay float, with the reason.

    Args:
        model: an ``.onnx`` or ``.pt2`` file, or a folder that export wrote; its certificate is then included.
        target: compare with the budgets of this profile: its name, its path, or the profile.
        groups: list the channels that can only be removed together instead.

    Returns:
        An `Inspection`; with `groups`, a `Grouping`.

    Raises:
        InputError and its subclasses: the file cannot be read, or uses something that is not supported.
        GateError: the file has an old opset and computes something else after its upgrade.
    """
    if groups:
        return inspect_groups(Path(model))
    return inspect_model(Path(model), target if target is None or isinstance(target, Target) else load_target(target))
