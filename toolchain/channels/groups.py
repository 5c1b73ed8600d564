"""Groups: what can only be cut together, who is in it, and why it is not cut where it is not.

A group is one leaf of the index spaces (``axes.py``) with every parameter axis of which it is a part. Its name is that
of the first operator that makes it: the Conv whose output channels they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.channels.compute_ops import GATES, KERNEL_AXIS
from toolchain.channels.index_spaces import Space, leaf_positions, leaves
from toolchain.channels.layout import Layout
from toolchain.graph import query
from toolchain.ops import table
from toolchain.ops.cells import SpatialOnly

UNUSED = "nothing sums over it, so cutting it changes the answer"
STRUCTURE = {KERNEL_AXIS, GATES}
"""Axes that are no channels: nobody asks why they are not cut."""


@dataclass(frozen=True)
class Member:
    """A parameter's axis that a group is a part of. node: who reads the parameter. makes: the axis is one of the node's
    output, else it sums over it.
    """

    node: str
    op: str
    parameter: str
    axis: int
    makes: bool


@dataclass(frozen=True)
class Group:
    """size: places. pins: why it is not cut; empty where it may be. macs: multiply-accumulates of the operators whose
    weights it is in, with each one's share where it is only a part of an axis. leaf: in the layout it was found in.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    pins: tuple[str, ...]
    macs: int
    leaf: Space

    @property
    def free(self) -> bool:
        """Whether it may be cut."""
        return not self.pins


def parameters(model: ir.Model) -> list[tuple[ir.Node, int, ir.Value]]:
    """(node, input's number, value) for every float constant that is not a scalar, in the graph's order."""
    return [
        (node, index, value)
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None
        and not isinstance(table.rule(node).channels, SpatialOnly)  # scales of a Resize
        and query.is_float(value)
        and query.constant(value) is not None
        and max(query.sizes(value) or (0,)) > 1
    ]


def groups(model: ir.Model, layout: Layout) -> tuple[Group, ...]:
    """All groups that are in a parameter, in the order in which they are first met; kernels' extents left out."""
    members: dict[Space, list[Member]] = {}
    macs: dict[Space, dict[str, float]] = {}
    summed = _summed_leaves(layout)
    for node, _, value in parameters(model):
        made = {leaf for output in node.outputs for axis in layout.axes.get(output, ()) for leaf in leaves(axis)}
        cost = table.macs(node) or 0
        for axis, space in enumerate(layout.axes.get(value, ())):
            parts = list(leaves(space))
            for leaf in dict.fromkeys(parts):
                if not leaf.size or leaf.size == 1 or STRUCTURE & set(leaf.pins):
                    continue
                member = Member(query.label(node), query.op(node), str(value.name), axis, leaf in made)
                members.setdefault(leaf, []).append(member)
                share = _share(space, leaf)
                known = macs.setdefault(leaf, {})
                known[query.label(node)] = max(known.get(query.label(node), 0.0), cost * share)
    names: dict[str, int] = {}
    found = []
    for leaf, where in members.items():
        first = next((m for m in where if m.makes), where[0])
        number = names[first.node] = names.get(first.node, 0) + 1
        name = first.node if number == 1 else f"{first.node}:{number}"
        pins = leaf.pins or (() if leaf in summed else (UNUSED,))
        found.append(Group(name, leaf.size or 0, tuple(where), pins, int(sum(macs[leaf].values())), leaf))
    return tuple(found)


def _summed_leaves(layout: Layout) -> set[Space]:
    """Leaves that some operator sums over."""
    return {
        leaf
        for node, where in layout.summed.items()
        for index, axis in where
        for leaf in leaves(layout.axes[node.inputs[index]][axis])  # type: ignore[index]
    }


def _share(space: Space, leaf: Space) -> float:
    """Which part of an axis stands or falls with a leaf."""
    return float(np.mean(leaf_positions(space, leaf) >= 0))


def by_name(found: tuple[Group, ...]) -> Mapping[str, Group]:
    """Groups by their names."""
    return {group.name: group for group in found}
