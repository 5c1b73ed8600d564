"""Reading images as input arrays of a model.

An image is decoded, converted to the channels of its pipeline, resized (bilinear with antialiasing, as torchvision does
with Pillow images), cropped around its centre, and normalized: ``(pixel * scale - mean) / std`` in float32. Pixels are
used as they are stored; an orientation tag is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolchain.core.arrays import F32
from toolchain.core.errors import DataError
from toolchain.formats.preprocess import Preprocess, Size, height_and_width

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_image(path: Path, pipeline: Preprocess) -> F32:
    """Read an image as a batch of one, float32 [1, C, H, W] or [1, H, W, C].

    Args:
        path: the file.
        pipeline: the preprocessing.

    Raises:
        DataError: the file cannot be read as an image, or is smaller than the crop.
    """
    with _decoding(path) as image:
        if image.mode[0] in "IF":
            raise DataError(f"has {image.mode} pixels, not 8 bits a channel", hint="save it with 8 bits a channel")
        image = _cropped(_resized(image.convert("L" if pipeline.channels == "L" else "RGB"), pipeline), pipeline.crop)
        pixels = np.array(image, dtype=np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pipeline.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.array(pipeline.mean, np.float32), np.array(pipeline.std, np.float32)
    out = (pixels.astype(np.float32) * np.float32(pipeline.scale) - mean) / std
    return np.ascontiguousarray(out.transpose(2, 0, 1) if pipeline.layout == "NCHW" else out)[None]


@contextmanager
def _decoding(path: Path) -> Iterator[Image]:
    try:
        import PIL.Image
    except ImportError:
        raise DataError(
            "reading images needs Pillow", where=path, hint="pip install 'edge-toolchain[images]'"
        ) from None
    try:
        with PIL.Image.open(path) as image:
            image.load()
            yield image
    except DataError as error:
        raise DataError(error.what, where=path, hint=error.hint) from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a damaged PNG chunk.
        raise DataError(f"cannot be read as an image ({error})", where=path, hint="remove or replace it") from None


def _resized(image: Image, pipeline: Preprocess) -> Image:
    import PIL.Image

    width, height = image.size
    if pipeline.resize == "none" or pipeline.size is None:
        return image
    if pipeline.resize == "squash":
        new_height, new_width = height_and_width(pipeline.size)
    else:
        short = height_and_width(pipeline.size)[0]
        # The length of the longer side is rounded down, as in torchvision.
        new_width, new_height = (
            (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        )
    return image.resize((new_width, new_height), PIL.Image.Resampling.BILINEAR)


def _cropped(image: Image, crop: Size | None) -> Image:
    if crop is None:
        return image
    height, width = height_and_width(crop)
    if image.width < width or image.height < height:
        raise DataError(
            f"is {image.height} × {image.width} pixels (height × width), smaller than the crop {height} × {width}",
            hint="resize first, or choose a smaller crop",
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
