"""`FakeQuant`: a student computes with the very numbers its int8 file will have, and learns to live with them.

Readers of a tensor get it rounded; gradients pass as if it were not (straight-through, Bengio et al. 2013, arXiv
1308.3432), and scales learn as well (learned step size quantization, Esser et al. 2020, arXiv 1902.08153):

Activations   x̂ = s (q - z)    q = clip(round(x / s) + z, 0, 255)
              ∂x̂/∂x = 1 where q is not clipped, else 0
              ∂x̂/∂s = (x̂ - x) / s where q is not clipped, else x̂ / s
Weights       ŵ = s q          q: what the exporter rounds w to at the scale s of its channel
              ∂ŵ/∂w = 1        also of a clipped weight, which could not come back otherwise
              ∂ŵ/∂s = (ŵ - w) / s where q = round(w / s), else ŵ / s
Biases        b̂ = s_x s_w round(b / (s_x s_w)), ∂b̂/∂b = 1

A scale is s₀ exp(θ), and θ is what learns: a step is a share of the scale, as a weight's is of its channel, and the
scale stays positive. Its gradient s ∂/∂s is divided by √(n Q), n the numbers of one sample (or of one channel of a
weight) and Q = 255 (127), so that scales, which sum over n, do not outweigh the rest.

What ties grids to each other is not known here: `aligned` moves scales to the nearest that may be exported. It is asked
after every step, so what is computed, and examined, is what can be written. Weights are rounded after every step, too,
once for all threads.

Scales could stay where the plan has put them while weights alone learn. But whether a range may be clipped is not seen
in a tensor, only in what comes of it: where scales learn, too, outputs come up to 3 dB nearer to the teacher's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32, I8
from toolchain.training.engine.technique import Technique, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.training.engine.torch_graph import Through

LEVELS, TOP = 255, 127


@dataclass(frozen=True)
class Grid:
    """Of activations: real = scale · (q - zero_point), q in 0..255.

    learned: its scale may change. most: and be so large.
    """

    scale: float
    zero_point: int
    learned: bool = True
    most: float = float("inf")


@dataclass(frozen=True)
class QuantizedProduct:
    """Of an operator with integer weights.

    weight, bias: names of the student's initializers. source: the grid of what is multiplied.
    scales: float32 [channels]. axis: of the weight, the channels.
    rounded: from a weight and its scales to integers, as the exporter does it.
    """

    weight: str
    bias: str | None
    source: str
    scales: F32
    axis: int
    rounded: Callable[[F32, F32], I8]


@dataclass(frozen=True)
class _Rounded:
    """A product's constants as the file will have them. weight: ŵ. slope: ∂ŵ/∂θ. bias: b̂, or None."""

    integers: I8
    scales: F32
    weight: Tensor
    slope: Tensor
    bias: Tensor | None


Aligned = Callable[[Mapping[str, float]], "Mapping[str, float] | None"]
"""From scales by grid to the nearest that may be exported; None where there are none, and scales stay as they were."""


class FakeQuant(Technique):
    """Rounds what the int8 file rounds, and learns the scales.

    Args:
        tensors: names of the student's tensors that are rounded, each with its grid.
        grids: by name; several tensors may share one.
        products: the integer weights; no two share an initializer.
        aligned: keeps scales such that they may be exported.
        learn_weight_scales: the weights' scales learn as well.
    """

    def __init__(
        self,
        tensors: Mapping[str, str],
        grids: Mapping[str, Grid],
        products: Sequence[QuantizedProduct],
        aligned: Aligned = dict,
        *,
        learn_weight_scales: bool = True,
    ) -> None:
        import torch

        self._tensors, self._first, self._products, self._aligned = dict(tensors), dict(grids), list(products), aligned
        self._scales = {name: grid.scale for name, grid in grids.items()}
        self._rounded: dict[str, _Rounded] = {}
        self._moves = {
            name: torch.zeros((), requires_grad=True) for name in dict.fromkeys(tensors.values()) if grids[name].learned
        }
        learnt = self._products if learn_weight_scales else []
        self._weight_moves = {p.weight: torch.zeros(len(p.scales), requires_grad=True) for p in learnt}

    def grids(self) -> dict[str, Grid]:
        """As they are now, by name."""
        return {name: replace(grid, scale=self._scales[name]) for name, grid in self._first.items()}

    def integers(self, weight: str) -> tuple[I8, F32]:
        """Of a weight as it is now: int8 in its shape, and float32 scales [channels]."""
        return self._rounded[weight].integers, self._rounded[weight].scales

    def parameters(self) -> dict[str, Tensor]:
        """Every θ."""
        grids = {f"log scale of {name}": move for name, move in self._moves.items()}
        return grids | {f"log scales of {name}": move for name, move in self._weight_moves.items()}

    def through(self) -> Through:
        """Tensors on their grids, weights and biases as integers stand for them."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, source in self._tensors.items():
            scale, zero = self._scales[source], self._first[source].zero_point
            found[name] = functools.partial(on_grid, scale=scale, zero_point=zero, move=self._moves.get(source))
        for product in self._products:
            now = self._rounded[product.weight]
            move = self._weight_moves.get(product.weight)
            if move is not None:
                move = _along(move, product.axis, now.weight.ndim)
            found[product.weight] = functools.partial(_instead, now.weight, now.slope, move)
            if product.bias is not None and now.bias is not None:
                found[product.bias] = functools.partial(_instead, now.bias, None, None)
        return found

    def advance(self, weights: Weights, share: float) -> None:
        """Round anew: scales to what may be exported, weights to integers."""
        moved = {name: float(move.detach()) for name, move in self._moves.items()}
        if any(moved.values()):  # else they are those that were given
            wanted = {
                name: float(np.float32(min(grid.scale * exp(moved.get(name, 0.0)), grid.most)))
                for name, grid in self._first.items()
            }
            found = self._aligned(wanted)
            self._scales = self._scales if found is None else {**self._scales, **found}
        for product in self._products:
            self._rounded[product.weight] = self._round(product, weights)

    def _round(self, product: QuantizedProduct, weights: Weights) -> _Rounded:
        import torch

        weight = weights[product.weight].detach().numpy()
        move = self._weight_moves.get(product.weight)
        scales = product.scales
        if move is not None:
            scales = (scales * np.exp(move.detach().numpy())).astype(np.float32)
        integers = product.rounded(weight, scales)
        known = None
        if product.bias is not None:
            bias, steps = weights[product.bias].detach().numpy(), np.float32(self._scales[product.source]) * scales
            known = torch.from_numpy((np.rint(bias.astype(np.float64) / steps) * steps).astype(np.float32))
        wide = scales.reshape([-1 if axis == product.axis else 1 for axis in range(weight.ndim)])
        real = integers * wide
        free = integers == np.rint(weight / wide)
        slope = (real - weight * free) / np.float32(sqrt(weight.size / len(scales) * TOP))
        return _Rounded(integers, scales, torch.from_numpy(real), torch.from_numpy(slope), known)

    def state(self) -> dict[str, Any]:
        """Scales and rounded weights."""
        return {"scales": dict(self._scales), "rounded": dict(self._rounded)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take those of another."""
        self._scales, self._rounded = dict(state["scales"]), dict(state["rounded"])

    def finish(self, model: ir.Model) -> ir.Model:
        """With the weights and biases that integers stand for."""
        for product in self._products:
            now = self._rounded[product.weight]
            for name, tensor in ((product.weight, now.weight), (product.bias, now.bias)):
                if name is not None and tensor is not None:
                    model.graph.initializers[name].const_value = ir.tensor(tensor.numpy().copy(), name=name)
        return model


def on_grid(x: Tensor, scale: float, zero_point: int, move: Tensor | None = None) -> Tensor:
    """X rounded to a grid; see the module.

    Args:
        x: float32 [samples, ...].
        scale: of the grid, as a file has it.
        zero_point: 0..255.
        move: θ, a scalar that gets its gradient; None where the scale does not learn.
    """
    import torch

    rounded: Tensor = _rounding().apply(x, torch.zeros(()) if move is None else move, scale, zero_point)
    return rounded


@functools.cache
def _rounding() -> Any:
    """The function and its gradients, in few passes: composed of torch's own it takes five times as long, as much as a
    small convolution.
    """
    import torch

    class Rounding(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not read
        @staticmethod
        def forward(ctx: Any, x: Tensor, move: Tensor, scale: float, zero_point: int) -> Tensor:
            # A division, as QuantizeLinear has it: times 1 / s, ties fall otherwise.
            rounded = (x / scale).round_().clamp_(-zero_point, LEVELS - zero_point).mul_(scale)
            ctx.save_for_backward(x, rounded)
            ctx.ends = (-zero_point - 0.5) * scale, (LEVELS - zero_point + 0.5) * scale
            return rounded

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
            x, rounded = ctx.saved_tensors
            low, high = ctx.ends
            passed = gradient * ((x >= low) & (x <= high))
            slope = None
            if ctx.needs_input_grad[1]:
                total = torch.dot(gradient.flatten(), rounded.flatten()) - torch.dot(passed.flatten(), x.flatten())
                slope = total / sqrt(x.numel() / len(x) * LEVELS)
            return passed, slope, None, None

    return Rounding


def _instead(known: Tensor, slope: Tensor | None, move: Tensor | None, given: Tensor) -> Tensor:
    """`known`, with the gradients of what was given and of θ: terms that are zero, but change with them."""
    found = known + (given - given.detach())
    return found if slope is None or move is None else found + slope * (move - move.detach())


def _along(move: Tensor, axis: int, rank: int) -> Tensor:
    return move.reshape([-1 if i == axis else 1 for i in range(rank)])
