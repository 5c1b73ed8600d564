"""Photographs with ImageNet-1k labels, made from those that Debian ships.

``tuxpaint-stamps-default`` holds cut-out photographs whose names say what they show; ``imagenet_stamps.csv`` gives the
ImageNet classes that count as right for each. A test image is such a cut-out on white, on grey or on a piece
of a wallpaper from ``mate-backgrounds``. Calibration images are made of other cut-outs and other wallpapers.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.models import store
from toolchain.core.files import replacing
from toolchain.data.tensors import Array

REQUIRES = ("deb/tuxpaint-stamps-default", "deb/mate-backgrounds")
SIDE = 224
SMALLEST = 70  # smaller cut-outs are too blurred
UNLABELLED = ("animals", "food", "household", "plants", "sports", "vehicles")

Image.MAX_IMAGE_PIXELS = None  # the wallpapers are large and trusted


def wallpaper(rng: np.random.Generator, width: int, height: int, part: int) -> Image.Image:
    """A random piece of a photograph. part: 0 for tests, 1 for calibration; they share no photograph."""
    sheets = _wallpapers(part)
    sheet = sheets[rng.integers(len(sheets))]
    side = int(rng.integers(300, 700))
    left, top = int(rng.integers(sheet.width - side)), int(rng.integers(sheet.height - side))
    return sheet.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


@functools.cache
def _wallpapers(part: int) -> list[Image.Image]:
    folder = store.path("deb/mate-backgrounds", "usr/share/backgrounds/mate/nature")
    return [_small(file) for file in sorted(folder.glob("*.jpg"))[part::2]]


def _small(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (1280, 800))  # lets the JPEG decoder skip details
        return image.convert("RGB").resize((1280, 800))


def _stamps() -> Path:
    return store.path("deb/tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")


@functools.cache
def _labels() -> dict[str, set[int]]:
    with open(Path(__file__).with_name("imagenet_stamps.csv"), newline="") as file:
        return {row["photograph"]: set(map(int, row["classes"].split())) for row in csv.DictReader(file)}


def mounted(cutout: Path, ground: Image.Image, rng: np.random.Generator) -> Array:
    """Paste the cut-out near the middle of the ground, at 74 to 90 % of its size, mirrored or not."""
    with Image.open(cutout) as file:
        stamp = file.convert("RGBA")
    scale = SIDE * rng.uniform(0.74, 0.9) / max(stamp.size)
    width, height = (max(1, round(length * scale)) for length in stamp.size)
    stamp = stamp.resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shift = rng.integers(-SIDE // 20, SIDE // 20 + 1, 2)
    ground.paste(stamp, ((SIDE - width) // 2 + int(shift[0]), (SIDE - height) // 2 + int(shift[1])), stamp)
    return np.asarray(ground)


def _test_pairs() -> Iterator[tuple[Array, str]]:
    for index, (name, classes) in enumerate(_labels().items()):
        file = _stamps() / f"{name}.png"
        with Image.open(file) as stamp:
            if max(stamp.size) < SMALLEST:
                continue
        rng = np.random.default_rng([1, index])
        grounds = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("white", "#96a096")]
        grounds += [wallpaper(rng, SIDE, SIDE, 0) for _ in range(2)]
        for ground in grounds:
            yield mounted(file, ground, rng), " ".join(map(str, sorted(classes)))


def labelled() -> Path:
    """The test set: field ``x`` uint8 [224, 224, 3] images, field ``y`` the right classes as text."""
    return store.samples("photographs-test", lambda: store.stack(_test_pairs()))


def _calibration_image(index: int) -> Array:
    """One image in four is a piece of wallpaper, one a cut-out on grey, two are cut-outs on wallpaper."""
    rng = np.random.default_rng([2, index])
    ground = wallpaper(rng, SIDE, SIDE, 1)
    if index % 4 == 0:
        return np.asarray(ground)
    if index % 4 == 1:
        ground = Image.new("RGB", (SIDE, SIDE), (int(rng.integers(256)),) * 3)
    stamps = unlabelled_stamps()
    return mounted(stamps[index % len(stamps)], ground, rng)


@functools.cache
def unlabelled_stamps(folders: tuple[str, ...] = UNLABELLED) -> list[Path]:
    """The cut-out photographs that no test image shows, in random order."""
    files = [file for folder in folders for file in sorted((_stamps() / folder).rglob("*.png"))]
    known = {_stamps() / f"{name}.png" for name in _labels()}
    files = [file for file in files if file not in known and "cartoon" not in file.parts]
    return [files[index] for index in np.random.default_rng(2).permutation(len(files))]


def unlabelled(n: int) -> Path:
    """`n` calibration photographs: field ``x`` uint8 [224, 224, 3]."""
    return store.samples(
        f"photographs-calibration-{n}", lambda: {"x": np.stack([_calibration_image(index) for index in range(n)])}
    )


def calibration_folder(n: int = 64) -> Path:
    """A folder of `n` calibration photographs as PNG files, made once."""
    folder = store.cache() / f"photographs-{n}"
    if not folder.exists():
        with replacing(folder) as temporary:
            (temporary / folder.name).mkdir()
            for index, image in enumerate(store.rows(unlabelled(n))):
                Image.fromarray(image).save(temporary / folder.name / f"{index:04}.png")
    return folder


if __name__ == "__main__":
    print(calibration_folder())
