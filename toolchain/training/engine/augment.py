"""Random changes of images, to train on more samples than were given. They need no knowledge of the task.

An image is mirrored, a piece of it is enlarged, and it is blended with another image or gets a piece of one pasted in.
The content of the result does not matter, because the teacher computes its outputs for the changed image as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from torch import Tensor

MIN_CROP = 0.4
"""Smallest piece that is enlarged to the whole image, as a share of each side."""
MIXED_SHARE = 0.8
"""Share of samples that are made of two images."""
MIN_IMAGE_SIDE = 32
"""Pixels per side; smaller inputs are unlikely to be photographs."""


def is_image(feed: Feed) -> bool:
    """Check whether the only input is a float32 image [N, 3, H, W] that is large enough."""
    arrays = list(feed.values())
    return (
        len(arrays) == 1
        and arrays[0].dtype == np.float32
        and arrays[0].ndim == 4
        and arrays[0].shape[1] == 3
        and min(arrays[0].shape[2:]) >= MIN_IMAGE_SIDE
    )


def augmented(samples: Sequence[Mapping[str, Tensor]], rng: np.random.Generator) -> dict[str, Tensor]:
    """Make one changed image from random samples, all images [N, 3, H, W] of one size."""
    name = next(iter(samples[0]))
    first, second = (_cropped(samples[int(rng.integers(len(samples)))][name], rng) for _ in range(2))
    if rng.random() >= MIXED_SHARE:
        return {name: first}
    return {name: _blended(first, second, rng) if rng.random() < 0.5 else _pasted(first, second, rng)}


def _cropped(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror an image or not, and enlarge a piece of it to its size."""
    from torch.nn import functional

    if rng.random() < 0.5:
        image = image.flip(-1)
    size, share = image.shape[-2:], rng.uniform(MIN_CROP, 1)
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
    """Paste a rectangle of the second image into the first, a quarter to three quarters of each side."""
    mixed = first.clone()
    spans = []
    for size in first.shape[-2:]:
        length = int(rng.integers(size // 4, 3 * size // 4))
        start = int(rng.integers(size - length))
        spans.append(slice(start, start + length))
    mixed[..., spans[0], spans[1]] = second[..., spans[0], spans[1]]
    return mixed
