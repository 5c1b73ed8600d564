"""Copies of samples on disk, for sources that can be read only once, or give other samples at each reading."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from toolchain.data.readers import Reader, Sample
from toolchain.data.tensors import Feed

MAX_SPOOL_BYTES = 4 * 2**30
"""Most bytes in a spool: enough for a few hundred samples of any size that fits a small device."""


class Spool:
    """A temporary folder of feeds, one file for each sample; it is deleted when nothing refers to it any more.

    Attributes:
        full: True if a feed did not fit into `MAX_SPOOL_BYTES`; the spool is then incomplete.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="toolchain-samples-")
        self._numbers: list[int] = []
        self._names: tuple[str, ...] = ()
        self._bytes = 0
        self.full = False

    def write(self, number: int, feed: Feed) -> None:
        """Store one sample; a full spool takes no more."""
        self._bytes += sum(array.nbytes for array in feed.values())
        self.full = self.full or self._bytes > MAX_SPOOL_BYTES
        if self.full:
            return
        self._names = tuple(feed)
        np.savez(self._path(number), *feed.values())
        self._numbers.append(number)

    def reader(self, source: str) -> Reader:
        """Return a reader of the stored samples; the folder exists at least as long as the reader."""

        def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
            for number in self._numbers if numbers is None else numbers:
                with np.load(self._path(number)) as arrays:
                    yield Sample(number, "", dict(zip(self._names, arrays.values(), strict=True)))

        return Reader(source, len(self._numbers), read, batched=True)

    def _path(self, number: int) -> Path:
        return Path(self._folder.name, f"{number}.npz")
