"""`Observation`: what the calibration data showed of every tensor, and its file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.files import replacing

VERSION = 2


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one float32 tensor over all samples.

    count: elements seen. channel_mean: float64 [C] along the channel axis that was asked for, or None.
    histogram: int64 [bins], equal bins over [minimum, maximum], values on an inner edge counted right.
    """

    minimum: float
    maximum: float
    count: int
    channel_mean: npt.NDArray[np.float64] | None
    histogram: npt.NDArray[np.int64]

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The bins' edges, float64 [bins + 1]."""
        return np.linspace(self.minimum, self.maximum, len(self.histogram) + 1)


@dataclass(frozen=True)
class Observation:
    """Statistics by tensor name, and what they were taken from."""

    tensors: Mapping[str, TensorStats]
    samples: int
    model_sha256: str
    data_fingerprint: str

    def save(self, path: Path) -> None:
        """Write an ``.npz``, whole or not at all."""
        names = sorted(self.tensors)
        stats = [self.tensors[name] for name in names]
        means = [np.empty(0) if s.channel_mean is None else s.channel_mean for s in stats]
        with replacing(path) as folder, open(folder / path.name, "wb") as file:
            np.savez(
                file,
                version=np.array(VERSION),
                names=np.array(names, dtype=np.str_),
                limits=np.array([[s.minimum, s.maximum] for s in stats], dtype=np.float64).reshape(-1, 2),
                counts=np.array([s.count for s in stats], dtype=np.int64),
                mean_sizes=np.array(
                    [-1 if s.channel_mean is None else len(s.channel_mean) for s in stats], dtype=np.int64
                ),
                means=np.concatenate(means) if means else np.empty(0),
                histograms=np.stack([s.histogram for s in stats]) if stats else np.empty((0, 0), np.int64),
                samples=np.array(self.samples),
                sources=np.array([self.model_sha256, self.data_fingerprint]),
            )

    @classmethod
    def load(cls, path: Path) -> Observation | None:
        """Read what :meth:`save` wrote; None where there is no readable file of this version."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls._parse(file) if int(file["version"]) == VERSION else None
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
            return None  # zipfile says RuntimeError to a flipped flag: encrypted, or compressed in unknown ways

    @classmethod
    def _parse(cls, file: Mapping[str, npt.NDArray[Any]]) -> Observation:
        sizes = file["mean_sizes"]
        means = np.split(file["means"], np.cumsum(np.maximum(sizes, 0))[:-1]) if len(sizes) else []
        tensors = {
            str(name): TensorStats(float(low), float(high), int(count), None if size < 0 else mean, histogram)
            for name, (low, high), count, size, mean, histogram in zip(
                file["names"], file["limits"], file["counts"], sizes, means, file["histograms"], strict=True
            )
        }
        model, data = (str(text) for text in file["sources"])
        return cls(tensors, int(file["samples"]), model, data)
