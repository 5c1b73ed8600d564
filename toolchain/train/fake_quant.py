"""`FakeQuant`: a student computes with the rounding of int8 while it learns.

activation   x → s (clip(round(x / s) + z, 0, 255) - z)     gradient 1 inside the grid, 0 where it is clipped
weight       w → what the exporter would write for it       gradient 1 everywhere

(the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2017, arXiv 1712.05877). Rounding
ties to even, as QuantizeLinear does. Biases, whose int32 steps s_x s_w are far smaller, are rounded like weights, so
that what is trained is the int8 model but for the order in which float sums are added.

Grids do not learn, deliberately unlike learned step sizes (LSQ: Esser et al. 2019, arXiv 1902.08153): they come from a
plan that has put them where every processor rounds sums, averages and products alike, and a grid that moved a little
would end that. Weights have no such ties to others, so they, and biases, make good for what rounding does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolchain.train.technique import Technique, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.train.torch_graph import Through

Floats = npt.NDArray[np.float32]
Rounding = Callable[[Floats], Floats]
"""From a weight, float32 of any shape, to what its integers stand for, in the same shape."""

HIGHEST = 255


class FakeQuant(Technique):
    """Rounding of activations and weights.

    Args:
        activations: tensor name to scale and zero point, of unsigned bytes.
        weights: initializer name, of a weight or a bias, to how it is rounded; called once a step, on a copy.
    """

    def __init__(self, activations: Mapping[str, tuple[float, int]], weights: Mapping[str, Rounding]) -> None:
        self._roundings = dict(weights)
        self._rounded: dict[str, Tensor] = {}
        self._on_grid: Through = {
            name: partial(on_grid, scale=scale, zero=zero) for name, (scale, zero) in activations.items()
        }

    def through(self) -> Through:
        """Activations on their grids, weights as they were rounded last."""
        return {**self._on_grid, **{name: partial(_replaced, by=value) for name, value in self._rounded.items()}}

    def advance(self, weights: Weights, share: float) -> None:
        """Round anew."""
        import torch

        self._rounded = {
            name: torch.from_numpy(rounding(weights[name].detach().numpy().copy()))
            for name, rounding in self._roundings.items()
        }

    def state(self) -> dict[str, Any]:
        """The rounded weights."""
        return {"rounded": dict(self._rounded)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the rounded weights of another."""
        self._rounded = dict(state["rounded"])


def on_grid(x: Tensor, *, scale: float, zero: int) -> Tensor:
    """The nearest multiple of `scale` that a byte can tell, of a float32 tensor of any shape."""
    import torch

    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, HIGHEST)


def _replaced(weight: Tensor, *, by: Tensor) -> Tensor:
    """`by`, exactly, with the gradient of `weight`."""
    return by + (weight - weight.detach())
