"""`Preprocess`: the pipeline from an image file to the array that a model takes, by name or in a TOML file.

:func:`toolchain.data.images.read_image` runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from toolchain.core.errors import ConfigError, DataError, did_you_mean
from toolchain.formats.base import Document

Size = int | tuple[int, int]


def height_and_width(size: Size) -> tuple[int, int]:
    """Return a size as height and width."""
    return (size, size) if isinstance(size, int) else size


class Preprocess(Document):
    """An image pipeline: decode, convert to channels, resize, crop, and normalize to (pixel * scale - mean) / std."""

    KIND: ClassVar[str] = "preprocessing pipeline"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    resize: Literal["shorter", "squash", "none"] = "squash"
    """shorter: scale the shorter side to size and keep the aspect ratio. squash: scale both sides to size. none: keep
    the image as it is."""
    size: Size | None = None
    """Pixels: one number, or height and width. Default: the size of the model's input."""
    crop: Size | None = None
    """Pixels to keep around the centre: one number, or height and width. Default: all."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """Order of the axes of the model's input."""
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    """Order of the colours on the channel axis; L is grey."""
    scale: float = pydantic.Field(default=1 / 255, gt=0)
    """Factor of the pixel values 0 to 255."""
    mean: tuple[float, ...] = (0.0,)
    """Number subtracted after scaling: one for all channels, or one for each."""
    std: tuple[float, ...] = (1.0,)
    """Number divided by after that: one for all channels, or one for each."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Preprocess:
        count = len(self.channels)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, count):
                raise ValueError(
                    f"{name} holds {len(values)} numbers, but channels = {self.channels!r} needs 1 or {count}"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError("std holds a number that is not above 0")
        for name, size in (("size", self.size), ("crop", self.crop)):
            if size is not None and min(height_and_width(size)) < 1:
                raise ValueError(f"{name} is below 1 pixel")
        if self.resize == "shorter" and isinstance(self.size, tuple):
            raise ValueError("resize = 'shorter' takes one number as size")
        if self.resize == "none" and self.size is not None:
            raise ValueError("resize = 'none' takes no size")
        return self

    @property
    def raw(self) -> bool:
        """True where pixels keep their values 0 to 255, so that uint8 can hold them."""
        return self.scale == 1 and not any(self.mean) and all(value == 1 for value in self.std)

    def fitted(self, dims: tuple[int | str | None, ...]) -> Preprocess:
        """Fill in `size` from the model's input.

        Args:
            dims: shape of the input: sizes, names of dynamic axes, or None where unknown.

        Raises:
            DataError: the input is not a batch of images with these channels, or the size is needed but dynamic.
        """
        if len(dims) != 4:
            raise DataError(
                f"the model's input has {len(dims)} axes where images need 4",
                hint="give arrays (.npz, .npy or module:callable)",
            )
        axis = 1 if self.layout == "NCHW" else 3
        if isinstance(dims[axis], int) and dims[axis] != len(self.channels):
            raise DataError(
                f"the pipeline gives {self.channels} as {self.layout}, but axis {axis} of the model's input "
                f"{list(dims)} is {dims[axis]}",
                hint="give --preprocess a TOML file with the model's channels and layout",
            )
        if self.resize == "none" or self.size is not None:
            return self
        height, width = dims[2:] if self.layout == "NCHW" else dims[1:3]
        if not isinstance(height, int) or not isinstance(width, int):
            raise DataError(
                f"the model takes images of any size ({height} × {width}), so the pipeline must state one",
                hint="give --preprocess a TOML file with size = [height, width], or freeze the model's axes",
            )
        return self.model_copy(update={"size": min(height, width) if self.resize == "shorter" else (height, width)})


PIPELINES: dict[str, Preprocess] = {
    "imagenet": Preprocess(resize="shorter", size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "imagenet-squash": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Preprocess(),
    "signed": Preprocess(mean=(0.5,), std=(0.5,)),
}
"""``imagenet``: shorter side to 256, centre crop 224, ImageNet mean and std. ``imagenet-squash``: the same
numbers, resized straight to the model's size. ``unit``: 0..1. ``signed``: -1..1."""


def load_preprocess(name: str | Path) -> Preprocess:
    """Return a named pipeline, or read one from a ``.toml`` or ``.json`` file.

    Raises:
        ConfigError: the name is unknown, or the file does not follow the schema.
    """
    if str(name) in PIPELINES:
        return PIPELINES[str(name)]
    if Path(name).suffix in (".toml", ".json"):
        return Preprocess.load(name)
    what = f"{str(name)!r} is neither a named pipeline nor a .toml file"
    raise ConfigError(what, hint=did_you_mean(str(name), PIPELINES))
