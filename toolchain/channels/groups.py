"""Groups of channels that can only be cut together: their parameters, and why some cannot be cut.

A group is one leaf of the index spaces (``index_spaces.py``) with every axis of a parameter that contains it. Its name
is that of the first operator that makes it, e.g. the Conv whose output channels they are.
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

NOT_SUMMED = "no operator sums over it, so cutting it changes the outputs"
NOT_CHANNELS = {KERNEL_AXIS, GATES}
"""Reasons of leaves that are not channels; they form no groups."""


@dataclass(frozen=True)
class Member:
    """An axis of a parameter that contains a group.

    Attributes:
        node: label of the operator that reads the parameter.
        op: type of the operator.
        parameter: name of the parameter.
        axis: counted from the front.
        makes: True if the group is in the operator's output, False if the operator sums over it.
    """

    node: str
    op: str
    parameter: str
    axis: int
    makes: bool


@dataclass(frozen=True)
class Group:
    """Channels that can only be cut together.

    Attributes:
        name: that of the first operator that makes the channels.
        size: number of channels.
        members: axes of parameters that contain the group.
        pins: reasons why it cannot be cut; empty if it can.
        macs: multiply-accumulates of the operators whose weights contain it; where it is a part of an axis, its share.
        leaf: its leaf in the layout.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    pins: tuple[str, ...]
    macs: int
    leaf: Space

    @property
    def free(self) -> bool:
        """True if it may be cut."""
        return not self.pins


def parameters(model: ir.Model) -> list[tuple[ir.Node, int, ir.Value]]:
    """List (node, index of the input, value) for every float constant that is not a scalar, in graph order."""
    return [
        (node, index, value)
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None
        and not isinstance(table.rule(node).channels, SpatialOnly)  # the scales of a Resize
        and query.is_float(value)
        and query.constant(value) is not None
        and max(query.sizes(value) or (0,)) > 1
    ]


def groups(model: ir.Model, layout: Layout) -> tuple[Group, ...]:
    """List all groups in the order of their first parameters; axes of kernels and gates form none."""
    members: dict[Space, list[Member]] = {}
    macs: dict[Space, dict[str, float]] = {}
    summed = _summed_leaves(layout)
    for node, _, value in parameters(model):
        made = {leaf for output in node.outputs for axis in layout.axes.get(output, ()) for leaf in leaves(axis)}
        cost = table.macs(node) or 0
        for axis, space in enumerate(layout.axes.get(value, ())):
            parts = list(leaves(space))
            for leaf in dict.fromkeys(parts):
                if not leaf.size or leaf.size == 1 or NOT_CHANNELS & set(leaf.pins):
                    continue
                member = Member(query.label(node), query.op(node), str(value.name), axis, leaf in made)
                members.setdefault(leaf, []).append(member)
                share = _share(space, leaf)
                known = macs.setdefault(leaf, {})
                known[query.label(node)] = max(known.get(query.label(node), 0.0), cost * share)
    names: dict[str, int] = {}
    result = []
    for leaf, where in members.items():
        first = next((m for m in where if m.makes), where[0])
        number = names[first.node] = names.get(first.node, 0) + 1
        name = first.node if number == 1 else f"{first.node}:{number}"
        pins = leaf.pins or (() if leaf in summed else (NOT_SUMMED,))
        result.append(Group(name, leaf.size or 0, tuple(where), pins, int(sum(macs[leaf].values())), leaf))
    return tuple(result)


def _summed_leaves(layout: Layout) -> set[Space]:
    """Leaves over which some operator sums."""
    return {
        leaf
        for node, where in layout.summed.items()
        for index, axis in where
        for leaf in leaves(layout.axes[node.inputs[index]][axis])  # type: ignore[index]
    }


def _share(space: Space, leaf: Space) -> float:
    """Share of the positions of an axis that depend on a leaf."""
    return float(np.mean(leaf_positions(space, leaf) >= 0))


def by_name(all_groups: tuple[Group, ...]) -> Mapping[str, Group]:
    """Groups by name."""
    return {group.name: group for group in all_groups}
