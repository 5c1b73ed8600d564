"""What is minimized. Each is a mean over the batch, a float32 scalar tensor.

error        Σ (y - t)² / Σ t²            squared error over energy, so that each tensor has equal say
divergence   T² Σ p_t (log p_t - log p)   p = softmax(y / T): Kullback-Leibler with the temperature of
                                          Hinton et al. (arXiv 1503.02531); T² keeps its gradients' size
labelled     cross entropy for classes (int64 [N]), else the error against the label
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def error(got: Tensor, goal: Tensor) -> Tensor:
    """Squared error over energy."""
    return (got - goal).square().sum() / goal.square().sum().clamp_min(1e-12)


def divergence(got: Tensor, goal: Tensor, temperature: float = 1.0) -> Tensor:
    """Of scores [..., classes], in nats times T²."""
    here, there = (got / temperature).log_softmax(-1), (goal / temperature).log_softmax(-1)
    return temperature**2 * (there.exp() * (there - here)).sum(-1).mean()


def labelled(got: Tensor, label: Tensor) -> Tensor:
    """Of scores [N, classes] and classes int64 [N], or of anything and a float label of its shape."""
    from torch.nn import functional

    if label.is_floating_point():
        return error(got, label)
    return functional.cross_entropy(got, label.reshape(-1))
