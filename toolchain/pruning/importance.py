"""Importance of the channels of a group, without labels and without training.

A *consumer* of a group is an operator that sums over its channels: y = W x, where x is its input. The second moments
H = E[x xᵀ] over the calibration data tell how important a channel is to it.

obs          structured Optimal Brain Surgeon (Hassibi and Stork 1993; for whole channels OBSPA, arXiv 2403.18955): the
             smallest squared change of y when channel i is removed and the weights of the others compensate for it:
             |W_i|² / [H⁻¹]_ii. Greedy: remove the lowest-scoring channel, update H⁻¹, repeat.
activation   |W_i|² H_ii: the change of y without compensation
l2, l1       |W_i| of the weights of consumers and producers, the usual criteria
random       by a seed

A channel may be a block of a consumer's axis: a head of an attention, a channel of a flattened map. Scores of several
consumers are divided by the energy of their outputs and added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from toolchain.channels.groups import Group
from toolchain.channels.index_spaces import leaf_positions, leaves
from toolchain.channels.layout import Layout
from toolchain.core.arrays import F64, Index
from toolchain.graph import query
from toolchain.ops import cells, table
from toolchain.ops.weights import weight_axes

ChannelCriterion = Literal["obs", "activation", "l2", "l1", "random"]

DAMPING = 1e-3
"""Added to the diagonal of H, relative to its mean."""


@dataclass(frozen=True)
class Consumer:
    """An operator that sums over the channels of a group.

    Attributes:
        node: label of the operator.
        reads: name of the tensor it reads.
        axis: axis of that tensor, with C positions.
        positions: the channel of the group at each position of the axis, -1 where there is none.
        weight: float64 [C, R], all factors of each position; None where it is multiplied with other activations.
    """

    node: str
    reads: str
    axis: int
    positions: Index
    weight: F64 | None


@dataclass(frozen=True)
class ChannelMoments:
    """Second moments [C, C] and means [C] of the positions of one axis, over all other axes and the data."""

    second: F64
    mean: F64


def consumers(model: ir.Model, spaces: Layout, group: Group) -> list[Consumer]:
    """List the operators that sum over a group."""
    result = []
    for node in model.graph:
        for index, axis in spaces.summed.get(node, ()):
            value = node.inputs[index]
            if value is None or query.constant(value) is not None:
                continue
            space = spaces.axes[value][axis]
            if group.leaf not in set(leaves(space)):
                continue
            result.append(
                Consumer(
                    query.label(node), str(value.name), axis, leaf_positions(space, group.leaf), _weight(node, index)
                )
            )
    return result


def _weight(node: ir.Node, index: int) -> F64 | None:
    """Return the factors of every position of the input's channels, [C, R]."""
    cell = table.rule(node).channels
    if index != 0 or len(node.inputs) < 2 or (array := query.float_array(node.inputs[1])) is None:
        return None
    if isinstance(cell, cells.Weighted):
        groups = query.attribute(node, "group", 1)
        if cell.out == 1:  # [G x I, O, k]
            return array.reshape(len(array), -1).astype(np.float64)
        # [G x O, I, k]: position (g, i) is read by the rows of g alone
        split = array.reshape(groups, len(array) // groups, array.shape[1], -1)
        return split.transpose(0, 2, 1, 3).reshape(groups * array.shape[1], -1).astype(np.float64)
    if isinstance(cell, cells.Recurrent):
        return array.reshape(-1, array.shape[2]).T.astype(np.float64)
    if isinstance(cell, cells.Contracted) and array.ndim == 2:
        return (array if weight_axes(node).out else array.T).astype(np.float64)
    return None


def rank_channels(
    group: Group,
    readers: Sequence[Consumer],
    moments: Mapping[tuple[str, int], ChannelMoments],
    criterion: ChannelCriterion,
    *,
    producers: Mapping[str, F64] | None = None,
    seed: int = 0,
    min_greedy: int = 1,
) -> Index:
    """Rank the channels of a group, the least important first.

    Args:
        group: the group.
        readers: its consumers.
        moments: by (tensor, axis) that the consumers read.
        criterion: see the module.
        producers: for l1 and l2, the weights that make the channels: [size, R] by parameter.
        seed: for `random`.
        min_greedy: obs stops updating H⁻¹ at this number of channels and ranks the rest by their last scores.
    """
    if criterion == "random":
        return np.random.default_rng(seed).permutation(group.size)
    if criterion in ("l1", "l2"):
        power = 1 if criterion == "l1" else 2
        scores = np.zeros(group.size)
        for weight in (producers or {}).values():
            scores += (np.abs(weight) ** power).sum(axis=1) / max((np.abs(weight) ** power).sum(), 1e-30)
        for consumer in readers:
            if consumer.weight is not None:
                scores += _normalized(_by_channel(consumer, (np.abs(consumer.weight) ** power).sum(axis=1), group.size))
        return np.argsort(scores, kind="stable")
    if criterion == "activation":
        scores = np.zeros(group.size)
        for consumer in readers:
            energy = np.diag(moments[consumer.reads, consumer.axis].second)
            scores += _normalized(_by_channel(consumer, energy * _power(consumer), group.size))
        return np.argsort(scores, kind="stable")
    states = [_ObsState(consumer, moments[consumer.reads, consumer.axis], group.size) for consumer in readers]
    return _greedy(group.size, states, min_greedy)


def _power(consumer: Consumer) -> F64:
    """Compute |W_c|² for every position; 1 where activations are multiplied with activations."""
    return np.ones(len(consumer.positions)) if consumer.weight is None else (consumer.weight**2).sum(axis=1)


def _by_channel(consumer: Consumer, scores: F64, size: int) -> F64:
    inside = consumer.positions >= 0
    return np.bincount(consumer.positions[inside], scores[inside], minlength=size).astype(np.float64)


def _normalized(scores: F64) -> F64:
    return scores / max(float(scores.sum()), 1e-30)


class _ObsState:
    """H⁻¹ and weights of one consumer, updated as channels are removed."""

    def __init__(self, consumer: Consumer, channels: ChannelMoments, size: int) -> None:
        second = channels.second
        damping = DAMPING * max(float(np.mean(np.diag(second))), 1e-12)
        self.inverse = np.linalg.inv(second + damping * np.eye(len(second)))
        self.weight = np.sqrt(np.diag(second))[:, None] if consumer.weight is None else consumer.weight.copy()
        if self.weight.shape[1] > len(second):  # only W Wᵀ matters, so a smaller factor of it is used
            values, vectors = np.linalg.eigh(self.weight @ self.weight.T)
            self.weight = vectors * np.sqrt(np.maximum(values, 0))
        energy = float(np.einsum("cr,cd,dr->", self.weight, second, self.weight, optimize=True))
        self.share = 1 / max(energy, 1e-30)
        self.blocks = [np.flatnonzero(consumer.positions == channel) for channel in range(size)]
        self.single = all(len(block) == 1 for block in self.blocks)
        self.first = np.array([block[0] if len(block) else -1 for block in self.blocks])

    def scores(self, alive: Index) -> F64:
        """Compute the loss of removing each channel that is left."""
        if self.single:
            at = self.first[alive]
            lost: F64 = (self.weight[at] ** 2).sum(axis=1) / np.maximum(np.diag(self.inverse)[at], 1e-30)
            return self.share * lost
        scores = np.zeros(len(alive))
        for number, channel in enumerate(alive):
            block = self.blocks[channel]
            if len(block):
                inverse = self.inverse[np.ix_(block, block)]
                scores[number] = np.sum(self.weight[block] * np.linalg.solve(inverse, self.weight[block]))
        return self.share * scores

    def remove(self, channel: int) -> None:
        """Remove a channel from H⁻¹; the weights of the others compensate for it."""
        block = self.blocks[channel]
        if not len(block):
            return
        columns = self.inverse[:, block]
        gain = np.linalg.solve(self.inverse[np.ix_(block, block)], columns.T)  # [b, C]
        self.weight -= gain.T @ self.weight[block]
        self.inverse -= columns @ gain
        self.weight[block] = 0
        self.inverse[block] = 0
        self.inverse[:, block] = 0
        self.inverse[block, block] = 1e-30


def _greedy(size: int, states: Sequence[_ObsState], min_greedy: int) -> Index:
    alive = np.arange(size)
    order: list[int] = []
    scores = np.zeros(size)
    while len(alive) > max(min_greedy, 1):
        scores = sum((state.scores(alive) for state in states), np.zeros(len(alive)))
        worst = int(np.argmin(scores))
        order.append(int(alive[worst]))
        for state in states:
            state.remove(order[-1])
        alive, scores = np.delete(alive, worst), np.delete(scores, worst)
    return np.array([*order, *alive[np.argsort(scores, kind="stable")]], np.intp)


def producer_weights(model: ir.Model, spaces: Layout, group: Group) -> dict[str, F64]:
    """Return absolute weights that make the channels of a group, [size, R] by parameter."""
    result: dict[str, F64] = {}
    values = {str(value.name): value for value in model.graph.initializers.values()}
    for member in group.members:
        array = query.float_array(values.get(member.parameter))
        if member.makes and array is not None and array.ndim > 1:
            channel = leaf_positions(spaces.axes[values[member.parameter]][member.axis], group.leaf)
            rows = np.moveaxis(array, member.axis, 0).reshape(len(channel), -1)
            total = np.zeros((group.size, rows.shape[1]))
            np.add.at(total, channel[channel >= 0], np.abs(rows[channel >= 0]))
            result[member.parameter] = total
    return result


def fold_removed(weight: F64, second: F64, kept: Index) -> F64:
    """Change the kept rows of W so that W x stays the same in the least-squares sense.

    W_S + H_SS⁻¹ H_SP W_P, where S are the kept and P the removed positions: the part of the removed inputs that the
    kept ones predict is added to their weights.

    Args:
        weight: W, [C, R].
        second: H, [C, C].
        kept: positions S.

    Returns:
        float64 [len(kept), R].
    """
    removed = np.setdiff1d(np.arange(len(weight)), kept)
    inner = second[np.ix_(kept, kept)]
    inner = inner + DAMPING * max(float(np.mean(np.diag(inner))), 1e-12) * np.eye(len(kept))
    return np.asarray(weight[kept] + np.linalg.solve(inner, second[np.ix_(kept, removed)] @ weight[removed]))


def needed_moments(readers: Iterable[Consumer]) -> set[tuple[str, int]]:
    """Return the (tensor, axis) pairs whose moments the consumers need."""
    return {(consumer.reads, consumer.axis) for consumer in readers}
