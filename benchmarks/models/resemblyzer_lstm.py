"""Resemblyzer's speaker encoder (three LSTM layers), tested on voices in noise, four clips of each voice enrolled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import audio, store
from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "resemblyzer_lstm"
KIND = "LSTM, speaker embedding"
PACKAGE = "resemblyzer 0.1.4"
LICENSE = "Apache-2.0"
METRIC = "speaker accuracy (236 clips of 14 voices)"
REQUIRES = ("pypi/resemblyzer", *audio.REQUIRES)

FRAMES = 160  # of 10 ms
CALIBRATION, ENROLLED, TESTED, FEWEST = 4, 4, 20, 6  # clips of each speaker, who needs at least FEWEST for tests
SNR_DB = 20


def module() -> nets.SpeakerEncoder:
    from benchmarks.models import nets

    weights = store.path(REQUIRES[0], "resemblyzer/pretrained.pt")
    return nets.loaded(nets.SpeakerEncoder(), weights, entry="model_state")


def onnx_path() -> Path:
    return store.exported(NAME, module, {"mels": np.zeros((2, FRAMES, 40), np.float32)}, "speaker")


def _speech(signal: audio.Signal) -> audio.Signal:
    """Remove pauses from a signal: 20 ms pieces below 8 % of the level of the loudest."""
    pieces = signal[: len(signal) // 320 * 320].reshape(-1, 320)
    level = np.sqrt(np.square(pieces).mean(1))
    loud: audio.Signal = pieces[level > 0.08 * level.max(initial=0)]
    return loud.ravel()


def _clips(files: list[Path]) -> Iterator[audio.Signal]:
    """Clips of 1.6 s of speech; short recordings are joined, and no recording is in two clips."""
    clip = np.zeros(0, np.float32)
    for file in files:
        clip = np.concatenate([clip, _speech(audio.read(file))])
        if len(clip) >= FRAMES * 160:
            yield clip[: FRAMES * 160]
            clip = clip[:0]


def _mel(clip: audio.Signal, rng: np.random.Generator) -> np.ndarray:
    """Mel spectrogram at −30 dB of full scale, as the encoder was trained, with noise SNR_DB below the speech."""
    colour = ("white", "pink", "music")[rng.integers(3)]
    noisy = clip / audio.rms(clip) + 10 ** (-SNR_DB / 20) * audio.noise(rng, len(clip), colour)
    return audio.mel(noisy * 10 ** (-30 / 20))[:FRAMES]


def _samples() -> Path:
    """Field ``x`` clips, ``y`` speakers, ``part`` calibration 0, enrolment 1, test 2."""

    def make() -> store.Arrays:
        rng = np.random.default_rng(60)
        x, y, part = [], [], []
        for speaker, files in enumerate(audio.recordings().values()):
            clips = list(itertools.islice(_clips(files), CALIBRATION + ENROLLED + TESTED))
            tested = len(clips) - CALIBRATION - ENROLLED
            if tested >= FEWEST:
                x += [_mel(clip, rng) for clip in clips]
                y += [speaker] * len(clips)
                part += [0] * CALIBRATION + [1] * ENROLLED + [2] * tested
        return {"x": np.stack(x), "y": np.array(y), "part": np.array(part)}

    return store.samples(NAME, make)


def calibration(n: int) -> Iterator[Feed]:
    """`n` feeds; there are four clips of each speaker, which repeat after the last."""
    data = _samples()
    clips = [clip for clip, part in zip(store.rows(data), store.field(data, "part"), strict=True) if part == 0]
    order = np.random.default_rng(61).permutation(len(clips))
    return ({"mels": clips[order[index % len(clips)]][None]} for index in range(n))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    """The share of test clips nearest (cosine) to the mean of their own speaker's enrolled clips."""
    data = _samples()
    speakers, part = store.field(data), store.field(data, "part")
    speakers, clips = speakers[part > 0], itertools.compress(store.rows(data), part > 0)
    part = part[part > 0]
    heard = np.concatenate([run({"mels": clip[None]})[0] for clip in clips])
    known = np.unique(speakers)
    centres = np.stack([heard[(speakers == speaker) & (part == 1)].mean(0) for speaker in known])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    best = known[(heard[part == 2] @ centres.T).argmax(1)]
    return float(np.mean(best == speakers[part == 2]))
