"""Trainable weights in units of their own size, so that one learning rate fits all of them.

Where batch normalization was folded into a convolution, the weights of two channels may differ by a factor of a
thousand, but all steps of Adam have one size. Each weight is therefore written as

    w = w₀ + r d        w₀  the weight before training
                        r   the root mean square of its output channel
                        d   the variable that the optimizer changes

This is the same as a learning rate per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolchain.training.engine.torch_graph import TorchGraph

if TYPE_CHECKING:
    from torch import Tensor

MIN_UNIT = 0.1
"""Smallest unit of a channel, relative to the root mean square of the tensor: a channel of zeros can change, too."""
MIN_PRUNED_ZEROS = 0.1
"""A weight with at least this share of zeros counts as pruned. An all-zero tensor counts as uninitialised."""


@dataclass(frozen=True)
class ScaledWeights:
    """The trainable weights of a student, by initializer name.

    Attributes:
        start: w₀, float32.
        units: r, in a shape that broadcasts to the weight. 0 for single weights that must stay zero.
        moves: d, in the shape of the weight; leaf tensors that require gradients.
    """

    start: Mapping[str, Tensor]
    units: Mapping[str, Tensor]
    moves: Mapping[str, Tensor]

    def dense(self) -> dict[str, Tensor]:
        """Compute the current weights w₀ + r d, with gradients to `moves`."""
        return {name: self.start[name] + self.units[name] * move for name, move in self.moves.items()}

    def assign(self, name: str, weight: Tensor) -> None:
        """Set one weight to a given value; call it without gradients."""
        self.moves[name].copy_((weight - self.start[name]) / self.units[name].clamp_min(1e-30))


def scale_weights(graph: TorchGraph, *, revives: bool) -> ScaledWeights:
    """Express the weights of a graph in their own units, before the first step.

    Args:
        graph: the student.
        revives: single weights that were pruned before may become nonzero again; otherwise their unit is 0.
    """
    import torch

    start = {name: weight.detach().clone() for name, weight in graph.parameters.items()}
    units = {name: channel_units(weight) for name, weight in start.items()}
    if not revives:
        units |= {name: units[name] * (weight != 0) for name, weight in start.items() if _is_pruned(weight)}
    moves = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in start.items()}
    return ScaledWeights(start, units, moves)


def channel_units(weight: Tensor) -> Tensor:
    """Compute the root mean square of each output channel (axis 0), or of the whole tensor where it has one axis."""
    whole = weight.square().mean().sqrt()
    whole = whole if whole > 0 else whole + MIN_UNIT
    if weight.ndim < 2:
        return whole
    by_channel = weight.flatten(1).square().mean(1).sqrt().clamp_min(MIN_UNIT * float(whole))
    return by_channel.reshape(-1, *[1] * (weight.ndim - 1))


def _is_pruned(weight: Tensor) -> bool:
    return weight.ndim > 1 and MIN_PRUNED_ZEROS <= float((weight == 0).float().mean()) < 1
