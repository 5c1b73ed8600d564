"""Recordings from Debian packages at 16 kHz, noise of three kinds, and mel spectrograms."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from benchmarks.models import store

RATE = 16_000
PROMPTS = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "ru": "ru_RU_f_IvrvoiceRU"}
REQUIRES = (*(f"deb/asterisk-core-sounds-{language}-wav" for language in PROMPTS), "deb/klettres-data")
NO_SPEECH = ("ascending", "beep", "conf-", "descending", "silence", "spy-", "tone", "tt-")

Signal = np.ndarray  # float32 [samples]


def recordings() -> dict[str, list[Path]]:
    """Speaker → files: four voices of telephone prompts, and one reader for each language of an alphabet game."""
    files_by_speaker = {}
    for language, voice in PROMPTS.items():
        folder = store.path(f"deb/asterisk-core-sounds-{language}-wav", "usr/share/asterisk/sounds", voice)
        files_by_speaker[voice] = [file for file in sorted(folder.glob("*.wav")) if not file.name.startswith(NO_SPEECH)]
    for folder in sorted(store.path("deb/klettres-data", "usr/share/klettres").iterdir()):
        if files := sorted(folder.rglob("*.ogg")):
            files_by_speaker[folder.name] = files
    return files_by_speaker


def read(file: Path) -> Signal:
    """Read one channel at 16 kHz; other rates are resampled by cutting or extending the spectrum."""
    import soundfile

    signal, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono: Signal = signal.mean(1)
    if rate == RATE or not mono.size:
        return mono
    tenths = -(-10 * len(mono) // rate)  # whole tenths of a second: lengths with a fast FFT
    mono = np.pad(mono, (0, tenths * rate // 10 - len(mono)))
    resampled: Signal = np.fft.irfft(np.fft.rfft(mono), tenths * RATE // 10) * (RATE / rate)
    return resampled.astype(np.float32)


def noise(rng: np.random.Generator, length: int, colour: str) -> Signal:
    """Noise of unit power: ``white``, ``pink`` (power falls with frequency) or ``music`` (a plucked random tune)."""
    if colour == "music":
        beat = RATE // 4
        time = np.arange(beat) / RATE
        pitches = 220 * 2 ** (rng.integers(0, 24, -(-length // beat)) / 12)
        harmonics = np.arange(1, 5)
        phases = 2 * np.pi * pitches[:, None, None] * harmonics[:, None] * time
        tune = (np.exp(-4 * time) * (np.sin(phases) / harmonics[:, None]).sum(1)).ravel()[:length]
        signal = tune + 0.05 * rng.standard_normal(length)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(length))
        if colour == "pink":
            spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
        signal = np.fft.irfft(spectrum, length)
    scaled: Signal = signal / rms(signal)
    return scaled.astype(np.float32)


def rms(signal: Signal) -> float:
    return float(np.sqrt(np.mean(np.square(signal)))) + 1e-9


def mel(signal: Signal) -> np.ndarray:
    """Power in 40 mel bands, float32 [frames, 40]: 25 ms Hann windows, centred, every 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(signal, 200), 400)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2
    bands: np.ndarray = power @ _filters()
    return bands.astype(np.float32)


@functools.cache
def _filters() -> np.ndarray:
    """Slaney's triangles [201, 40]: edges linear up to 1 kHz (3 mel per 200 Hz), logarithmic above; unit area each."""
    octave = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(RATE / 2 / 1000) / octave, 42)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(octave * (mels - 15)))
    frequencies = np.linspace(0, RATE / 2, 201)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    triangles: np.ndarray = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles
