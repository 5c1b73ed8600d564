"""`Observation`: statistics of tensors, gathered from calibration data, and the file that stores them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.core.arrays import F64, I64
from toolchain.core.cache import read_cache, write_cache

OBSERVATION_VERSION = 4
"""Version of the file format."""


@dataclass(frozen=True)
class ChannelStats:
    """Statistics of the channels of one tensor, float64 [C] each.

    Attributes:
        mean: the mean of x.
        square: the mean of x².
        minimum: the smallest x.
        maximum: the largest x.
    """

    mean: F64
    square: F64
    minimum: F64
    maximum: F64


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one float32 tensor over all samples.

    Attributes:
        minimum: the smallest value.
        maximum: the largest value.
        count: number of elements that the histogram counts.
        channels: statistics by channel, None where no axis was asked for.
        histogram: int64 [bins], equal bins over [minimum, maximum]; a value on an inner edge counts in the right bin.
    """

    minimum: float
    maximum: float
    count: int
    channels: ChannelStats | None
    histogram: I64

    @property
    def edges(self) -> F64:
        """The edges of the bins, float64 [bins + 1]."""
        return np.linspace(self.minimum, self.maximum, len(self.histogram) + 1)


@dataclass(frozen=True)
class Observation:
    """Statistics of several tensors of one model.

    Attributes:
        tensors: statistics by tensor name.
        samples: number of samples.
        model_sha256: hash of the model; empty for a model that is too large to hash.
        data_fingerprint: hash of the samples.
    """

    tensors: Mapping[str, TensorStats]
    samples: int
    model_sha256: str
    data_fingerprint: str

    def save(self, path: Path) -> None:
        """Write an ``.npz``, whole or not at all."""
        names = sorted(self.tensors)
        stats = [self.tensors[name] for name in names]
        channels = [s.channels for s in stats]
        tables = [np.stack([c.mean, c.square, c.minimum, c.maximum]) for c in channels if c is not None]
        file = io.BytesIO()
        np.savez(
            file,
            version=np.array(OBSERVATION_VERSION),
            names=np.array(names, dtype=np.str_),
            limits=np.array([[s.minimum, s.maximum] for s in stats], dtype=np.float64).reshape(-1, 2),
            counts=np.array([s.count for s in stats], dtype=np.int64),
            channel_sizes=np.array([-1 if c is None else len(c.mean) for c in channels], dtype=np.int64),
            channels=np.concatenate(tables, axis=1) if tables else np.empty((4, 0)),
            histograms=np.stack([s.histogram for s in stats]) if stats else np.empty((0, 0), np.int64),
            samples=np.array(self.samples),
            sources=np.array([self.model_sha256, self.data_fingerprint]),
        )
        write_cache(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Observation | None:
        """Read what :meth:`save` wrote; None where there is no readable file of this version."""
        return read_cache(path, cls._parse)

    @classmethod
    def _parse(cls, content: bytes) -> Observation | None:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return cls._from_arrays(file) if int(file["version"]) == OBSERVATION_VERSION else None

    @classmethod
    def _from_arrays(cls, file: Mapping[str, npt.NDArray[Any]]) -> Observation:
        sizes = file["channel_sizes"]
        ends = np.cumsum(np.maximum(sizes, 0))[:-1]
        tables = np.split(file["channels"], ends, axis=1) if len(sizes) else []
        tensors = {
            str(name): TensorStats(
                float(low), float(high), int(count), None if size < 0 else ChannelStats(*table), histogram
            )
            for name, (low, high), count, size, table, histogram in zip(
                file["names"], file["limits"], file["counts"], sizes, tables, file["histograms"], strict=True
            )
        }
        model, data = (str(text) for text in file["sources"])
        return cls(tensors, int(file["samples"]), model, data)
