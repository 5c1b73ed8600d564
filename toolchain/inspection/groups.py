"""The channel groups of a model: which channels are coupled, and which groups pruning may cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.channels.cut import separate
from toolchain.channels.groups import Group, groups
from toolchain.channels.layout import layout
from toolchain.conversion.source import convert
from toolchain.ops.cost import total_macs
from toolchain.optimization.passes import optimize


@dataclass(frozen=True)
class Grouping:
    """The channel groups of a model.

    Attributes:
        groups: all groups.
        macs: multiply-accumulates of the model.
    """

    groups: tuple[Group, ...]
    macs: int


def inspect_groups(path: str | Path) -> Grouping:
    """Find the channel groups of a float model.

    Args:
        path: an ``.onnx`` or ``.pt2`` file.

    Raises:
        ModelError: the model cannot be read, see :func:`toolchain.conversion.source.convert`.
    """
    model = separate(optimize(convert(path).model, verify=False).model)
    return Grouping(groups(model, layout(model)), total_macs(model))


def record(grouping: Grouping) -> dict[str, Any]:
    """Return a grouping as JSON data: full numbers, every member."""
    return {
        "macs": grouping.macs,
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "macs": g.macs,
                "free": g.free,
                "pins": list(g.pins),
                "members": [
                    {"node": m.node, "op": m.op, "parameter": m.parameter, "axis": m.axis, "makes": m.makes}
                    for m in g.members
                ],
            }
            for g in grouping.groups
        ],
    }
