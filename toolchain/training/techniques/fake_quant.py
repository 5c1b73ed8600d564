"""Fake quantization: during training the student computes with the numbers that its int8 file will have.

The readers of a tensor get it rounded. Gradients pass as if it were not rounded (straight-through, Bengio et al. 2013,
arXiv 1308.3432), and scales are trained as well (learned step size quantization, Esser et al. 2020, arXiv 1902.08153):

Activations   x̂ = s (q - z)    q = clip(round(x / s) + z, 0, 255)
              ∂x̂/∂x = 1 where q is not clipped, else 0
              ∂x̂/∂s = (x̂ - x) / s where q is not clipped, else x̂ / s
Weights       ŵ = s q          q: the integer that the exporter rounds w to, at the scale s of its channel
              ∂ŵ/∂w = 1        for clipped weights, too, because they could not return otherwise
              ∂ŵ/∂s = (ŵ - w) / s where q = round(w / s), else ŵ / s
Biases        b̂ = s_x s_w round(b / (s_x s_w)), ∂b̂/∂b = 1

A scale is s₀ exp(θ), and θ is trained: a step is relative to the scale, as that of a weight is relative to its channel,
and the scale stays positive. Its gradient s ∂/∂s is divided by √(n Q), where n is the number of elements in one sample
(or in one channel of a weight) and Q = 255 (127), so that scales, which sum over n, do not dominate.

This module does not know which scales have to be equal or exact. `align` moves scales to the nearest ones that can be
exported. It is called after every step, so every model that is evaluated can be written to a file. Weights are rounded
after every step as well, once for all threads.

Training the scales together with the weights brings the outputs up to 3 dB nearer to the teacher's: the effect of
clipping a range is only seen at the outputs, not in the tensor.
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

    from toolchain.training.engine.torch_graph import Transforms

ACTIVATION_MAX, WEIGHT_MAX = 255, 127
"""Largest quantized activation (of 0..255) and weight (of -127..127)."""


@dataclass(frozen=True)
class Grid:
    """Quantization of an activation: real = scale · (q - zero_point), q in 0..255.

    Attributes:
        scale: size of a step.
        zero_point: q of the number 0.
        learned: the scale is trained.
        max_scale: upper limit of a trained scale.
    """

    scale: float
    zero_point: int
    learned: bool = True
    max_scale: float = float("inf")


@dataclass(frozen=True)
class QuantizedProduct:
    """An operator with integer weights.

    Attributes:
        weight: name of the student's initializer.
        bias: name of the student's initializer; None: there is no bias.
        input_grid: name of the grid of its input.
        scales: scales of the weight, float32 [channels].
        axis: axis of the weight's channels.
        round_weight: rounds a weight at given scales to integers, as the exporter does.
    """

    weight: str
    bias: str | None
    input_grid: str
    scales: F32
    axis: int
    round_weight: Callable[[F32, F32], I8]


@dataclass(frozen=True)
class _RoundedProduct:
    """Constants of a product as the file will have them.

    Attributes:
        integers: q of the weight.
        scales: s of the weight, float32 [channels].
        weight: ŵ.
        slope: ∂ŵ/∂θ.
        bias: b̂; None where there is no bias.
    """

    integers: I8
    scales: F32
    weight: Tensor
    slope: Tensor
    bias: Tensor | None


Align = Callable[[Mapping[str, float]], "Mapping[str, float] | None"]
"""A function from scales by grid to the nearest ones that can be exported; None: none can, so the scales stay."""


class FakeQuant(Technique):
    """Rounds everything that the int8 file rounds, and trains the scales.

    Args:
        tensors: the grid of each of the student's tensors that is rounded, by name.
        grids: by name; several tensors may share one.
        products: operators with integer weights; no two share an initializer.
        align: moves scales to the nearest ones that can be exported.
        learn_weight_scales: train the scales of weights as well.
    """

    def __init__(
        self,
        tensors: Mapping[str, str],
        grids: Mapping[str, Grid],
        products: Sequence[QuantizedProduct],
        align: Align = dict,
        *,
        learn_weight_scales: bool = True,
    ) -> None:
        import torch

        self._tensors, self._first, self._products, self._align = dict(tensors), dict(grids), list(products), align
        self._scales = {name: grid.scale for name, grid in grids.items()}
        self._rounded: dict[str, _RoundedProduct] = {}
        self._moves = {
            name: torch.zeros((), requires_grad=True) for name in dict.fromkeys(tensors.values()) if grids[name].learned
        }
        trained = self._products if learn_weight_scales else []
        self._weight_moves = {p.weight: torch.zeros(len(p.scales), requires_grad=True) for p in trained}

    def grids(self) -> dict[str, Grid]:
        """Return the grids as they are now, by name."""
        return {name: replace(grid, scale=self._scales[name]) for name, grid in self._first.items()}

    def integers(self, weight: str) -> tuple[I8, F32]:
        """Return a weight as it is now: int8 in its shape, and float32 scales [channels]."""
        return self._rounded[weight].integers, self._rounded[weight].scales

    def parameters(self) -> dict[str, Tensor]:
        """Return every θ."""
        grids = {f"log scale of {name}": move for name, move in self._moves.items()}
        return grids | {f"log scales of {name}": move for name, move in self._weight_moves.items()}

    def transforms(self) -> Transforms:
        """Round tensors to their grids, and replace weights and biases by their rounded values."""
        transforms: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, grid in self._tensors.items():
            scale, zero = self._scales[grid], self._first[grid].zero_point
            transforms[name] = functools.partial(
                round_to_grid, scale=scale, zero_point=zero, move=self._moves.get(grid)
            )
        for product in self._products:
            now = self._rounded[product.weight]
            move = self._weight_moves.get(product.weight)
            if move is not None:
                move = _along(move, product.axis, now.weight.ndim)
            transforms[product.weight] = functools.partial(_replace, now.weight, now.slope, move)
            if product.bias is not None and now.bias is not None:
                transforms[product.bias] = functools.partial(_replace, now.bias, None, None)
        return transforms

    def advance(self, weights: Weights, share: float) -> None:
        """Move scales to ones that can be exported, and round weights to integers."""
        moved = {name: float(move.detach()) for name, move in self._moves.items()}
        if any(moved.values()):  # otherwise they are the given ones
            wanted = {
                name: float(np.float32(min(grid.scale * exp(moved.get(name, 0.0)), grid.max_scale)))
                for name, grid in self._first.items()
            }
            exportable = self._align(wanted)
            self._scales = self._scales if exportable is None else {**self._scales, **exportable}
        for product in self._products:
            self._rounded[product.weight] = self._round(product, weights)

    def _round(self, product: QuantizedProduct, weights: Weights) -> _RoundedProduct:
        import torch

        weight = weights[product.weight].detach().numpy()
        move = self._weight_moves.get(product.weight)
        scales = product.scales
        if move is not None:
            scales = (scales * np.exp(move.detach().numpy())).astype(np.float32)
        integers = product.round_weight(weight, scales)
        rounded_bias = None
        if product.bias is not None:
            bias, steps = weights[product.bias].detach().numpy(), np.float32(self._scales[product.input_grid]) * scales
            rounded_bias = torch.from_numpy((np.rint(bias.astype(np.float64) / steps) * steps).astype(np.float32))
        wide = scales.reshape([-1 if axis == product.axis else 1 for axis in range(weight.ndim)])
        real = integers * wide
        free = integers == np.rint(weight / wide)
        slope = (real - weight * free) / np.float32(sqrt(weight.size / len(scales) * WEIGHT_MAX))
        return _RoundedProduct(integers, scales, torch.from_numpy(real), torch.from_numpy(slope), rounded_bias)

    def state(self) -> dict[str, Any]:
        """Return the scales and the rounded constants."""
        import torch

        rounded = {
            name: {
                "integers": torch.from_numpy(product.integers),
                "scales": torch.from_numpy(product.scales),
                "weight": product.weight,
                "slope": product.slope,
                "bias": product.bias,
            }
            for name, product in self._rounded.items()
        }
        return {"scales": dict(self._scales), "rounded": rounded}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the scales and the rounded constants."""
        self._scales = dict(state["scales"])
        self._rounded = {
            name: _RoundedProduct(
                product["integers"].numpy(),
                product["scales"].numpy(),
                product["weight"],
                product["slope"],
                product["bias"],
            )
            for name, product in state["rounded"].items()
        }

    def finish(self, model: ir.Model) -> ir.Model:
        """Write the rounded weights and biases, as floats."""
        for product in self._products:
            now = self._rounded[product.weight]
            for name, tensor in ((product.weight, now.weight), (product.bias, now.bias)):
                if name is not None and tensor is not None:
                    model.graph.initializers[name].const_value = ir.tensor(tensor.numpy().copy(), name=name)
        return model


def round_to_grid(x: Tensor, scale: float, zero_point: int, move: Tensor | None = None) -> Tensor:
    """Round a tensor to a grid; see the module for the gradients.

    Args:
        x: float32 [samples, ...].
        scale: of the grid, as stored in a file.
        zero_point: 0..255.
        move: θ, a scalar that gets a gradient; None where the scale is not trained.
    """
    import torch

    rounded: Tensor = _rounding().apply(x, torch.zeros(()) if move is None else move, scale, zero_point)
    return rounded


@functools.cache
def _rounding() -> Any:
    """Define the function and its gradients in few passes over the tensor.

    Composed of torch's own operators it takes five times as long, as much as a small convolution.
    """
    import torch

    class Rounding(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not read
        @staticmethod
        def forward(ctx: Any, x: Tensor, move: Tensor, scale: float, zero_point: int) -> Tensor:
            # A division, as in QuantizeLinear: multiplying by 1 / s would round ties differently.
            rounded = (x / scale).round_().clamp_(-zero_point, ACTIVATION_MAX - zero_point).mul_(scale)
            ctx.save_for_backward(x, rounded)
            ctx.ends = (-zero_point - 0.5) * scale, (ACTIVATION_MAX - zero_point + 0.5) * scale
            return rounded

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
            x, rounded = ctx.saved_tensors
            low, high = ctx.ends
            passed = gradient * ((x >= low) & (x <= high))
            slope = None
            if ctx.needs_input_grad[1]:
                total = torch.dot(gradient.flatten(), rounded.flatten()) - torch.dot(passed.flatten(), x.flatten())
                slope = total / sqrt(x.numel() / len(x) * ACTIVATION_MAX)
            return passed, slope, None, None

    return Rounding


def _replace(rounded: Tensor, slope: Tensor | None, move: Tensor | None, dense: Tensor) -> Tensor:
    """Return `rounded` with gradients to the dense tensor and to θ, through terms that are zero."""
    result = rounded + (dense - dense.detach())
    return result if slope is None or move is None else result + slope * (move - move.detach())


def _along(move: Tensor, axis: int, rank: int) -> Tensor:
    return move.reshape([-1 if i == axis else 1 for i in range(rank)])
