"""Which places of a group to give up first: importance, without labels and without training.

Whoever sums over a group is its *consumer*: y = W x, with x what it reads. Moments H = E[x xᵀ] over the calibration
data say what a place is worth to it.

obs          structured Optimal Brain Surgeon (Hassibi and Stork 1993; for whole channels OBSPA, arXiv 2403.18955): the
             least squared change of y when place i goes and the weights of the others make up for it as well as they
             can: |W_i|² / [H⁻¹]_ii. Greedy: the place of the least goes, H⁻¹ is brought down to the others, and so on.
activation   |W_i|² H_ii: the change of y when nobody makes up for it
l2, l1       |W_i| of the consumer's and the maker's weights, as is customary
random       seeded

A place may be a block of a consumer's axis: a head of an attention, a channel of a flattened map. Several consumers
have their say in proportion to the energy of their outputs.
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

Criterion = Literal["obs", "activation", "l2", "l1", "random"]

DAMPING = 1e-3
"""Of the mean of H's diagonal."""


@dataclass(frozen=True)
class Consumer:
    """A sum over a group. reads: the tensor and its axis of C places. weight: float64 [C, R], all that place c is
    multiplied with; None where it is multiplied with other activations.
    """

    node: str
    reads: str
    axis: int
    places: Index
    weight: F64 | None


@dataclass(frozen=True)
class ChannelMoments:
    """Second moments [C, C] and means [C] of the places of one axis, over all other axes and the data."""

    second: F64
    mean: F64


def consumers(model: ir.Model, found: Layout, group: Group) -> list[Consumer]:
    """Everybody who sums over a group; places: for every place of the axis that of the group, or -1."""
    result = []
    for node in model.graph:
        for index, axis in found.summed.get(node, ()):
            value = node.inputs[index]
            if value is None or query.constant(value) is not None:
                continue
            space = found.axes[value][axis]
            if group.leaf not in set(leaves(space)):
                continue
            result.append(
                Consumer(
                    query.label(node), str(value.name), axis, leaf_positions(space, group.leaf), _weight(node, index)
                )
            )
    return result


def _weight(node: ir.Node, index: int) -> F64 | None:
    """[C, R]: what every place of the input's channels is multiplied with."""
    cell = table.rule(node).channels
    if index != 0 or len(node.inputs) < 2 or (array := query.float_array(node.inputs[1])) is None:
        return None
    if isinstance(cell, cells.Weighted):
        groups = query.attribute(node, "group", 1)
        if cell.out == 1:  # [G x I, O, k]
            return array.reshape(len(array), -1).astype(np.float64)
        # [G x O, I, k]: place (g, i) is read by the rows of g alone
        split = array.reshape(groups, len(array) // groups, array.shape[1], -1)
        return split.transpose(0, 2, 1, 3).reshape(groups * array.shape[1], -1).astype(np.float64)
    if isinstance(cell, cells.Recurrent):
        return array.reshape(-1, array.shape[2]).T.astype(np.float64)
    if isinstance(cell, cells.Contracted) and array.ndim == 2:
        return (array if weight_axes(node).out else array.T).astype(np.float64)
    return None


def ranking(
    group: Group,
    read: Sequence[Consumer],
    moments: Mapping[tuple[str, int], ChannelMoments],
    criterion: Criterion,
    *,
    made: Mapping[str, F64] | None = None,
    seed: int = 0,
    least: int = 1,
) -> Index:
    """The places of a group, the most dispensable first.

    Args:
        group: whose.
        read: its consumers.
        moments: by (tensor, axis) that the consumers read.
        criterion: see the module.
        made: for l1 and l2, what makes the places: [size, R] by parameter.
        seed: for `random`.
        least: obs stops being greedy here; what is left is ordered by its last scores.
    """
    if criterion == "random":
        return np.random.default_rng(seed).permutation(group.size)
    if criterion in ("l1", "l2"):
        power = 1 if criterion == "l1" else 2
        scores = np.zeros(group.size)
        for weight in (made or {}).values():
            scores += (np.abs(weight) ** power).sum(axis=1) / max((np.abs(weight) ** power).sum(), 1e-30)
        for consumer in read:
            if consumer.weight is not None:
                scores += _normalized(_by_place(consumer, (np.abs(consumer.weight) ** power).sum(axis=1), group.size))
        return np.argsort(scores, kind="stable")
    if criterion == "activation":
        scores = np.zeros(group.size)
        for consumer in read:
            energy = np.diag(moments[consumer.reads, consumer.axis].second)
            scores += _normalized(_by_place(consumer, energy * _power(consumer), group.size))
        return np.argsort(scores, kind="stable")
    surgeons = [_Surgeon(consumer, moments[consumer.reads, consumer.axis], group.size) for consumer in read]
    return _greedy(group.size, surgeons, least)


def _power(consumer: Consumer) -> F64:
    """|W_c|² for every place of the axis; 1 where activations are multiplied with activations."""
    return np.ones(len(consumer.places)) if consumer.weight is None else (consumer.weight**2).sum(axis=1)


def _by_place(consumer: Consumer, scores: F64, size: int) -> F64:
    inside = consumer.places >= 0
    return np.bincount(consumer.places[inside], scores[inside], minlength=size).astype(np.float64)


def _normalized(scores: F64) -> F64:
    return scores / max(float(scores.sum()), 1e-30)


class _Surgeon:
    """One consumer's H⁻¹ and weights, brought down as places go."""

    def __init__(self, consumer: Consumer, channels: ChannelMoments, size: int) -> None:
        second = channels.second
        damping = DAMPING * max(float(np.mean(np.diag(second))), 1e-12)
        self.inverse = np.linalg.inv(second + damping * np.eye(len(second)))
        self.weight = np.sqrt(np.diag(second))[:, None] if consumer.weight is None else consumer.weight.copy()
        if self.weight.shape[1] > len(second):  # only W Wᵀ counts: a smaller factor of it does as well
            values, vectors = np.linalg.eigh(self.weight @ self.weight.T)
            self.weight = vectors * np.sqrt(np.maximum(values, 0))
        energy = float(np.einsum("cr,cd,dr->", self.weight, second, self.weight, optimize=True))
        self.share = 1 / max(energy, 1e-30)
        self.blocks = [np.flatnonzero(consumer.places == place) for place in range(size)]
        self.single = all(len(block) == 1 for block in self.blocks)
        self.first = np.array([block[0] if len(block) else -1 for block in self.blocks])

    def scores(self, alive: Index) -> F64:
        """What every place that is left would cost."""
        if self.single:
            at = self.first[alive]
            lost: F64 = (self.weight[at] ** 2).sum(axis=1) / np.maximum(np.diag(self.inverse)[at], 1e-30)
            return self.share * lost
        found = np.zeros(len(alive))
        for number, place in enumerate(alive):
            block = self.blocks[place]
            if len(block):
                inverse = self.inverse[np.ix_(block, block)]
                found[number] = np.sum(self.weight[block] * np.linalg.solve(inverse, self.weight[block]))
        return self.share * found

    def remove(self, place: int) -> None:
        """The others make up for it, and it is gone from H."""
        block = self.blocks[place]
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


def _greedy(size: int, surgeons: Sequence[_Surgeon], least: int) -> Index:
    alive = np.arange(size)
    order: list[int] = []
    scores = np.zeros(size)
    while len(alive) > max(least, 1):
        scores = sum((surgeon.scores(alive) for surgeon in surgeons), np.zeros(len(alive)))
        worst = int(np.argmin(scores))
        order.append(int(alive[worst]))
        for surgeon in surgeons:
            surgeon.remove(order[-1])
        alive, scores = np.delete(alive, worst), np.delete(scores, worst)
    return np.array([*order, *alive[np.argsort(scores, kind="stable")]], np.intp)


def makers(model: ir.Model, found: Layout, group: Group) -> dict[str, F64]:
    """By parameter, [size, R]: the weights that make the places of a group."""
    result: dict[str, F64] = {}
    values = {str(value.name): value for value in model.graph.initializers.values()}
    for member in group.members:
        array = query.float_array(values.get(member.parameter))
        if member.makes and array is not None and array.ndim > 1:
            place = leaf_positions(found.axes[values[member.parameter]][member.axis], group.leaf)
            rows = np.moveaxis(array, member.axis, 0).reshape(len(place), -1)
            total = np.zeros((group.size, rows.shape[1]))
            np.add.at(total, place[place >= 0], np.abs(rows[place >= 0]))
            result[member.parameter] = total
    return result


def fold(weight: F64, second: F64, kept: Index) -> F64:
    """The kept rows of W [C, R], changed so that W x stays as it was in the least squares' sense.

    W_S + Σ_SS⁻¹ Σ_SP W_P: what the kept places tell of the others goes into their weights.
    """
    gone = np.setdiff1d(np.arange(len(weight)), kept)
    inner = second[np.ix_(kept, kept)]
    inner = inner + DAMPING * max(float(np.mean(np.diag(inner))), 1e-12) * np.eye(len(kept))
    return np.asarray(weight[kept] + np.linalg.solve(inner, second[np.ix_(kept, gone)] @ weight[gone]))


def needed(read: Iterable[Consumer]) -> set[tuple[str, int]]:
    """The (tensor, axis) pairs whose moments the consumers ask for."""
    return {(consumer.reads, consumer.axis) for consumer in read}
