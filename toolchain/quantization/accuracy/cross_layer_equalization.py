"""Cross-layer equalization: give the channels of a tensor similar ranges, so that one scale suits them all.

A tensor may be divided channel by channel by s_c > 0 if the weights of the operators that compute it are multiplied by
1/s_c, and the weights of those that read it by s_c:

    y = f(W x + b),  z = V y    is    y' = f(W' x + b'),  z = V' y'    with  W'_c = W_c / s_c,  b'_c = b_c / s_c,
                                                                            V'_:c = V_:c s_c,   y'_c = y_c / s_c

This holds for every f with f(y / s) = f(y) / s: Relu, pooling, the sum of two such tensors. Tensors joined by such
operators form a group with common s; in a residual network a whole stage is one group. Nagel et al. (2019,
arXiv:1906.04721) equalize the *weights* of two layers this way. Here weights have a scale for each output channel, so
W' costs nothing, and neither does a depthwise V'. So the *activations* are equalized, at the expense of V.

A Clip in the group keeps its limit, so channel c saturates at s_c times the limit; this is kept above `RANGE_MARGIN`
times the observed maximum. The largest value of a channel is less certain than that of a tensor, the less so the more
rarely the channel was active, so the margin and a smallest share leave room for it.

Operands of a Concat are *blocks* of channels. With r_c the largest magnitude of channel c, B that of its block, and R
that of the group, or of the channels that keep scale 1,

    s_c = (B / R)^β · min(1, max(RANGE_MARGIN · r_c / B, smallest share))^α

Of a few values of α and β, those with the least expected noise at the readers are used. For a reader with weights V,
rounding y and V adds

    Δ²/12 · Σ_oc (V_oc s_c)²   +   Σ_o δ_o²/12 · Σ_c E[y_c²] / s_c²      Δ, δ_o: steps of y' and of row o of V'

to its output, in units of the output's own energy Σ_oc V_oc² E[y_c²]. Δ is the step of the tensor whose integers the
reader gets: behind a Split that is the tensor that was split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.calibration.observation import ChannelStats, Observation
from toolchain.core.arrays import F64, Index
from toolchain.graph import check, edit, query
from toolchain.ops.cells import SameScale
from toolchain.ops.table import rule
from toolchain.ops.weights import weight_axes
from toolchain.quantization.accuracy.scale_groups import ScaleGroup
from toolchain.quantization.plan import constant_weight

RANGE_MARGIN = 1.5
"""Channels are assumed to reach this many times their observed maximum."""
SCALE_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
"""The values of α that are tried, besides 0."""
BLOCK_EXPONENTS = (0.5, 1.0)
"""The values of β that are tried, besides 0."""
MIN_BLOCK_SHARE = 2.0**-10
"""Smallest scale of a block: one that hardly carries anything is not enlarged without limit."""
ENOUGH_POSITIONS = 256
"""Number of positions at which a channel must have been active for the smallest share to hold; with fewer, the smallest
share grows in proportion. Behind a matrix product of one row, there are as many positions as samples."""
HALF_NORMAL_RATIO = 2 / np.pi
"""E[y]² / E[y²] of the positive half of a normal distribution; it is proportionally lower where y is 0 more often."""
MAX_NOISE_RATIO = 0.9
"""A group is rescaled if its noise falls below this share of the noise without scales."""


def plan_equalization(
    model: ir.Model, groups: Collection[ScaleGroup], observation: Observation, quantized: Collection[str]
) -> dict[ScaleGroup, F64]:
    """Choose channel scales for every group whose noise they reduce enough.

    Args:
        model: the float model.
        groups: groups to rescale, such as those of :func:`scale_groups`.
        observation: statistics, by channel for the groups' tensors.
        quantized: names of the tensors that are quantized.

    Returns:
        Channel scales, float64 [channels], by group.
    """
    nodes = {query.label(node): node for node in model.graph}
    result = {}
    for group in groups:
        ranges = _channel_ranges(group, observation, quantized)
        if ranges is not None and (scales := _best_scales(group, ranges, nodes)) is not None:
            result[group] = scales
    return result


@dataclass(frozen=True)
class _ChannelRanges:
    """Statistics of a group's channels over all its tensors, float64 [channels] each.

    Attributes:
        low: the smallest values, at most 0.
        high: the largest values, at least 0.
        square: the largest mean of x².
        positions: the number of positions at which the channel was active; 0 where it was not observed.
    """

    low: F64
    high: F64
    square: F64
    positions: F64

    @property
    def largest(self) -> F64:
        """The largest magnitudes."""
        return np.maximum(self.high, -self.low)


def _channel_ranges(group: ScaleGroup, observation: Observation, quantized: Collection[str]) -> _ChannelRanges | None:
    """Join the statistics of the group's quantized tensors; None where a needed tensor was not observed."""
    low, high, square, positions = (np.zeros(group.channels) for _ in range(4))
    found: set[str] = set()
    for name, scales in group.members.items():
        stats = observation.tensors.get(name) if name in quantized else None
        if stats is None or (channels := stats.channels) is None:
            continue
        found.add(name)
        np.minimum.at(low, scales, channels.minimum)
        np.maximum.at(high, scales, channels.maximum)
        np.maximum.at(square, scales, channels.square)
        np.maximum.at(positions, scales, stats.count / len(scales) * _active_share(channels))
    if not set(group.ceilings) <= found:
        return None
    return _ChannelRanges(low, high, square, positions) if low.any() or high.any() else None


def _active_share(channels: ChannelStats) -> F64:
    """Estimate at which share of its positions each channel of a rectified tensor is not 0; 1 for other tensors."""
    if channels.minimum.min() < 0:
        return np.ones(len(channels.mean))
    return np.minimum(1.0, channels.mean**2 / np.maximum(HALF_NORMAL_RATIO * channels.square, 1e-300))


def _best_scales(group: ScaleGroup, ranges: _ChannelRanges, nodes: Mapping[str, ir.Node]) -> F64 | None:
    """Return the candidate scales with the least noise at the readers; None where they do not reduce it enough."""
    readers = [_reader(nodes[name], group, ranges) for name in group.consumers]
    candidates = [np.ones(group.channels), *_candidate_scales(group, ranges)]
    noises = [sum(_noise(s, ranges, reader) for reader in readers) for s in candidates]
    best = int(np.argmin(noises))
    return candidates[best] if noises[best] < MAX_NOISE_RATIO * noises[0] else None


def _candidate_scales(group: ScaleGroup, ranges: _ChannelRanges) -> list[F64]:
    """Compute the scales for each pair of exponents."""
    largest, blocks, ceiling = ranges.largest, group.blocks(), group.ceiling()
    block = np.zeros(blocks.max() + 1)
    np.maximum.at(block, blocks, largest)
    whole = largest[group.fixed].max(initial=0.0) or largest.max()
    share = np.where(block > 0, np.maximum(block / whole, MIN_BLOCK_SHARE), 1.0)[blocks]
    smallest = group.min_share * np.maximum(1.0, ENOUGH_POSITIONS / np.maximum(ranges.positions, 1.0))
    within = np.minimum(1.0, np.maximum(RANGE_MARGIN * largest / np.maximum(block[blocks], 1e-300), smallest))
    below_clip = np.minimum(1.0, RANGE_MARGIN * largest / ceiling)
    outer = (0.0, *BLOCK_EXPONENTS) if (share != 1).any() else (0.0,)
    results = []
    for beta, alpha in [(beta, alpha) for beta in outer for alpha in (0.0, *SCALE_EXPONENTS) if beta or alpha]:
        scales = np.maximum(share**beta * within**alpha, below_clip)
        scales[np.isfinite(ceiling)] = np.minimum(scales[np.isfinite(ceiling)], 1.0)
        scales[group.fixed] = 1.0
        scales[ranges.positions == 0] = 1.0
        results.append(scales)
    return results


@dataclass(frozen=True)
class _Reader:
    """A product that reads a tensor of a group.

    Attributes:
        weight: float64 [groups, outputs, inputs, taps].
        energy: mean square of its output, with independent inputs.
        scales: the scale of each channel that it reads.
        grid: the scales of all channels that are rounded with the same step.
    """

    weight: F64
    energy: float
    scales: Index
    grid: Index


def _reader(node: ir.Node, group: ScaleGroup, ranges: _ChannelRanges) -> _Reader:
    weight, source = _by_input(node), node.inputs[0]
    scales = group.members[str(source.name)] if source is not None else np.arange(group.channels)
    square = ranges.square[scales].reshape(len(weight), -1)
    energy = float(np.einsum("goik,gi->", weight**2, square))
    return _Reader(weight, max(energy, 1e-30), scales, group.members[_rounded_tensor(source, group)])


def _rounded_tensor(value: ir.Value | None, group: ScaleGroup) -> str:
    """Return the tensor of the group whose integers `value` consists of, through operators that pass them on."""
    while value is not None:
        node = value.producer()
        source = node.inputs[0] if node is not None and isinstance(rule(node).int8, SameScale) else None
        if source is None or source.name not in group.members:
            return str(value.name)
        value = source
    raise ValueError("a product has no input")


def _by_input(node: ir.Node) -> F64:
    wide = constant_weight(node).astype(np.float64)
    if node.op_type == "Conv":
        groups = query.attribute(node, "group", 1)
        return wide.reshape(groups, len(wide) // groups, wide.shape[1], -1)
    return (wide if weight_axes(node).out == 0 else wide.T)[None, :, :, None]


def _noise(all_scales: F64, ranges: _ChannelRanges, reader: _Reader) -> float:
    """Compute the expected squared error at a reader's output over the output's energy."""
    groups, _, inputs, taps = reader.weight.shape
    s, rounded = all_scales[reader.scales], all_scales[reader.grid]
    scaled = reader.weight * s.reshape(groups, 1, inputs, 1)
    step = (np.max(ranges.high[reader.grid] / rounded) - np.min(ranges.low[reader.grid] / rounded)) / 255
    steps = np.abs(scaled).max(axis=(2, 3)) / 127
    reach = (ranges.square[reader.scales] / s**2).reshape(groups, inputs).sum(axis=1)
    return float(step**2 * np.sum(scaled**2) + taps * np.sum(steps**2 * reach[:, None])) / (12 * reader.energy)


def apply_equalization(model: ir.Model, scales: Mapping[ScaleGroup, F64]) -> ir.Model:
    """Clone the float model and rescale its groups; it computes the same except where a Clip saturates.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    nodes = {query.label(node): node for node in result.graph}
    names = edit.Names(result.graph)
    for group, s in scales.items():
        for name in group.producers:
            node = nodes[name]
            divisors = s[group.members[str(node.outputs[0].name)]]
            if (divisors == 1).all():
                continue
            axis = weight_axes(node).out
            rank = query.rank(node.inputs[1]) or 2  # type: ignore[arg-type]
            rescale(node, 1, 1 / np.expand_dims(divisors, [a for a in range(rank) if a != axis]), names)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                rescale(node, 2, 1 / divisors, names)
        scale_consumers([nodes[name] for name in group.consumers], group, s, names)
    edit.remove_unused(result)
    check.check(result)
    return result


def scale_consumers(nodes: Iterable[ir.Node], group: ScaleGroup, s: F64, names: edit.Names) -> None:
    """Multiply the weights of products along their input channels; a weight that several of them read stays one."""
    scaled: dict[tuple[ir.Value | None, ir.Value | None, tuple[int, ...]], ir.Value | None] = {}
    for node in nodes:
        source = node.inputs[0]
        factors = _spread(node, s[group.members[str(source.name)]] if source is not None else s)
        key = source, node.inputs[1], factors.shape
        if key in scaled:
            edit.set_input(node, 1, scaled[key])
        elif (factors != 1).any():
            rescale(node, 1, factors, names)
            scaled[key] = node.inputs[1]


def _spread(node: ir.Node, s: F64) -> F64:
    """Shape input-channel scales so that they multiply the node's weight."""
    if node.op_type != "Conv":
        return s[None, :] if weight_axes(node).out == 0 else s[:, None]
    weight = query.sizes(node.inputs[1]) or ()
    groups = query.attribute(node, "group", 1)
    rows = np.repeat(s.reshape(groups, -1), weight[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (len(weight) - 2))


def rescale(node: ir.Node, index: int, factors: F64, names: edit.Names) -> None:
    """Multiply one constant input of a node."""
    array = query.float_array(node.inputs[index])
    if array is None or node.graph is None:
        raise ValueError(f"input {index} of {query.label(node)} is no constant")
    scaled = (array.astype(np.float64) * factors).astype(np.float32)
    name = names.fresh(f"{query.label(node)}_equalized")
    edit.set_input(node, index, edit.add_constant(node.graph, name, scaled))
