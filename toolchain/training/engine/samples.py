"""Training data in memory: examples, labels if there are any, and the batch of each step.

The batch of a step depends on the number of the step and the seed alone, so a run that is resumed draws the same
batches as one without interruption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from toolchain.data.calibration import LABELS, CalibrationData
from toolchain.data.tensors import Array
from toolchain.training.engine.augment import augmented, is_image

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 29
"""Samples are held in memory up to this size in bytes."""

Example = Mapping[str, "Tensor"]
"""Inputs or other tensors of one sample or a batch, by name."""


class Samples:
    """The first samples of `data` that fit into 512 MiB.

    Args:
        data: samples, with an array called ``labels`` or without.
        augment: change images at random; None: only where there are no labels.

    Attributes:
        examples: inputs of the model, by name.
        labels: one tensor per example, int64 [1] (a class) or float in the shape of an output; None without labels.
        augment: samples are changed at random.
    """

    def __init__(self, data: CalibrationData, *, augment: bool | None = None) -> None:
        size = max(sum(array.nbytes for array in next(iter(data)).values()), 1)
        feeds = list(data.take(max(1, min(len(data), MAX_BYTES // size))))
        self.examples, self.labels = split_labels(feeds)
        first = {name: tensor.numpy() for name, tensor in self.examples[0].items()}
        self.augment = is_image(first) and self.labels is None if augment is None else augment and is_image(first)

    def __len__(self) -> int:
        return len(self.examples)

    def drawn(self, step: int, size: int, seed: int) -> list[int]:
        """Return the numbers of the examples in a step's batch; every epoch has all examples in a new random order."""
        steps_an_epoch = max(1, len(self) // size)
        epoch, place = divmod(step, steps_an_epoch)
        order = _order(len(self), seed, epoch)
        return [int(i) for i in np.resize(order[place * size :], size)]

    def steps(self, epochs: float, size: int) -> int:
        """Compute the number of steps in which every example is used `epochs` times, in batches of `size`."""
        return max(int(epochs > 0), round(epochs * max(1, len(self) // size)))

    def changed(self, step: int, place: int, seed: int) -> Example:
        """Make the augmented example at one place of a step's batch, from random examples."""
        return augmented(self.examples, np.random.default_rng((seed, step, place)))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng((seed, epoch)).permutation(count)


def split_labels(feeds: Sequence[Mapping[str, Array]]) -> tuple[list[Example], list[Tensor] | None]:
    """Split feeds into model inputs and labels, as tensors; the labels are None where there are none."""
    examples: list[Example] = [
        {name: tensor(array) for name, array in feed.items() if name != LABELS} for feed in feeds
    ]
    return examples, [tensor(feed[LABELS]) for feed in feeds] if LABELS in feeds[0] else None


def tensor(array: Array) -> Tensor:
    """Copy an array into a tensor."""
    import torch

    return torch.from_numpy(np.array(array))


def joined(examples: Sequence[Example]) -> Example:
    """Concatenate examples to one batch, along the first axis."""
    import torch

    return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}
