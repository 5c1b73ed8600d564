"""Loss terms. Each is a mean over the batch, a float32 scalar tensor.

error        Σ (y - t)² / Σ t²            squared error relative to the energy, so that every tensor counts equally
divergence   T² Σ p_t (log p_t - log p)   p = softmax(y / T): the Kullback-Leibler divergence with the temperature of
                                          Hinton et al. (arXiv 1503.02531); T² keeps the size of its gradients
labelled     cross entropy for classes (int64 [N]), otherwise the error against the label
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def error(got: Tensor, goal: Tensor) -> Tensor:
    """Compute the squared error relative to the energy of the goal."""
    return (got - goal).square().sum() / goal.square().sum().clamp_min(1e-12)


def divergence(got: Tensor, goal: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the divergence of scores [..., classes], in nats times T²."""
    of_student, of_teacher = (got / temperature).log_softmax(-1), (goal / temperature).log_softmax(-1)
    return temperature**2 * (of_teacher.exp() * (of_teacher - of_student)).sum(-1).mean()


def labelled(got: Tensor, label: Tensor) -> Tensor:
    """Compute the loss of scores [N, classes] and classes int64 [N], or of a tensor and a float label of its shape."""
    from torch.nn import functional

    if label.is_floating_point():
        return error(got, label)
    return functional.cross_entropy(got, label.reshape(-1))
