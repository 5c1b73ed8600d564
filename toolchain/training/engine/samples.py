"""Training data in memory: examples, their labels where there are any, and which of them make the batch of a step.

What a step draws depends on its number and the seed alone, so a run that is continued draws what the first would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.training.engine.augment import augmented, is_image

if TYPE_CHECKING:
    from torch import Tensor

LABELS = "labels"
"""Name of the array that holds what the model should say."""
KEPT_BYTES = 1 << 29
"""Samples held in memory."""

Example = Mapping[str, "Tensor"]


class Samples:
    """As many samples of `data` as fit 512 MiB.

    examples: what the model is fed. labels: of each, where `data` has them: int64 [1] (a class), or float as an output.
    augment: whether samples are changed at random; None: images that have no labels are.
    """

    def __init__(self, data: CalibrationData, *, augment: bool | None = None) -> None:
        size = max(sum(array.nbytes for array in next(iter(data)).values()), 1)
        feeds = list(data.take(max(1, min(len(data), KEPT_BYTES // size))))
        self.examples, self.labels = split_labels(feeds)
        first = {name: tensor.numpy() for name, tensor in self.examples[0].items()}
        self.augment = is_image(first) and self.labels is None if augment is None else augment and is_image(first)

    def __len__(self) -> int:
        return len(self.examples)

    def drawn(self, step: int, size: int, seed: int) -> list[int]:
        """Numbers of the examples of a step's batch: a random order, all through and then another."""
        each = max(1, len(self) // size)
        epoch, place = divmod(step, each)
        order = _order(len(self), seed, epoch)
        return [int(i) for i in np.resize(order[place * size :], size)]

    def steps(self, epochs: float, size: int) -> int:
        """How many steps see every example so many times."""
        return max(int(epochs > 0), round(epochs * max(1, len(self) // size)))

    def changed(self, step: int, place: int, seed: int) -> Example:
        """The example at a place of a step's batch, made up of random ones."""
        return augmented(self.examples, np.random.default_rng((seed, step, place)))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng((seed, epoch)).permutation(count)


def split_labels(feeds: Sequence[Mapping[str, Array]]) -> tuple[list[Example], list[Tensor] | None]:
    """Tensors to feed, and the labels by themselves; None where there are none."""
    examples: list[Example] = [
        {name: tensor(array) for name, array in feed.items() if name != LABELS} for feed in feeds
    ]
    return examples, [tensor(feed[LABELS]) for feed in feeds] if LABELS in feeds[0] else None


def tensor(array: Array) -> Tensor:
    """A copy."""
    import torch

    return torch.from_numpy(np.array(array))


def joined(examples: Sequence[Example]) -> Example:
    """One batch of several."""
    import torch

    return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}
