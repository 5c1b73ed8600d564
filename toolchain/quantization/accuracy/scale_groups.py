"""Scale groups: tensors whose channels can be rescaled together without changing what the model computes.

A tensor may be divided channel by channel by s_c > 0 if the weights of the products that compute it are multiplied by
1/s_c, and the weights of the products that read it by s_c. Operators f between them with f(y / s) = f(y) / s (Relu,
pooling, the sum of two such tensors) join their tensors to a group. Concat and Split join channels: a channel of an
operand and the channel of the result that it becomes have one scale, so a group has as many scales as there are sets of
joined channels. Channels that any other operator reads or computes, or that enter or leave the graph, keep scale 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64, Index
from toolchain.core.union_find import representatives
from toolchain.graph import query
from toolchain.ops.weights import weight_axes
from toolchain.quantization.selection import clip_limits

MIN_CHANNEL_SHARE = 1 / 8
"""Smallest range that is assumed for a channel, as a share of its tensor's range."""
SCALABLE_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose weights can be multiplied by channel scales."""
HOMOGENEOUS_OPERATORS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Identity", "Add", "Mul"}
)
"""Operators with f(x / s) = f(x) / s for every channel. Add sums two tensors of the group; Mul multiplies by a tensor
outside it."""
SPATIAL_OPERATORS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
"""Operators that mix elements along every axis but the first two."""


@dataclass(frozen=True, eq=False)
class ScaleGroup:
    """Tensors whose channels share scales.

    Attributes:
        members: by tensor name in graph order, the number of the scale of each of its channels.
        axis: the axis of the tensors' channels.
        channels: number of scales.
        producers: names of the products whose weights are multiplied by 1/s.
        consumers: names of the products whose weights are multiplied by s.
        fixed: numbers of the scales that stay 1.
        ceilings: by the name of a tensor that a Clip limits, the magnitude at which it acts.
        min_share: smallest range that is assumed for a channel, as a share of the range of its tensor.
    """

    members: Mapping[str, Index]
    axis: int
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    fixed: Index = field(default_factory=lambda: np.empty(0, np.intp))
    ceilings: Mapping[str, float] = field(default_factory=dict)
    min_share: float = MIN_CHANNEL_SHARE

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors, in graph order."""
        return tuple(self.members)

    def ceiling(self) -> F64:
        """Return the lowest limit of a Clip for each scale, float64 [channels]; infinite where there is none."""
        result = np.full(self.channels, np.inf)
        for name, limit in self.ceilings.items():
            np.minimum.at(result, self.members[name], limit)
        return result

    def blocks(self) -> Index:
        """Number the sets of scales that occur in the same tensors, such as operands of a Concat: int [channels]."""
        present = np.zeros((self.channels, len(self.members)), np.bool_)
        for column, scales in enumerate(self.members.values()):
            present[scales, column] = True
        return np.unique(present, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass
class _Members:
    """The tensors of one possible group, and the operators around them."""

    values: list[ir.Value] = field(default_factory=list)
    producers: list[ir.Node] = field(default_factory=list)
    consumers: list[ir.Node] = field(default_factory=list)
    pinned: list[ir.Value] = field(default_factory=list)
    joins: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    movers: list[ir.Node] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)


@dataclass
class _Links:
    """Constraints on the scales of a graph's tensors.

    Attributes:
        joined: pairs of tensors that must have the same scales.
        movers: every Concat and Split, whose operands have the scales of a part of its result, or the reverse.
        pinned: tensors that cannot be rescaled.
        products: the products whose weights can be multiplied by scales.
        clips: the Clips between joined tensors.
    """

    joined: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    movers: list[ir.Node] = field(default_factory=list)
    pinned: list[ir.Value] = field(default_factory=list)
    products: list[ir.Node] = field(default_factory=list)
    clips: list[ir.Node] = field(default_factory=list)


def scale_groups(model: ir.Model) -> list[ScaleGroup]:
    """Find the groups whose channels can be rescaled, in graph order."""
    values = list(dict.fromkeys([*model.graph.inputs, *query.activations(model)]))
    links = _links(model, values)
    moved = [(whole, part) for node in links.movers for whole, parts in [_moved(node)] for part in parts]
    members = _members(values, links, representatives([*links.joined, *moved]))
    return [group for each in members if (group := _group(each)) is not None]


def _links(model: ir.Model, values: Iterable[ir.Value]) -> _Links:
    """Collect the constraints that every operator puts on its tensors."""
    links = _Links(pinned=[value for value in values if _is_used_outside(value, model.graph)])
    for node in model.graph:
        computed = query.computed_inputs(node)
        if scalable_product(node):
            links.products.append(node)
        elif node.op_type in HOMOGENEOUS_OPERATORS and (carriers := _carriers(node)):
            links.joined += [(value, node.outputs[0]) for value in carriers]
            links.pinned += [value for value in computed if value not in carriers]
            links.clips += [node] * (node.op_type == "Clip")
        elif node.op_type == "Split" or (node.op_type == "Concat" and len(computed) == len(node.inputs)):
            links.movers.append(node)
        else:
            links.pinned += [*computed, *node.outputs]
    return links


def _members(
    values: Iterable[ir.Value], links: _Links, representative: Callable[[ir.Value], ir.Value]
) -> list[_Members]:
    """Collect the members of every set of joined tensors, in the order of their first tensor."""
    members: dict[ir.Value, _Members] = {}
    for value in values:
        members.setdefault(representative(value), _Members()).values.append(value)
    for value in links.pinned:
        if representative(value) in members:
            members[representative(value)].pinned.append(value)
    for pair in links.joined:
        members[representative(pair[1])].joins.append(pair)
    for node in links.movers:
        members[representative(node.outputs[0])].movers.append(node)
    for node in links.products:
        members[representative(node.outputs[0])].producers.append(node)
        members[representative(node.inputs[0])].consumers.append(node)  # type: ignore[arg-type]
    for node in links.clips:
        if (limit := _ceiling(node)) < float("inf"):
            members[representative(node.outputs[0])].ceilings[str(node.outputs[0].name)] = limit
    return list(members.values())


def _moved(node: ir.Node) -> tuple[ir.Value, list[ir.Value]]:
    """Return the result of a Concat and its computed operands, or what a Split splits and its results."""
    if node.op_type == "Concat":
        return node.outputs[0], query.computed_inputs(node)
    return node.inputs[0], list(node.outputs)  # type: ignore[return-value]


def _is_used_outside(value: ir.Value, graph: ir.Graph) -> bool:
    """True where a tensor enters or leaves the graph, or a branch of an If or Loop reads it."""
    inside = all(use.node.graph is graph for use in value.uses())
    return value.is_graph_input() or value.is_graph_output() or not inside


def scalable_product(node: ir.Node) -> bool:
    """True where `node` multiplies an activation by constants that rescaling may change."""
    if node.op_type not in SCALABLE_PRODUCTS or query.constant(node.inputs[0]) is not None:
        return False
    weight = query.float_array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.ndim < 2 or (node.op_type != "Conv" and weight.ndim > 2):
        return False
    if node.op_type == "Gemm" and (query.attribute(node, "transA", 0) or query.attribute(node, "beta", 1.0) != 1.0):
        return False
    constant = query.float_array(bias)
    return bias is None or (constant is not None and constant.size == weight.shape[weight_axes(node).out])


def _carriers(node: ir.Node) -> list[ir.Value]:
    """List the inputs that are rescaled together with the output; none where that is not possible."""
    sources = [value for value in node.inputs if value is not None]
    if node.op_type == "Add":
        return [] if any(query.constant(value) is not None for value in sources) else sources
    if node.op_type == "Mul":
        first, second = sources
        sizes = [query.elements(value) or 0 for value in sources]
        if sizes[0] == sizes[1] or query.constant(first) is not None or query.constant(second) is not None:
            return []
        return [first if sizes[0] > sizes[1] else second]
    if node.op_type == "Clip" and _ceiling(node) <= 0:
        return []
    if node.op_type == "Resize" and (
        query.attribute(node, "mode", "nearest") == "cubic" or query.attribute(node, "extrapolation_value", 0.0) != 0
    ):
        return []
    return sources[:1] if len(node.outputs) == 1 else []


def _ceiling(clip: ir.Node) -> float:
    """Return the magnitude at which a Clip begins to act; 0 where its limits are unknown or do not enclose 0."""
    low, high = clip_limits(clip)
    if low is None or high is None or not low <= 0 < high:
        return 0.0
    return min(high, -low if low < 0 else high)


def read_alike(node: ir.Node, others: Iterable[ir.Node]) -> bool:
    """True where only `node` and `others` read its weight, and all read the same tensor: one rescaled weight does."""
    readers = query.consumers(node.inputs[1]) if node.inputs[1] is not None else []
    return all(reader is node or (reader in others and reader.inputs[0] is node.inputs[0]) for reader in readers)


def _group(members: _Members) -> ScaleGroup | None:
    if not members.producers or not members.consumers:
        return None
    axes = {_channel_axis(node, node.outputs[0]) for node in members.producers}
    axes |= {_channel_axis(node, node.inputs[0]) for node in members.consumers}  # type: ignore[arg-type]
    axis = axes.pop()
    operators = {node.op_type for value in members.values if (node := value.producer()) is not None}
    ranks = {query.rank(value) for value in members.values}
    if axes or axis is None or (axis != 1 and operators & SPATIAL_OPERATORS) or len(ranks) > 1:
        return None
    numbers = _scale_numbers(members, axis)
    if numbers is None:
        return None
    fixed = [*members.pinned]
    fixed += [node.outputs[0] for node in members.producers if not read_alike(node, ())]
    fixed += [v for n in members.consumers if not read_alike(n, members.consumers) and (v := n.inputs[0]) is not None]
    count = 1 + max(int(scales.max()) for scales in numbers.values())
    kept = np.unique(np.concatenate([np.empty(0, np.intp), *(numbers[value] for value in fixed)]))
    if len(kept) == count:
        return None
    return ScaleGroup(
        {str(value.name): scales for value, scales in numbers.items()},
        axis,
        count,
        tuple(query.label(node) for node in members.producers),
        tuple(query.label(node) for node in members.consumers),
        kept,
        members.ceilings,
    )


def _scale_numbers(members: _Members, axis: int) -> dict[ir.Value, Index] | None:
    """Number the sets of joined channels, for every channel of every tensor; None where a number is unknown."""
    sizes: dict[ir.Value, int] = {}
    for value in members.values:
        shape = query.sizes(value, dynamic=0)
        sizes[value] = shape[axis] if shape is not None and len(shape) > axis else 0
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    pairs: list[tuple[ir.Value, int, ir.Value]] = [(a, 0, b) for a, b in members.joins]
    for node in members.movers:
        whole, parts = _moved(node)
        moves_channels = query.attribute(node, "axis", 0) in (axis, axis - (query.rank(whole) or 0))
        place = 0
        for part in node.inputs if node.op_type == "Concat" else parts:
            if part in sizes:
                pairs.append((whole, place if moves_channels else 0, part))
            place += (query.sizes(part, dynamic=0) or (0,) * (axis + 1))[axis]
        if moves_channels and place != sizes[whole]:
            return None
    if 0 in sizes.values() or any(p + sizes[b] > sizes[a] for a, p, b in pairs):
        return None
    if any(sizes[a] != sizes[b] for a, b in members.joins):
        return None
    return _numbered(sizes, [(int(starts[a]) + p, int(starts[b]), sizes[b]) for a, p, b in pairs])


def _numbered(sizes: Mapping[ir.Value, int], runs: Iterable[tuple[int, int, int]]) -> dict[ir.Value, Index]:
    """Join runs of channels, each given by two starts and a length, and number the sets from 0.

    The smallest label of a set spreads over it: neighbours take the smaller of their labels until nothing changes.
    """
    labels = np.arange(sum(sizes.values()), dtype=np.intp)
    spans = [(slice(a, a + n), slice(b, b + n)) for a, b, n in runs]
    changed = True
    while changed:
        before = labels.copy()
        for one, other in (*spans, *reversed(spans)):
            labels[one] = labels[other] = np.minimum(labels[one], labels[other])
        changed = not np.array_equal(before, labels)
    numbers = np.unique(labels, return_inverse=True)[1].reshape(-1)
    return dict(zip(sizes, np.split(numbers, np.cumsum(list(sizes.values()))[:-1]), strict=True))


def _channel_axis(node: ir.Node, value: ir.Value) -> int | None:
    rank = query.rank(value)
    return 1 if node.op_type == "Conv" or rank is None else rank - 1
