"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toolchain.formats.manifest import NodePrecision


@dataclass(frozen=True)
class FloatGroup:
    """Nodes of one operator that stay float for one reason. example: the first of them."""

    op: str
    reason: str
    nodes: int
    example: str


def float_groups(choices: Iterable[NodePrecision]) -> tuple[FloatGroup, ...]:
    """Float nodes by operator and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        if choice.precision == "float":
            groups.setdefault((choice.op, choice.reason or "no reason is known"), []).append(choice.node)
    found = [FloatGroup(op, reason, len(nodes), nodes[0]) for (op, reason), nodes in groups.items()]
    return tuple(sorted(found, key=lambda group: -group.nodes))
