"""Harmonic tones of known pitch in noise, and the reading of CREPE's outputs (arXiv 1802.06182)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.models import audio, store

LENGTH = 1024


def samples(name: str, seed: int, n: int, part: int) -> Path:
    """Field ``x``: `n` tones, float32 [1024] at 16 kHz; ``y``: their frequencies in Hz. part: 0 tests, 1 calibrates."""

    def make() -> store.Arrays:
        return store.stack(
            _tone(np.random.default_rng([seed, part, index]), ("white", "pink")[index % 2]) for index in range(n)
        )

    return store.samples(f"{name}-{part}-{n}", make)


def _tone(rng: np.random.Generator, colour: str) -> tuple[np.ndarray, float]:
    """A tone of 60 to 960 Hz with up to 12 harmonics, 20 to −5 dB above the noise, and its frequency."""
    frequency = 60 * 2 ** rng.uniform(0, 4)
    harmonics = np.arange(1, 1 + min(12, int(7500 / frequency)))
    heights = rng.uniform(0.3, 1, harmonics.size) * harmonics ** -rng.uniform(0.4, 1.6)
    phases = 2 * np.pi * (np.outer(np.arange(LENGTH) / audio.RATE, harmonics * frequency) + rng.random(harmonics.size))
    tone = np.sin(phases) @ heights
    signal = tone / audio.rms(tone) + 10 ** (rng.uniform(-20, 5) / 20) * audio.noise(rng, LENGTH, colour)
    return ((signal - signal.mean()) / signal.std()).astype(np.float32), float(frequency)


def _cents(probabilities: np.ndarray) -> float:
    """Cents above 10 Hz: the mean of the nine bins around the best one, weighted; bins are 20 cents apart."""
    best = int(probabilities.argmax())
    near = np.arange(max(0, best - 4), min(360, best + 5))
    return float(np.average(1997.3794084376191 + 20 * near, weights=probabilities[near] + 1e-12))


def within_50_cents(run: store.Run, test: Path) -> float:
    """The share of tones whose pitch is estimated within half a semitone."""
    truth = 1200 * np.log2(store.field(test) / 10)
    heard = [_cents(run({"frames": tone[None]})[0][0]) for tone in store.rows(test)]
    return float(np.mean(np.abs(np.array(heard) - truth) < 50))
