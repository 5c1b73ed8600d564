"""Golden data: a few inputs, and the outputs that an exported model must give for them on every device.

``golden.npz`` contains

    samples          number of samples (int64)
    input:NAME:I     input NAME of sample I, as the session takes it
    output:NAME:I    the expected output NAME of sample I
    about            this description, as text
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolchain.core.errors import DataError
from toolchain.core.files import replacing
from toolchain.data.tensors import Array, Feed

_ABOUT = (
    "Give the model the arrays input:NAME:I of sample I; its outputs must equal output:NAME:I. "
    "I counts from 0 to samples - 1. NAME is the model's name of the input or output."
)


@dataclass(frozen=True)
class Golden:
    """Inputs and expected outputs: one dictionary from name to array for each sample."""

    feeds: tuple[Feed, ...]
    outputs: tuple[dict[str, Array], ...]

    def __post_init__(self) -> None:
        if len(self.feeds) != len(self.outputs):
            raise ValueError(f"{len(self.feeds)} golden inputs but {len(self.outputs)} outputs")


@dataclass(frozen=True)
class Mismatch:
    """An output that is not as expected.

    Attributes:
        sample: number of the sample, from 0.
        output: name of the output.
        differing: number of elements that differ; all of them where the output is missing or its shape or dtype is
            wrong.
        size: number of elements.
        largest: largest absolute difference, infinite where the two cannot be compared.
        difference: the difference in words.
    """

    sample: int
    output: str
    differing: int
    size: int
    largest: float
    difference: str

    def __str__(self) -> str:
        return f"sample {self.sample}, output {self.output!r}: {self.difference}"


def save_golden(golden: Golden, path: Path) -> None:
    """Write ``golden.npz``; an interrupted write leaves an earlier file as it was."""
    # Texts are objects to onnxruntime; only an array of texts can be stored without executable code in the file.
    arrays: dict[str, Array] = {"samples": np.array(len(golden.feeds), np.int64), "about": np.array(_ABOUT)}
    for i, (feed, outputs) in enumerate(zip(golden.feeds, golden.outputs, strict=True)):
        arrays.update({f"input:{name}:{i}": _plain(array) for name, array in feed.items()})
        arrays.update({f"output:{name}:{i}": _plain(array) for name, array in outputs.items()})
    with replacing(path) as folder:
        np.savez_compressed(folder / path.name, allow_pickle=False, **arrays)


def _plain(array: Array) -> Array:
    """Return an array of texts for an array of objects, and other arrays as they are."""
    return array.astype(np.str_) if array.dtype.kind in "OS" else array


def load_golden(path: Path) -> Golden:
    """Read ``golden.npz``.

    Raises:
        DataError: the file is missing, damaged, or not golden data.
    """
    hint = "export the model again"
    try:
        with np.load(path, allow_pickle=False) as file:
            samples = int(file["samples"])
            sides: dict[str, list[dict[str, Array]]] = {
                side: [{} for _ in range(samples)] for side in ("input", "output")
            }
            for key in set(file.files) - {"samples", "about"}:
                # A name may contain colons, so the key is split from both ends.
                side, _, rest = key.partition(":")
                name, _, i = rest.rpartition(":")
                sides[side][int(i)][name] = file[key]
    except FileNotFoundError:
        raise DataError("no such golden data file", where=path, hint=hint) from None
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(f"is not golden data, or it is damaged ({error})", where=path, hint=hint) from None
    return Golden(tuple(sides["input"]), tuple(sides["output"]))


def check_golden(
    run: Callable[[Feed], Mapping[str, Array]], golden: Golden, *, tolerance: float = 0.0
) -> list[Mismatch]:
    """Compare a model's outputs with the expected ones.

    Args:
        run: computes outputs by name from a feed; outputs that are not expected are ignored.
        golden: inputs and expected outputs.
        tolerance: largest allowed difference, relative to the largest magnitude of the expected output. 0 requires
            equal outputs, which integer kernels give. Where operators stay float, processors may round the last
            digit differently; 1e-5 allows that.

    Returns:
        The outputs that differ; empty where all are as expected.
    """
    mismatches = []
    for i, (feed, expected) in enumerate(zip(golden.feeds, golden.outputs, strict=True)):
        outputs = run(feed)
        for name, array in expected.items():
            mismatch = _compare(i, name, array, outputs.get(name), tolerance)
            if mismatch is not None:
                mismatches.append(mismatch)
    return mismatches


def _compare(sample: int, name: str, expected: Array, actual: Array | None, tolerance: float) -> Mismatch | None:
    if actual is None:
        return Mismatch(sample, name, expected.size, expected.size, float("inf"), "is missing")
    if expected.dtype.kind == "U":
        expected, actual = expected.astype(object), actual.astype(np.str_).astype(object)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        difference = f"is {actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
        return Mismatch(sample, name, expected.size, expected.size, float("inf"), difference)
    numeric = np.issubdtype(expected.dtype, np.number)
    with np.errstate(invalid="ignore"):  # inf - inf
        gap = (
            np.abs(actual.astype(np.float64) - expected.astype(np.float64))
            if numeric
            else np.full(expected.shape, np.inf)
        )
    equal = actual == expected
    if np.issubdtype(expected.dtype, np.floating):
        equal |= np.isnan(actual) & np.isnan(expected)
    if numeric and tolerance > 0:
        equal |= gap <= tolerance * float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    if np.all(equal):
        return None
    differing = int(np.count_nonzero(~equal))
    largest = float(np.max(np.nan_to_num(gap[~equal], nan=np.inf, posinf=np.inf)))
    difference = f"{differing} of {expected.size} elements differ, by at most {largest:.3g}"
    return Mismatch(sample, name, differing, expected.size, largest, difference)
