"""Pruning masks: single weights, N of every M, or whole channels are zero while the rest is trained.

Amount       s(t) = s (1 - (1 - t)³), t: the elapsed fraction of the pruning period (Zhu and Gupta 2017, arXiv
             1710.01878): fast at first, when many weights are dispensable. Without a period, everything at once.
Criterion    magnitude   the smallest. Layers differ in scale, so w² is divided by the sum of all w'² of its tensor that
                         are at least as large (LAMP, Lee et al. 2021, arXiv 2010.07611). Channels: by the mean w² of
                         their producers times the mean w² of their consumers, since a factor may move from one to the
                         other; the same share of every group. The scale of a batch normalization stands for the weights
                         in front of it.
             threshold   weights below `amount` root mean squares of their tensor (Han et al. 2015, arXiv 1506.02626)
             random      the control
             l1, l2      magnitude, after a regularizer has reduced the dispensable weights by a proximal step:
                           l1   w ← sign(w) max(|w| - ηλr, 0)            r: root mean square of the tensor
                           l2   w ← w / (1 + ηλ)                         of channels, the group lasso (Wen et al. 2016,
                           l2   w_c ← w_c max(0, 1 - ηλr / rms(w_c))     arXiv 1608.03665), which removes whole ones;
                         for normalized channels, on their scales (Liu et al. 2017, arXiv 1708.06519)
Revival      a masked weight still gets its gradient, and returns if it has grown (Lin et al. 2020, arXiv 2006.07253);
             without revival a masked weight stays masked.

Channels come from the groups that can only be cut together. A channel is masked in its *consumers*: with zeros in its
own weights, its bias and f(0) would still reach them. So masking equals cutting, and the graph can be cut afterwards.
"""

from __future__ import annotations

import logging
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

    from toolchain.training.engine.torch_graph import Transforms

LOGGER = logging.getLogger(__name__)

MaskCriterion = Literal["magnitude", "threshold", "random", "l1", "l2"]
MASK_UPDATES = 100
"""Largest number of times that masks change during a training."""
MIN_KEPT_CHANNELS = 0.1
"""Smallest share of a group's channels that is kept."""


@dataclass(frozen=True)
class WeightAxis:
    """An axis of a weight along which the channels of a group lie.

    Attributes:
        weight: name of the initializer.
        axis: counted from the front.
        owner: channel at each position of the axis, -1 where there is none of the group.
        trailing: number of axes behind this one.
        is_norm_scale: the weight is the scale of a batch normalization.
    """

    weight: str
    axis: int
    owner: Index
    trailing: int
    is_norm_scale: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: name of the group.
        size: number of channels.
        producers: the weight axes that make the channels.
        consumers: the weight axes that are summed over them.
    """

    name: str
    size: int
    producers: tuple[WeightAxis, ...]
    consumers: tuple[WeightAxis, ...]

    def magnitude_axes(self, weights: Weights) -> list[WeightAxis]:
        """Return the weights that tell how large the channels are: scales where they are normalized."""
        scales = [axis for axis in self.producers if axis.is_norm_scale and axis.weight in weights]
        return scales or _matrices(self.producers, weights)


@dataclass(frozen=True)
class MaskConfig:
    """Amount, criterion and schedule of pruning.

    Attributes:
        amount: share of zeros; for the criterion threshold, the number of root mean squares below which weights go.
        criterion: see the module.
        begin: fraction of the training from which the amount rises.
        end: fraction of the training at which the amount is reached; equal to `begin`: at once.
        strength: λ of the regularizers, which act until `begin`.
        revive: masked weights may return.
        multiple: the number of kept channels is a multiple of it, in groups that have as many.
        seed: for the criterion random.
    """

    amount: float
    criterion: MaskCriterion = "magnitude"
    begin: float = 0.0
    end: float = 0.0
    strength: float = 0.2
    revive: bool = False
    multiple: int = 1
    seed: int = 0

    def amount_at(self, share: float) -> float:
        """Compute the amount at a fraction of the training."""
        if share >= self.end or share < self.begin:
            return self.amount if share >= self.end else 0.0
        elapsed = (share - self.begin) / (self.end - self.begin)
        return self.amount * (1 - (1 - elapsed) ** 3)


class PruningMasks(Technique):
    """Zeros in weights.

    Args:
        targets: names of weights, which are pruned entry by entry; or groups, which are pruned channel by channel.
        config: amount, criterion and schedule.
        pattern: (n, m): n of every m consecutive entries along an axis are kept. For weights only; `config.amount` is
            not used then.
        axes: the axis that is summed over, by weight.
    """

    def __init__(
        self,
        targets: Sequence[str] | Sequence[ChannelGroup],
        config: MaskConfig,
        *,
        pattern: tuple[int, int] | None = None,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        self.config, self.target_share, self.revives = config, max(config.begin, config.end), config.revive
        self._groups = [group for group in targets if isinstance(group, ChannelGroup)]
        self._names = [name for name in targets if isinstance(name, str)]
        self._pattern, self._axes = pattern, axes or {}
        self._kept: dict[str, Tensor] = {}
        self._update = -1

    @property
    def kept(self) -> dict[str, Tensor]:
        """Bool tensors, True for what is kept: by weight in its shape, or by group [size]."""
        return self._kept

    def transforms(self) -> Transforms:
        """Multiply weights with their masks."""
        return {name: self._masking(mask) for name, mask in self._masks().items()}

    def _masking(self, mask: Tensor) -> Callable[[Tensor], Tensor]:
        if not self.config.revive:
            return lambda weight: weight * mask
        return lambda weight: weight + (weight * mask - weight).detach()

    def _masks(self) -> dict[str, Tensor]:
        """Return masks of zeros and ones by weight, in shapes that broadcast to it."""
        masks: dict[str, Tensor] = {name: kept.float() for name, kept in self._kept.items() if name in self._names}
        for group in self._groups:
            for axis in group.consumers if group.name in self._kept else ():
                mask = _spread(self._kept[group.name].float(), axis)
                masks[axis.weight] = masks[axis.weight] * mask if axis.weight in masks else mask
        return masks

    def advance(self, weights: Weights, share: float) -> None:
        """Choose masks again if more has to be pruned by now."""
        update = int(share * MASK_UPDATES)
        reached = share > self.target_share and self._update >= self.target_share * MASK_UPDATES
        if update == self._update or (reached and not self.config.revive):
            return
        self._update = update
        amount = self.config.amount_at(share)
        if amount > 0:
            scores = self._scores(weights)
            if self._pattern is not None:
                self._kept = {name: self._patterned(name, score, share) for name, score in scores.items()}
            else:
                self._kept = self._chosen(scores, amount)
            total = sum(kept.numel() for kept in self._kept.values())
            zeros = total - sum(int(kept.sum()) for kept in self._kept.values())
            LOGGER.debug("at %.0f %% of the training %d of %d are masked", 100 * share, zeros, total)

    def proximal(self, weights: Weights, rate: float) -> Weights:
        """Apply the regularizer, until there are masks."""
        import torch

        if self.config.criterion not in ("l1", "l2") or self._kept:
            return {}
        step = rate * self.config.strength
        moved: dict[str, Tensor] = {}
        for name in self._names or {a.weight for g in self._groups for a in g.magnitude_axes(weights)}:
            weight = weights[name]
            if self.config.criterion == "l1":
                moved[name] = torch.sign(weight) * (weight.abs() - step * _rms(weight)).clamp_min(0)
            elif self._names:
                moved[name] = weight / (1 + step)
        if self.config.criterion == "l2":
            for group in self._groups:
                axes = group.magnitude_axes(weights)
                size = _energy(group.size, axes, weights).sqrt().clamp_min(1e-12)
                shrunk = (1 - step * size.square().mean().sqrt() / size).clamp_min(0)
                for axis in axes:
                    moved[axis.weight] = moved.get(axis.weight, weights[axis.weight]) * _spread(shrunk, axis)
        return moved

    def state(self) -> dict[str, Any]:
        """Return the masks."""
        return {"kept": dict(self._kept), "update": self._update}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the masks."""
        self._kept, self._update = dict(state["kept"]), state["update"]

    def _scores(self, weights: Weights) -> dict[str, Tensor]:
        """Score weights or channels: not negative, except -1 for those that must stay masked."""
        import torch

        if self.config.criterion == "random":
            drawn = np.random.default_rng(self.config.seed)
            sizes = {group.name: (group.size,) for group in self._groups}
            sizes |= {name: tuple(weights[name].shape) for name in self._names}
            scores = {name: torch.from_numpy(drawn.random(size)) for name, size in sizes.items()}
        else:
            scores = {
                group.name: _energy(group.size, group.magnitude_axes(weights), weights)
                * _energy(group.size, _matrices(group.consumers, weights), weights)
                for group in self._groups
            }
            scores |= {name: weights[name].detach().square() for name in self._names}
        if not self.config.revive:
            for name, kept in self._kept.items():
                scores[name] = torch.where(kept, scores[name], -torch.ones_like(scores[name]))
        return scores

    def _chosen(self, scores: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
        """Choose what is kept when this amount is pruned."""
        import torch

        if self.config.criterion == "threshold":
            kept = {name: score >= amount**2 * score.clamp_min(0).mean() for name, score in scores.items()}
            return {n: self._round_channels(scores[n], k) for n, k in kept.items()} if self._groups else kept
        # The same share of every group, since a group with too few channels limits all operators behind it.
        if self._groups:
            ranks = {name: score.argsort(dim=-1, stable=True).argsort(dim=-1) for name, score in scores.items()}
            return {n: self._round_channels(rank, rank >= round(amount * len(rank))) for n, rank in ranks.items()}
        scaled = {n: score if self.config.criterion == "random" else lamp_scores(score) for n, score in scores.items()}
        ranked = torch.cat([score.flatten() for score in scaled.values()])
        pruned = round(amount * len(ranked))
        limit = ranked.kthvalue(pruned).values if pruned else ranked.min() - 1
        return {name: score > limit for name, score in scaled.items()}

    def _round_channels(self, scores: Tensor, kept: Tensor) -> Tensor:
        """Keep enough channels, and a multiple in groups that have as many."""
        import torch

        size, multiple = len(kept), self.config.multiple
        count = max(int(kept.sum()), round(MIN_KEPT_CHANNELS * size), 1)
        if size >= multiple:
            count = min(size, max(multiple, round(count / multiple) * multiple))
        stay = torch.zeros(size, dtype=torch.bool)
        stay[scores.argsort(dim=-1, descending=True, stable=True)[:count]] = True
        return stay

    def _patterned(self, name: str, score: Tensor, share: float) -> Tensor:
        """Keep N of every M along the summed axis, more of them before the end of the period.

        Entries that do not fill a block of M are all kept.
        """
        import torch

        assert self._pattern is not None
        n, m = self._pattern
        stay = m - int((m - n) * self.config.amount_at(share) / self.config.amount)
        moved = score.movedim(self._axes.get(name, 1), -1)
        whole = moved.shape[-1] // m * m
        blocks = moved[..., :whole].reshape(*moved.shape[:-1], -1, m)
        rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        kept = torch.ones(moved.shape, dtype=torch.bool)
        kept[..., :whole] = (rank < stay).reshape(*moved.shape[:-1], whole)
        return kept.movedim(-1, self._axes.get(name, 1))

    def finish(self, model: ir.Model) -> ir.Model:
        """Write the zeros into the weights; those of channels into the weights of their consumers."""
        for name, mask in self._masks().items():
            value = model.graph.initializers[name]
            masked = query.float_array(value) * mask.numpy()
            value.const_value = ir.tensor(masked, name=name)
        return model


def lamp_scores(score: Tensor) -> Tensor:
    """Divide each score by the sum of all scores that are at least as large, in its own shape.

    Negative scores stay as they are.
    """
    flat = score.flatten()
    ordered, places = flat.clamp_min(0).sort(stable=True)
    above = ordered.flip(0).cumsum(0).flip(0)
    share = flat.clone()
    share[places] = ordered / above.clamp_min(1e-20)
    return share.where(flat >= 0, flat).reshape(score.shape)


def _matrices(axes: Sequence[WeightAxis], weights: Weights) -> list[WeightAxis]:
    return [axis for axis in axes if axis.weight in weights and weights[axis.weight].ndim > 1]


def _energy(size: int, axes: Sequence[WeightAxis], weights: Weights) -> Tensor:
    """Compute the mean square of each channel's weights relative to their tensor, float32 [size].

    The result is the sum over the tensors; 1 where there are none.
    """
    import torch

    total = torch.zeros(size) if axes else torch.ones(size)
    for axis in axes:
        weight = weights[axis.weight].detach()
        rows = weight.square().movedim(axis.axis, 0).flatten(1) if weight.ndim > 1 else weight.square()[:, None]
        relative = rows.mean(1) / weight.square().mean().clamp_min(1e-20)
        inside = torch.from_numpy(axis.owner >= 0)
        owner = torch.from_numpy(axis.owner[axis.owner >= 0])
        count = torch.zeros(size).index_add_(0, owner, torch.ones(len(owner)))
        total += torch.zeros(size).index_add_(0, owner, relative[inside]) / count.clamp_min(1)
    return total


def _rms(weight: Tensor) -> Tensor:
    return weight.square().mean().sqrt()


def _spread(values: Tensor, axis: WeightAxis) -> Tensor:
    """Lay out values of channels, [channels], along the axis of a weight, to broadcast; 1 where there is no channel."""
    import torch

    row = torch.cat([values, torch.ones(1)])[torch.from_numpy(axis.owner)]  # -1 is the last
    return row.reshape(-1, *[1] * axis.trailing)
