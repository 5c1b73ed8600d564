"""Groups of nodes that stay float for the same reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolchain.formats.manifest import NodePrecision


@dataclass(frozen=True)
class FloatGroup:
    """Nodes with the same operator that stay float for the same reason.

    Attributes:
        op: type of the operator.
        reason: why they stay float.
        nodes: number of them.
        example: name of the first one.
    """

    op: str
    reason: str
    nodes: int
    example: str


def float_groups(choices: Iterable[NodePrecision]) -> tuple[FloatGroup, ...]:
    """Group the float nodes by operator and reason, the largest group first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        if choice.precision == "float":
            groups.setdefault((choice.op, choice.reason or "no reason is known"), []).append(choice.node)
    listed = (FloatGroup(op, reason, len(nodes), nodes[0]) for (op, reason), nodes in groups.items())
    return tuple(sorted(listed, key=lambda group: -group.nodes))
