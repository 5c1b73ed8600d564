"""Calibration samples as files, one ``.npz`` for each: every contestant reads the same samples, one at a time.

Needs only NumPy, because the peers' environments import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from toolchain.data.tensors import Feed


def write(feeds: Iterable[Feed], folder: Path) -> int:
    """Store `feeds` in `folder`; returns how many."""
    folder.mkdir(parents=True)
    number = 0
    for number, feed in enumerate(feeds, start=1):
        np.savez(folder / f"{number:05}.npz", **feed)  # type: ignore[arg-type]  # names may not be savez's own
    return number


def read(folder: Path) -> Iterator[Feed]:
    """The feeds of a folder, each read when it is needed."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            yield dict(arrays)
