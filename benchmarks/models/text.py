"""Rendered text with known content: English words (``wordnet-base``), numbers and dates in about sixty fonts."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.models import images, store

FONTS = ("dejavu-core", "freefont-ttf", "lato", "liberation", "roboto-unhinted")
REQUIRES = ("deb/wordnet-base", *(f"deb/fonts-{name}" for name in FONTS), "deb/mate-backgrounds")
ILLEGIBLE = ("Black", "Hairline", "Thin")

Colour = tuple[int, int, int]


def font(rng: np.random.Generator, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
    """A random font at a size in [smallest, largest) pixels."""
    files = _fonts()
    return ImageFont.truetype(files[rng.integers(len(files))], int(rng.integers(smallest, largest)))


@functools.cache
def _fonts() -> list[str]:
    folders = [store.path(f"deb/fonts-{name}", "usr/share/fonts") for name in FONTS]
    files = [file for folder in folders for file in sorted(folder.rglob("*.ttf"))]
    return [str(file) for file in files if not any(word in file.name for word in ILLEGIBLE)]


@functools.cache
def _words() -> list[str]:
    words = []
    for kind in ("noun", "verb", "adj"):
        for line in store.path("deb/wordnet-base", "usr/share/wordnet", f"index.{kind}").read_text().splitlines():
            word = line.partition(" ")[0]
            if 3 <= len(word) <= 10 and word.isascii() and word.isalpha():
                words.append(word)
    return words


def phrase(rng: np.random.Generator, longest: int) -> str:
    """One to three words, numbers or dates, `longest` characters at most together."""
    text = ""
    for _ in range(int(rng.integers(1, 4))):
        longer = f"{text} {_token(rng)}".strip()
        text = longer if len(longer) <= longest else text
    return text or "text"


def word(rng: np.random.Generator, longest: int) -> str:
    """A random English word of 3 to `longest` letters (10 at most), in lower case."""
    while len(chosen := _words()[rng.integers(len(_words()))]) > longest:
        pass
    return chosen


def _token(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.15:
        return f"{rng.integers(1, 29)}-{rng.integers(1, 13):02}-{rng.integers(1990, 2030)}"
    if kind < 0.3:
        return str(rng.integers(100_000))
    chosen = word(rng, 10)
    case = rng.random()
    return chosen.title() if case < 0.4 else chosen.upper() if case < 0.5 else chosen


def colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """A ground and an ink with enough contrast."""
    dark, light = rng.integers(0, 80, 3), rng.integers(140, 256, 3)
    ground, ink = (light, dark) if rng.random() < 0.7 else (dark, np.maximum(light, 175))
    return rgb(ground), rgb(ink)


def rgb(values: np.ndarray) -> Colour:
    red, green, blue = map(int, values)
    return red, green, blue


def degrade(image: Image.Image, rng: np.random.Generator, noise: tuple[float, float], blur: float) -> Image.Image:
    """Blur three of five images (radius up to `blur`), then add noise (deviation in the range `noise`, of 255)."""
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, blur)))
    pixels = np.asarray(image, np.float32)
    noisy = pixels + rng.normal(0, rng.uniform(*noise), pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def line(
    rng: np.random.Generator, text: str, part: int, noise: tuple[float, float] = (2, 14), blur: float = 0.9
) -> Image.Image:
    """One cropped line of text, slightly tilted. part: 0 for tests, 1 for calibration."""
    face = font(rng, 18, 40)
    left, top, right, bottom = map(int, face.getbbox(text))
    margin = int(rng.integers(2, 7))
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    ground, ink = colours(rng)
    image = Image.new("RGB", size, ground)
    if rng.random() < 0.3:
        image = Image.blend(image, images.wallpaper(rng, *size, part), 0.3)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, face)
    image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=ground)
    return degrade(image, rng, noise, blur)


def padded(image: Image.Image, width: int, height: int = 48) -> np.ndarray:
    """Convert a line to PP-OCR's input: float32 [3, height, width], BGR, −1..1, zeros to the right of short lines."""
    used = min(width, -(-height * image.width // image.height))
    pixels = np.asarray(image.resize((used, height), Image.Resampling.BILINEAR), np.float32)
    out = np.zeros((3, height, width), np.float32)
    out[:, :, :used] = (pixels[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)
    return out
