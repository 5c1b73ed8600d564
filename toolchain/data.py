"""`CalibrationData`: a few hundred unlabelled samples, read again and again and never all at once.

Sources (the command line's ``DATA``)
    a folder of images     with a `Preprocess` pipeline
    a folder of ``.npy``   one sample a file
    an ``.npz``            one array an input, the leading axis counts samples
    ``module:callable``    yields dictionaries of arrays, one feed each, again at every call

A *feed* is what the model's session takes: a dictionary from input name to array, batch axis included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output. dims: sizes, names of dynamic axes, or None where unknown."""

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.dims)}]"
