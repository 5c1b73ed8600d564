"""Golden data: a few inputs and the outputs an exported model must give for them, wherever it runs.

``golden.npz`` holds

    samples          how many samples there are (int64)
    input:NAME:I     input NAME of sample I, as the session takes it
    output:NAME:I    the expected output
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
    "Sample I goes in as the arrays input:NAME:I and must come out as output:NAME:I, "
    "for I below samples. NAME is the model's own name of the input or output."
)


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs expected for them, one dictionary by name a sample."""

    feeds: tuple[Feed, ...]
    outputs: tuple[dict[str, Array], ...]

    def __post_init__(self) -> None:
        if len(self.feeds) != len(self.outputs):
            raise ValueError(f"{len(self.feeds)} golden inputs but {len(self.outputs)} outputs")


@dataclass(frozen=True)
class Mismatch:
    """An output that is not as expected. differing: elements of `size`; all of them where shape or dtype is wrong.

    largest: greatest absolute difference, infinite where the two cannot be compared.
    """

    sample: int
    output: str
    differing: int
    size: int
    largest: float
    what: str

    def __str__(self) -> str:
        return f"sample {self.sample}, output {self.output!r}: {self.what}"


def save_golden(golden: Golden, path: Path) -> None:
    """Write ``golden.npz``, whole or not at all."""
    arrays: dict[str, Array] = {"samples": np.array(len(golden.feeds), np.int64), "about": np.array(_ABOUT)}
    for i, (feed, outputs) in enumerate(zip(golden.feeds, golden.outputs, strict=True)):
        arrays.update({f"input:{name}:{i}": array for name, array in feed.items()})
        arrays.update({f"output:{name}:{i}": array for name, array in outputs.items()})
    with replacing(path) as folder:
        np.savez_compressed(folder / path.name, allow_pickle=False, **arrays)


def load_golden(path: Path) -> Golden:
    """Read ``golden.npz``.

    Raises:
        DataError: missing, damaged or not golden data.
    """
    hint = "export the model again"
    try:
        with np.load(path, allow_pickle=False) as file:
            samples = int(file["samples"])
            sides: dict[str, list[dict[str, Array]]] = {
                side: [{} for _ in range(samples)] for side in ("input", "output")
            }
            for key in set(file.files) - {"samples", "about"}:
                # A name may hold colons itself, so the key is split from both ends.
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
    """What differs between `run`'s outputs and the expected ones; empty when all is well.

    Args:
        run: from a feed to outputs by name; it may give more outputs than are expected.
        golden: what to expect.
        tolerance: largest allowed difference, relative to the greatest magnitude of the expected output.
            0 asks for equality, as integer kernels give; where operators stay float a processor may round
            otherwise in the last place (1e-5 is then a fair choice).
    """
    found = []
    for i, (feed, expected) in enumerate(zip(golden.feeds, golden.outputs, strict=True)):
        outputs = run(feed)
        for name, want in expected.items():
            mismatch = _compare(i, name, want, outputs.get(name), tolerance)
            if mismatch is not None:
                found.append(mismatch)
    return found


def _compare(sample: int, name: str, want: Array, got: Array | None, tolerance: float) -> Mismatch | None:
    if got is None:
        return Mismatch(sample, name, want.size, want.size, float("inf"), "is missing")
    if got.shape != want.shape or got.dtype != want.dtype:
        what = f"is {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
        return Mismatch(sample, name, want.size, want.size, float("inf"), what)
    numeric = np.issubdtype(want.dtype, np.number)
    with np.errstate(invalid="ignore"):  # inf - inf
        gap = np.abs(got.astype(np.float64) - want.astype(np.float64)) if numeric else np.full(want.shape, np.inf)
    equal = got == want
    if np.issubdtype(want.dtype, np.floating):
        equal |= np.isnan(got) & np.isnan(want)
    if numeric and tolerance > 0:
        equal |= gap <= tolerance * float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want)))
    if np.all(equal):
        return None
    differing = int(np.count_nonzero(~equal))
    largest = float(np.max(np.nan_to_num(gap[~equal], nan=np.inf, posinf=np.inf)))
    what = f"{differing} of {want.size} elements differ, by at most {largest:.3g}"
    return Mismatch(sample, name, differing, want.size, largest, what)
