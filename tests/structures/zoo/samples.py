"""Inputs of the zoo's models: a shape, a type and a function that draws one sample.

Samples resemble what the kind of model is fed with: pictures are smooth and differ in brightness, recordings have loud
and quiet parts, features have rare large values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Rng = np.random.Generator
Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Dynamic:
    """An axis without fixed size; every sample has one between `low` and `high`, the same for all axes of this name."""

    name: str
    low: int
    high: int


def dynamic(name: str, low: int, high: int | None = None) -> Dynamic:
    """An axis whose size is `low`, or drawn up to and including `high`."""
    return Dynamic(name, low, low if high is None else high)


N = dynamic("N", 1)
"""The batch axis of a model that takes any batch; samples come one by one."""

Size = int | Dynamic


@dataclass(frozen=True)
class Input:
    """An input of a model: its shape with the batch axis, and a function that draws an array of a given shape."""

    shape: tuple[Size, ...]
    draw: Callable[[Rng, tuple[int, ...]], np.ndarray]

    def declared(self) -> list[int | str]:
        """The shape as the file declares it: names for dynamic axes."""
        return [size.name if isinstance(size, Dynamic) else size for size in self.shape]


def draw_feeds(inputs: dict[str, Input], seed: int, count: int) -> list[Feed]:
    """Draw `count` samples of all inputs."""
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        sizes: dict[str, int] = {}
        for size in (size for spec in inputs.values() for size in spec.shape if isinstance(size, Dynamic)):
            sizes.setdefault(size.name, int(rng.integers(size.low, size.high + 1)))
        feed = {}
        for name, spec in inputs.items():
            shape = tuple(sizes[size.name] if isinstance(size, Dynamic) else size for size in spec.shape)
            feed[name] = spec.draw(rng, shape)
        feeds.append(feed)
    return feeds


def image(channels: int = 3, height: Size = 24, width: Size | None = None, *, batch: Size = 1) -> Input:
    """A picture with values of about -2 to 2: smooth blobs of several sizes, texture, a brightness and a contrast."""
    return Input((batch, channels, height, height if width is None else width), _draw_image)


def _draw_image(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    n, c, h, w = shape
    picture = 0.15 * rng.standard_normal(shape)
    for cell in (2, 4, 8):
        coarse = rng.standard_normal((n, c, -(-h // cell), -(-w // cell)))
        picture += 0.5 * coarse.repeat(cell, 2).repeat(cell, 3)[:, :, :h, :w]
    contrast, light = rng.uniform(0.4, 1.3, (n, 1, 1, 1)), 0.4 * rng.standard_normal((n, c, 1, 1))
    return (contrast * picture + light).astype(np.float32)


def wave(length: Size = 512, *, batch: Size = 1, channels: int | None = 1) -> Input:
    """A recording in -1 to 1: tones that rise and fall over noise, with 40 dB between loud and quiet samples."""
    return Input((batch, length) if channels is None else (batch, channels, length), _draw_wave)


def _draw_wave(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    time = np.arange(shape[-1])
    sound = 0.01 * rng.standard_normal(shape)
    for _ in range(4):
        frequency, phase, start = rng.uniform(0.005, 0.45), rng.uniform(0, 6.28), rng.uniform(0, shape[-1])
        envelope = np.exp(-((time - start) ** 2) / (2 * (shape[-1] / 5) ** 2))
        sound = sound + rng.uniform(0.1, 0.5) * envelope * np.sin(2 * np.pi * frequency * time + phase)
    return (sound * 10 ** rng.uniform(-2, 0)).clip(-1, 1).astype(np.float32)


def features(*shape: Size) -> Input:
    """Numbers around 0 of standard deviation about 1, now and then a large one."""

    def draw(rng: Rng, size: tuple[int, ...]) -> np.ndarray:
        return (rng.standard_t(6, size).clip(-5, 5) * rng.uniform(0.5, 1.3)).astype(np.float32)

    return Input(shape, draw)


def positive(*shape: Size, high: float = 1.0) -> Input:
    """Numbers of 0 to `high`, most of them small."""
    return Input(shape, lambda rng, size: (high * rng.random(size) ** 3).astype(np.float32))


def constant(value: float, *shape: Size) -> Input:
    """The same number everywhere, in every sample."""
    return Input(shape, lambda rng, size: np.full(size, value, np.float32))


def tokens(vocabulary: int, *shape: Size, dtype: type = np.int64) -> Input:
    """Ids below `vocabulary`; small ids are frequent."""
    return Input(shape, lambda rng, size: (vocabulary * rng.random(size) ** 1.5).astype(dtype))


def flags(*shape: Size, dtype: type = np.float32, share: float = 0.7) -> Input:
    """Ones and zeros (or True and False); the first of the last axis is always a one."""

    def draw(rng: Rng, size: tuple[int, ...]) -> np.ndarray:
        drawn = rng.random(size) < share
        drawn[..., :1] = True
        return drawn.astype(dtype)

    return Input(shape, draw)


def chosen(values: Sequence, *shape: Size, dtype: type = np.int64) -> Input:
    """Every number is one of `values`."""
    return Input(shape, lambda rng, size: rng.choice(np.array(values, dtype), size))


def as_type(spec: Input, dtype: type) -> Input:
    """The same samples in another type."""
    return replace(spec, draw=lambda rng, size: spec.draw(rng, size).astype(dtype))
