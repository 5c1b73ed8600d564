"""Photographs without labels for training: more of them, and of more things, than calibration needs.

    benchmarks/fetch.sh train
    toolchain train ... --data benchmarks.train.photographs:feeds

Two sources, in random order: square pieces of the pictures in ``gcompris-qt-data`` (tools, animals, monuments,
instruments; Qt's resource files hold them as they are), another piece each time a picture is used; and the cut-outs of
``tuxpaint-stamps-default`` that no test image shows, on grey or on a piece of a picture.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.models import images, mobilenet_v2, store
from toolchain.data.tensors import Array, Feed

REQUIRES = ("deb/gcompris-qt-data", *images.REQUIRES)
COUNT = 890
"""Number of photographs that training keeps in memory."""
RESOURCES = (
    "categorization", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals",
    "explore_world_music",
)  # fmt: skip
STAMPS = (
    "clothes", "hobbies", "medical", "military", "naturalforces", "people", "seasonal", "space", "town",
)  # fmt: skip
"""Folders of cut-outs in addition to those that calibration uses."""
SMALLEST = 150
"""Least length of a picture's short side, in pixels."""
SMALLEST_PIECE = 0.6
"""Least side of a piece, as a share of the picture's short side."""
PLAIN = 0.4
"""Share of the cut-outs on a grey ground."""


def feeds() -> Iterator[Feed]:
    """Feeds for MobileNetV2."""
    return map(mobilenet_v2.feed, store.rows(photographs(COUNT)))


def photographs(n: int) -> Path:
    """A sample set of `n` photographs: field ``x``, uint8 [n, 224, 224, 3]."""
    return store.samples(f"photographs-training-{n}", lambda: {"x": np.stack([_image(i) for i in range(n)])})


def _image(index: int) -> Array:
    rng = np.random.default_rng([3, index])
    source = _sources()[index % len(_sources())]
    if isinstance(source, bytes):
        return np.asarray(_piece(source, rng))
    pictures = [other for other in _sources() if isinstance(other, bytes)]
    if rng.random() < PLAIN:
        ground = Image.new("RGB", (images.SIDE, images.SIDE), (int(rng.integers(256)),) * 3)
    else:
        ground = _piece(pictures[rng.integers(len(pictures))], rng)
    return images.mounted(source, ground, rng)


@functools.cache
def _sources() -> list[bytes | Path]:
    """Encoded pictures and files of cut-outs."""
    everything = [*_pictures(), *images.unlabelled_stamps((*images.UNLABELLED, *STAMPS))]
    return [everything[i] for i in np.random.default_rng(3).permutation(len(everything))]


def _pictures() -> Iterator[bytes]:
    folder = store.path(REQUIRES[0], "usr/share/gcompris-qt/rcc")
    for name in RESOURCES:
        for picture in webp((folder / f"{name}.rcc").read_bytes()):
            with Image.open(io.BytesIO(picture)) as image:
                if min(image.size) >= SMALLEST:
                    yield picture


def webp(data: bytes) -> Iterator[bytes]:
    """Find every WebP image in a resource file.

    An image starts with ``RIFF``, the number of bytes that follow (uint32, little-endian), and ``WEBP``.
    """
    start = data.find(b"RIFF")
    while start >= 0:
        end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
        whole = data[start + 8 : start + 12] == b"WEBP" and end <= len(data)
        if whole:
            yield data[start:end]
        start = data.find(b"RIFF", end if whole else start + 4)


def _piece(picture: bytes, rng: np.random.Generator) -> Image.Image:
    """A square piece of a picture, white where it is transparent."""
    with Image.open(io.BytesIO(picture)) as file:
        image = file.convert("RGBA")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, (0, 0), image)
    side = round(min(image.size) * rng.uniform(SMALLEST_PIECE, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    box = (left, top, left + side, top + side)
    return ground.resize((images.SIDE, images.SIDE), Image.Resampling.BICUBIC, box)
