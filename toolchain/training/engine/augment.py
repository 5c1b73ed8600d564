"""More samples out of few, where that is safe without knowing the task: for images.

Mirrored, a piece of it enlarged, and blended with another image or cut into it. What the result shows does not matter,
for the teacher is asked about it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_PIECE = 0.4
"""Of each side, what is enlarged to the whole."""
MIXED = 0.8
"""Share of samples that are made of two."""
SMALLEST = 32
"""Pixels a side; what is smaller is hardly a photograph."""


def is_image(feed: Feed) -> bool:
    """Whether the only input is float [N, 3, H, W] and large enough."""
    arrays = list(feed.values())
    return (
        len(arrays) == 1
        and arrays[0].dtype == np.float32
        and arrays[0].ndim == 4
        and arrays[0].shape[1] == 3
        and min(arrays[0].shape[2:]) >= SMALLEST
    )


def augmented(samples: Sequence[Mapping[str, Tensor]], rng: np.random.Generator) -> dict[str, Tensor]:
    """One of the samples, all images of one size [N, 3, H, W], changed at random."""
    name = next(iter(samples[0]))
    first, second = (_moved(samples[int(rng.integers(len(samples)))][name], rng) for _ in range(2))
    if rng.random() >= MIXED:
        return {name: first}
    return {name: _blended(first, second, rng) if rng.random() < 0.5 else _pasted(first, second, rng)}


def _moved(image: Tensor, rng: np.random.Generator) -> Tensor:
    from torch.nn import functional

    if rng.random() < 0.5:
        image = image.flip(-1)
    size, share = image.shape[-2:], rng.uniform(SMALLEST_PIECE, 1)
    spans = []
    for side in size:
        length = round(side * share)
        start = int(rng.integers(side - length + 1))
        spans.append(slice(start, start + length))
    return functional.interpolate(image[..., spans[0], spans[1]], size, mode="bilinear", align_corners=False)


def _blended(first: Tensor, second: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    return torch.lerp(first, second, float(rng.uniform(0, 0.5)))


def _pasted(first: Tensor, second: Tensor, rng: np.random.Generator) -> Tensor:
    """A rectangle of the second image in the first, a quarter to three quarters of each side."""
    mixed = first.clone()
    spans = []
    for size in first.shape[-2:]:
        length = int(rng.integers(size // 4, 3 * size // 4))
        start = int(rng.integers(size - length))
        spans.append(slice(start, start + length))
    mixed[..., spans[0], spans[1]] = second[..., spans[0], spans[1]]
    return mixed
