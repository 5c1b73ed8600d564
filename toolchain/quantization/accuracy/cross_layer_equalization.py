"""Cross-layer equalization: give the channels of a tensor similar ranges, so that one scale suits them all.

A tensor may be divided channel by channel by s_c > 0 if the weights of the operators that compute it are multiplied by
1/s_c, and the weights of those that read it by s_c:

    y = f(W x + b),  z = V y    is    y' = f(W' x + b'),  z = V' y'    with  W'_c = W_c / s_c,  b'_c = b_c / s_c,
                                                                            V'_:c = V_:c s_c,   y'_c = y_c / s_c

This holds for every f with f(y / s) = f(y) / s: Relu, pooling, the sum of two such tensors. Tensors joined by such
operators form a group with one s; in a residual network a whole stage is one group. Nagel et al. (2019,
arXiv:1906.04721) equalize the *weights* of two layers this way. Here weights have a scale for each output channel, so
W' costs nothing, and neither does a depthwise V'. So the *activations* are equalized, at the expense of V.

A Clip in the group keeps its limit, so channel c saturates at s_c times the limit; this is kept above `RANGE_MARGIN`
times the observed maximum. The largest value of a channel is less certain than that of a tensor, so the margin and
`scale_groups.MIN_CHANNEL_SHARE` leave room for it.

s = min(1, max(RANGE_MARGIN · r, MIN_CHANNEL_SHARE))^α, where r_c is the channel's largest magnitude over the tensor's.
Of a few values of α, the one with the least expected noise at the readers is used. For a reader with weights V,
rounding y and V adds

    Δ²/12 · Σ_oc (V_oc s_c)²   +   Σ_o δ_o²/12 · Σ_c E[y_c²] / s_c²      Δ, δ_o: steps of y' and of row o of V'

to its output, in units of the output's own energy Σ_oc V_oc² E[y_c²].
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.core.arrays import F64
from toolchain.graph import check, edit, query
from toolchain.ops.weights import weight_axes
from toolchain.quantization.accuracy.scale_groups import ScaleGroup
from toolchain.quantization.plan import constant_weight

RANGE_MARGIN = 1.5
"""Channels are assumed to reach this many times their observed maximum."""
SCALE_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
"""The values of α that are tried."""
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
    """

    low: F64
    high: F64
    square: F64


def _channel_ranges(group: ScaleGroup, observation: Observation, quantized: Collection[str]) -> _ChannelRanges | None:
    """Join the statistics of the group's quantized tensors; None where a needed tensor was not observed."""
    names = [name for name in group.tensors if name in quantized and name in observation.tensors]
    stats = [s for name in names if (s := observation.tensors[name].channels) is not None]
    if not stats or not set(group.clipped) <= set(names):
        return None
    low = np.min([s.minimum for s in stats], axis=0).clip(max=0.0)
    high = np.max([s.maximum for s in stats], axis=0).clip(min=0.0)
    square = np.max([s.square for s in stats], axis=0)
    return _ChannelRanges(low, high, square) if low.any() or high.any() else None


def _best_scales(group: ScaleGroup, ranges: _ChannelRanges, nodes: Mapping[str, ir.Node]) -> F64 | None:
    """Return the candidate scales with the least noise at the readers; None where they do not reduce it enough."""
    readers = [_reader(nodes[name], ranges.square) for name in group.consumers]
    candidates = [np.ones(group.channels), *_candidate_scales(group, np.maximum(ranges.high, -ranges.low))]
    noises = [sum(_noise(s, ranges.low, ranges.high, ranges.square, *reader) for reader in readers) for s in candidates]
    best = int(np.argmin(noises))
    return candidates[best] if noises[best] < MAX_NOISE_RATIO * noises[0] else None


def _candidate_scales(group: ScaleGroup, largest: F64) -> list[F64]:
    """Compute the scales for each exponent α.

    Args:
        group: the group to rescale.
        largest: largest magnitude of each channel.
    """
    share = np.minimum(1.0, RANGE_MARGIN * largest / largest.max())
    below_clip = np.minimum(1.0, RANGE_MARGIN * largest / group.ceiling)
    bounded = np.maximum(share, group.min_share)
    return [np.maximum(bounded**exponent, below_clip) for exponent in SCALE_EXPONENTS]


def _reader(node: ir.Node, square: F64) -> tuple[F64, float]:
    """Return a consumer's weights as [groups, outputs, inputs, taps], and its output's energy."""
    weight = _by_input(node)
    energy = float(np.einsum("goik,gi->", weight**2, square.reshape(len(weight), -1)))
    return weight, max(energy, 1e-30)


def _by_input(node: ir.Node) -> F64:
    wide = constant_weight(node).astype(np.float64)
    if node.op_type == "Conv":
        groups = query.attribute(node, "group", 1)
        return wide.reshape(groups, len(wide) // groups, wide.shape[1], -1)
    return (wide if weight_axes(node).out == 0 else wide.T)[None, :, :, None]


def _noise(s: F64, low: F64, high: F64, square: F64, weight: F64, energy: float) -> float:
    """Compute the expected squared error at a reader's output over the output's energy."""
    groups, _, inputs, taps = weight.shape
    scaled = weight * s.reshape(groups, 1, inputs, 1)
    step = (np.max(high / s) - np.min(low / s)) / 255
    steps = np.abs(scaled).max(axis=(2, 3)) / 127
    reach = (square / s**2).reshape(groups, inputs).sum(axis=1)
    return float(step**2 * np.sum(scaled**2) + taps * np.sum(steps**2 * reach[:, None])) / (12 * energy)


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
            axis = weight_axes(node).out
            rank = query.rank(node.inputs[1]) or 2  # type: ignore[arg-type]
            rescale(node, 1, 1 / np.expand_dims(s, [a for a in range(rank) if a != axis]), names)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                rescale(node, 2, 1 / s, names)
        scale_consumers([nodes[name] for name in group.consumers], s, names)
    edit.remove_unused(result)
    check.check(result)
    return result


def scale_consumers(nodes: Iterable[ir.Node], s: F64, names: edit.Names) -> None:
    """Multiply the weights of products along their input channels; a weight that several of them read stays one."""
    scaled: dict[tuple[ir.Value | None, tuple[int, ...]], ir.Value | None] = {}
    for node in nodes:
        factors = _spread(node, s)
        key = node.inputs[1], factors.shape
        if key in scaled:
            edit.set_input(node, 1, scaled[key])
        else:
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
