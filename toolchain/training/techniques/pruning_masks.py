"""`Masked`: single weights, N of every M, or whole channels are zero while the rest learns.

How many     s(t) = s (1 - (1 - t)³) of t, the part of the pruning's time that has passed (Zhu and Gupta 2017, arXiv
             1710.01878): fast at first, while there is much to spare. Without time, all at once.
Which        magnitude   the smallest. Layers differ in scale, so w² is set against the sum of all w'² of its tensor
                         that are no smaller (LAMP, Lee et al. 2021, arXiv 2010.07611). Channels: by mean w² of what
                         makes them times mean w² of what reads them, since a factor may move from one to the other;
                         the same share of every group. A batch normalization's scale stands for what is in front
             threshold   those below so many root mean squares of their tensor (Han et al. 2015, arXiv 1506.02626)
             random      the control
             l1, l2      magnitude, after a regularizer has pushed the useless ones down, by a proximal step:
                           l1   w ← sign(w) max(|w| - ηλr, 0)            r: root mean square of the tensor
                           l2   w ← w / (1 + ηλ)                         of channels, the group lasso (Wen et al. 2016,
                           l2   w_c ← w_c max(0, 1 - ηλr / rms(w_c))     arXiv 1608.03665), which takes whole ones;
                         of normalized channels, their scales (Liu et al. 2017, arXiv 1708.06519)
Revival      what is masked still gets its gradient, and comes back where it has grown (Lin et al. 2020, arXiv
             2006.07253); otherwise what has gone stays gone.

Channels are those that the graph's groups cut together. A channel is masked where it is *read*: with a zero in its own
weights its bias, and f(0), would leak through. So masking is cutting, and the graph can be cut afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import Index
from toolchain.graph import query
from toolchain.training.engine.technique import Technique, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.training.engine.torch_graph import Through

Criterion = Literal["magnitude", "threshold", "random", "l1", "l2"]
TICKS = 100
"""A schedule has so many steps at most; between them masks do not change."""
FEWEST = 0.1
"""Of a group's channels, so many stay."""


@dataclass(frozen=True)
class Slot:
    """An axis of a weight that a group of channels is a part of. owner: the channel of each place, -1 where there is
    none. behind: how many axes follow. gain: it is the scale of a batch normalization.
    """

    weight: str
    axis: int
    owner: Index
    behind: int
    gain: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """A group of channels that are cut together. made: the axes that make them; read: those that sum over them."""

    name: str
    size: int
    made: tuple[Slot, ...]
    read: tuple[Slot, ...]

    def sizing(self, weights: Weights) -> list[Slot]:
        """What says how large the channels are: weights, but scales where they are normalized."""
        gains = [slot for slot in self.made if slot.gain and slot.weight in weights]
        return gains or _matrices(self.made, weights)


@dataclass(frozen=True)
class Ask:
    """What is to go. amount: the share of zeros; for the threshold, the root mean squares below which weights go.
    begin, end: the shares of the training between which it goes; equal: at once. strength: λ of the regularizers, which
    act until `begin`. multiple: channels are left in multiples of it, where there are as many.
    """

    amount: float
    criterion: Criterion = "magnitude"
    begin: float = 0.0
    end: float = 0.0
    strength: float = 0.2
    revive: bool = False
    multiple: int = 1
    seed: int = 0

    def now(self, share: float) -> float:
        """How much has gone at a share of the training."""
        if share >= self.end or share < self.begin:
            return self.amount if share >= self.end else 0.0
        passed = (share - self.begin) / (self.end - self.begin)
        return self.amount * (1 - (1 - passed) ** 3)


class Masked(Technique):
    """Zeros in weights.

    Args:
        what: names of weights, whose entries go one by one; or channels, which go as a whole.
        ask: how many, which and when.
        pattern: (n, m): of every m consecutive entries along an axis, n stay. Entries only; `ask.amount` is then set
            aside. axes: by weight, the axis that is summed over.
    """

    def __init__(
        self,
        what: Sequence[str] | Sequence[ChannelGroup],
        ask: Ask,
        *,
        pattern: tuple[int, int] | None = None,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        self.ask, self.settled, self.revives = ask, max(ask.begin, ask.end), ask.revive
        self._channels = [group for group in what if isinstance(group, ChannelGroup)]
        self._names = [name for name in what if isinstance(name, str)]
        self._pattern, self._axes = pattern, axes or {}
        self._kept: dict[str, Tensor] = {}
        self._tick = -1

    @property
    def kept(self) -> dict[str, Tensor]:
        """What stays, as bool tensors: by weight in its shape, or by group [size]."""
        return self._kept

    def through(self) -> Through:
        """Weights without what is masked."""
        return {name: self._masking(mask) for name, mask in self._masks().items()}

    def _masking(self, mask: Tensor) -> Callable[[Tensor], Tensor]:
        if not self.ask.revive:
            return lambda weight: weight * mask
        return lambda weight: weight + (weight * mask - weight).detach()

    def _masks(self) -> dict[str, Tensor]:
        """By weight, of zeros and ones, in shapes that fit."""
        masks: dict[str, Tensor] = {name: kept.float() for name, kept in self._kept.items() if name in self._names}
        for group in self._channels:
            for slot in group.read if group.name in self._kept else ():
                mask = _spread(self._kept[group.name].float(), slot)
                masks[slot.weight] = masks[slot.weight] * mask if slot.weight in masks else mask
        return masks

    def advance(self, weights: Weights, share: float) -> None:
        """Choose anew, where more has to go by now."""
        tick = int(share * TICKS)
        if tick == self._tick or (share > self.settled and self._tick >= self.settled * TICKS and not self.ask.revive):
            return
        self._tick = tick
        amount = self.ask.now(share)
        if amount > 0:
            scores = self._scores(weights)
            if self._pattern is not None:
                self._kept = {name: self._patterned(name, score, share) for name, score in scores.items()}
            else:
                self._kept = self._chosen(scores, amount)

    def proximal(self, weights: Weights, rate: float) -> Weights:
        """The regularizer, until masks take its place."""
        import torch

        if self.ask.criterion not in ("l1", "l2") or self._kept:
            return {}
        step = rate * self.ask.strength
        moved: dict[str, Tensor] = {}
        for name in self._names or {s.weight for g in self._channels for s in g.sizing(weights)}:
            weight = weights[name]
            if self.ask.criterion == "l1":
                moved[name] = torch.sign(weight) * (weight.abs() - step * _rms(weight)).clamp_min(0)
            elif self._names:
                moved[name] = weight / (1 + step)
        if self.ask.criterion == "l2":
            for group in self._channels:
                slots = group.sizing(weights)
                size = _energy(group.size, slots, weights).sqrt().clamp_min(1e-12)
                shrunk = (1 - step * size.square().mean().sqrt() / size).clamp_min(0)
                for slot in slots:
                    moved[slot.weight] = moved.get(slot.weight, weights[slot.weight]) * _spread(shrunk, slot)
        return moved

    def state(self) -> dict[str, Any]:
        """The masks."""
        return {"kept": dict(self._kept), "tick": self._tick}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the masks of another."""
        self._kept, self._tick = dict(state["kept"]), state["tick"]

    def _scores(self, weights: Weights) -> dict[str, Tensor]:
        """How much each is worth, not negative; what has gone for good is worth less than nothing."""
        import torch

        if self.ask.criterion == "random":
            drawn = np.random.default_rng(self.ask.seed)
            sizes = {group.name: (group.size,) for group in self._channels}
            sizes |= {name: tuple(weights[name].shape) for name in self._names}
            scores = {name: torch.from_numpy(drawn.random(size)) for name, size in sizes.items()}
        else:
            scores = {
                group.name: _energy(group.size, group.sizing(weights), weights)
                * _energy(group.size, _matrices(group.read, weights), weights)
                for group in self._channels
            }
            scores |= {name: weights[name].detach().square() for name in self._names}
        if not self.ask.revive:
            for name, kept in self._kept.items():
                scores[name] = torch.where(kept, scores[name], -torch.ones_like(scores[name]))
        return scores

    def _chosen(self, scores: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
        """What stays when so much has gone."""
        import torch

        if self.ask.criterion == "threshold":
            kept = {name: score >= amount**2 * score.clamp_min(0).mean() for name, score in scores.items()}
            return {n: self._whole(scores[n], k) for n, k in kept.items()} if self._channels else kept
        if self._channels:  # the same share of every group: one that is cut to the bone starves all behind it
            ranks = {name: score.argsort(dim=-1, stable=True).argsort(dim=-1) for name, score in scores.items()}
            return {name: self._whole(rank, rank >= round(amount * len(rank))) for name, rank in ranks.items()}
        worth = {name: score if self.ask.criterion == "random" else lamp(score) for name, score in scores.items()}
        ranked = torch.cat([score.flatten() for score in worth.values()])
        gone = round(amount * len(ranked))
        limit = ranked.kthvalue(gone).values if gone else ranked.min() - 1
        return {name: score > limit for name, score in worth.items()}

    def _whole(self, worth: Tensor, kept: Tensor) -> Tensor:
        """Enough channels, in a multiple where there are as many."""
        import torch

        size, multiple = len(kept), self.ask.multiple
        count = max(int(kept.sum()), round(FEWEST * size), 1)
        if size >= multiple:
            count = min(size, max(multiple, round(count / multiple) * multiple))
        stay = torch.zeros(size, dtype=torch.bool)
        stay[worth.argsort(dim=-1, descending=True, stable=True)[:count]] = True
        return stay

    def _patterned(self, name: str, score: Tensor, share: float) -> Tensor:
        """N of every M along the summed axis; on the way there, fewer have gone. An odd rest stays whole."""
        import torch

        assert self._pattern is not None
        n, m = self._pattern
        stay = m - int((m - n) * self.ask.now(share) / self.ask.amount)
        moved = score.movedim(self._axes.get(name, 1), -1)
        whole = moved.shape[-1] // m * m
        blocks = moved[..., :whole].reshape(*moved.shape[:-1], -1, m)
        rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = torch.ones(moved.shape, dtype=torch.bool)
        kept[..., :whole] = (rank < stay).reshape(*moved.shape[:-1], whole)
        return kept.movedim(-1, self._axes.get(name, 1))

    def finish(self, model: ir.Model) -> ir.Model:
        """With the zeros in its weights; of channels, where they are read."""
        for name, mask in self._masks().items():
            value = model.graph.initializers[name]
            masked = query.float_array(value) * mask.numpy()
            value.const_value = ir.tensor(masked, name=name)
        return model


def lamp(score: Tensor) -> Tensor:
    """Each against the sum of all that are no smaller, in its own shape; what is negative stays so."""
    flat = score.flatten()
    ordered, places = flat.clamp_min(0).sort(stable=True)
    above = ordered.flip(0).cumsum(0).flip(0)
    share = flat.clone()
    share[places] = ordered / above.clamp_min(1e-20)
    return share.where(flat >= 0, flat).reshape(score.shape)


def _matrices(slots: Sequence[Slot], weights: Weights) -> list[Slot]:
    return [slot for slot in slots if slot.weight in weights and weights[slot.weight].ndim > 1]


def _energy(size: int, slots: Sequence[Slot], weights: Weights) -> Tensor:
    """Mean square of each channel's weights, in units of their tensor: the mean over the tensors; 1 where there are
    none. float32 [size].
    """
    import torch

    total = torch.zeros(size) if slots else torch.ones(size)
    for slot in slots:
        weight = weights[slot.weight].detach()
        rows = weight.square().movedim(slot.axis, 0).flatten(1) if weight.ndim > 1 else weight.square()[:, None]
        worth = rows.mean(1) / weight.square().mean().clamp_min(1e-20)
        inside = torch.from_numpy(slot.owner >= 0)
        owner = torch.from_numpy(slot.owner[slot.owner >= 0])
        count = torch.zeros(size).index_add_(0, owner, torch.ones(len(owner)))
        total += torch.zeros(size).index_add_(0, owner, worth[inside]) / count.clamp_min(1)
    return total


def _rms(weight: Tensor) -> Tensor:
    return weight.square().mean().sqrt()


def _spread(values: Tensor, slot: Slot) -> Tensor:
    """A value for every channel, [channels], along the axis of a weight; 1 where there is no channel. Broadcasts."""
    import torch

    row = torch.cat([values, torch.ones(1)])[torch.from_numpy(slot.owner)]  # -1 is the last
    return row.reshape(-1, *[1] * slot.behind)
