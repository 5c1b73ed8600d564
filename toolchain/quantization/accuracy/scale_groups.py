"""Scale groups: tensors whose channels can be rescaled together without changing what the model computes.

A tensor may be divided channel by channel by s_c > 0 if the weights of the products that compute it are multiplied by
1/s_c, and the weights of the products that read it by s_c. Operators f between them with f(y / s) = f(y) / s (Relu,
pooling, the sum of two such tensors) join their tensors to a group with one s. A tensor that any other operator reads
or computes, or that enters or leaves the graph, cannot be rescaled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

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


@dataclass(frozen=True)
class ScaleGroup:
    """Tensors that share their channel scales.

    Attributes:
        tensors: names, in graph order.
        axis: the axis of their channels.
        channels: number of channels.
        producers: names of the products whose weights are multiplied by 1/s.
        consumers: names of the products whose weights are multiplied by s.
        ceiling: the lowest limit of a Clip in the group; infinite where there is none.
        min_share: smallest range that is assumed for a channel, as a share of the tensor's range.
        clipped: names of the tensors that a Clip limits.
    """

    tensors: tuple[str, ...]
    axis: int
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    ceiling: float = float("inf")
    min_share: float = MIN_CHANNEL_SHARE
    clipped: tuple[str, ...] = ()


@dataclass
class _Members:
    """The tensors of one possible group, and the operators around them."""

    values: list[ir.Value] = field(default_factory=list)
    producers: list[ir.Node] = field(default_factory=list)
    consumers: list[ir.Node] = field(default_factory=list)
    ceiling: float = float("inf")
    clipped: list[str] = field(default_factory=list)
    pinned: bool = False


@dataclass
class _Links:
    """Constraints on the scales of a graph's tensors.

    Attributes:
        joined: pairs of tensors that must have the same scales.
        pinned: tensors that cannot be rescaled.
        products: the products whose weights can be multiplied by scales.
        clips: the Clips between joined tensors.
    """

    joined: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    pinned: list[ir.Value] = field(default_factory=list)
    products: list[ir.Node] = field(default_factory=list)
    clips: list[ir.Node] = field(default_factory=list)


def scale_groups(model: ir.Model) -> list[ScaleGroup]:
    """Find the groups whose channels can be rescaled, in graph order."""
    values = list(dict.fromkeys([*model.graph.inputs, *query.activations(model)]))
    links = _links(model, values)
    members = _members(values, links, representatives(links.joined))
    return [group for each in members if (group := _group(each)) is not None]


def _links(model: ir.Model, values: Iterable[ir.Value]) -> _Links:
    """Collect the constraints that every operator puts on its tensors."""
    links = _Links(pinned=[value for value in values if _is_used_outside(value, model.graph)])
    for node in model.graph:
        computed = [v for v in node.inputs if v is not None and query.constant(v) is None]
        if scalable_product(node):
            links.products.append(node)
        elif node.op_type in HOMOGENEOUS_OPERATORS and (carriers := _carriers(node)):
            links.joined += [(value, node.outputs[0]) for value in carriers]
            links.pinned += [value for value in computed if value not in carriers]
            links.clips += [node] * (node.op_type == "Clip")
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
            members[representative(value)].pinned = True
    for node in links.products:
        members[representative(node.outputs[0])].producers.append(node)
        members[representative(node.inputs[0])].consumers.append(node)  # type: ignore[arg-type]
    for node in links.clips:
        group, limit = members[representative(node.outputs[0])], _ceiling(node)
        group.ceiling = min(group.ceiling, limit)
        group.clipped += [str(node.outputs[0].name)] * (limit < float("inf"))
    return list(members.values())


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


def read_alone(products: Collection[ir.Node]) -> bool:
    """True where no other node reads the weights of `products`: rescaled weights then need no copy."""
    return all(set(query.consumers(value)) <= set(products) for node in products if (value := node.inputs[1]))


def _group(members: _Members) -> ScaleGroup | None:
    if members.pinned or not members.producers or not members.consumers:
        return None
    if not (read_alone(members.producers) and read_alone(members.consumers)):
        return None
    axes = {_channel_axis(node, node.outputs[0]) for node in members.producers}
    axes |= {_channel_axis(node, node.inputs[0]) for node in members.consumers}  # type: ignore[arg-type]
    axis = axes.pop()
    operators = {node.op_type for value in members.values if (node := value.producer()) is not None}
    if axes or axis is None or (axis != 1 and operators & SPATIAL_OPERATORS):
        return None
    shapes = [query.sizes(value, dynamic=0) for value in members.values]
    channels = {shape[axis] if shape is not None and len(shape) > axis else 0 for shape in shapes}
    ranks = {query.rank(value) for value in members.values}
    count = channels.pop()
    if channels or len(ranks) > 1 or count == 0:
        return None
    return ScaleGroup(
        tuple(str(value.name) for value in members.values),
        axis,
        count,
        tuple(query.label(node) for node in members.producers),
        tuple(query.label(node) for node in members.consumers),
        members.ceiling,
        clipped=tuple(members.clipped),
    )


def _channel_axis(node: ir.Node, value: ir.Value) -> int | None:
    rank = query.rank(value)
    return 1 if node.op_type == "Conv" or rank is None else rank - 1
