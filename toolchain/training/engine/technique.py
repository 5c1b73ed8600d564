"""`Technique`: what is done to a student's weights and tensors while it learns, and what is made of it in the end.

A lesson computes the student with its weights (and, where a technique asks for it, its activations) passed *through*
functions: a mask, a rounding, a fake quantization. Gradients pass back through the same functions to the dense weights,
which are what the optimizer moves. So masks may change their mind, and a rounded weight may cross to the next level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.training.engine.torch_graph import Through

Weights = Mapping[str, "Tensor"]
"""A student's trainable weights as they are now, by initializer name."""


class Technique:
    """Does nothing: plain training. Others override what they need.

    A technique is made for one student (its constructor takes the model) and used by one lesson.

    settled: the share of a training from which on it has arrived at what it was asked for; what came before is no
    candidate for the best.
    revives: whether single weights that were pruned before may come back; else they stay zero.
    """

    settled: float = 0.0
    revives: bool = False

    def parameters(self) -> dict[str, Tensor]:
        """Leaf tensors that are trained beside the student's weights, by names that are none of its tensors'."""
        return {}

    def through(self) -> Through:
        """What readers of a tensor get instead of it; asked for before every step.

        Called by several threads at once, so these functions change nothing.
        """
        return {}

    def proximal(self, weights: Weights, rate: float) -> Weights:
        """Weights moved by the proximal operator of a regularizer, after a step of the optimizer of this rate.

        Only those that change, without gradients. A rate is a share of a channel's root mean square, as everywhere.
        """
        return {}

    def advance(self, weights: Weights, share: float) -> None:
        """Called before the first step (share 0) and after every one. share: of this training that is done, to 1."""

    def state(self) -> dict[str, Any]:
        """Whatever :meth:`advance` has changed, of tensors and plain Python, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""

    def finish(self, model: ir.Model) -> ir.Model:
        """The model to deploy. model: a clone of the student with its trained dense weights; may be changed."""
        return model
