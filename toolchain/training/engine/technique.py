"""`Technique`: the interface of training techniques such as pruning, codebooks and quantization-aware training.

In a training step, the student's weights, and for some techniques its activations, are passed through functions: a
mask, a rounding, a fake quantization. Gradients pass back through the same functions to the dense weights, which the
optimizer changes. So a mask may change during training, and a rounded weight may move to the next level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.training.engine.torch_graph import Transforms

Weights = Mapping[str, "Tensor"]
"""The current trainable weights of a student, by initializer name."""


class Technique:
    """Plain training, which does nothing to the student. Other techniques override the methods they need.

    A technique is made for one student (its constructor takes the model) and used by one objective.

    Attributes:
        target_share: fraction of the training after which the technique has reached its target, such as the wanted
            share of zeros. Checkpoints before that are not candidates for the best.
        revives: single weights that were pruned before may become nonzero again; otherwise they stay zero.
    """

    target_share: float = 0.0
    revives: bool = False

    def parameters(self) -> dict[str, Tensor]:
        """Return leaf tensors that are trained beside the weights, by names that no tensor of the student has."""
        return {}

    def transforms(self) -> Transforms:
        """Return functions by tensor name: the readers of a tensor get the function's result. Called before every step.

        Several threads call these functions at once, so they must not change anything.
        """
        return {}

    def proximal(self, weights: Weights, rate: float) -> Weights:
        """Apply the proximal operator of a regularizer to the weights, after a step of the optimizer.

        Args:
            weights: the current weights.
            rate: learning rate of the step, relative to the root mean square of a channel.

        Returns:
            The weights that change, without gradients.
        """
        return {}

    def advance(self, weights: Weights, share: float) -> None:
        """Adapt to the progress of the training: called before the first step and after every step.

        Args:
            weights: the current weights.
            share: fraction of this training that is over, 0 to 1.
        """

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`advance` has changed, as tensors, numbers, strings, lists and dictionaries.

        The state is stored in a file that is loaded without executing code, so it may hold nothing else.
        """
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""

    def finish(self, model: ir.Model) -> ir.Model:
        """Return the model to deploy.

        Args:
            model: a clone of the student with its trained dense weights; may be changed.
        """
        return model
