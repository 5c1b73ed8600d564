"""How samples come off the disk, or out of a function, one at a time.

A `Reader` yields raw arrays; whether they fit the model is checked in `tensors`. An array without a name of
its own (an image, a ``.npy`` file) goes under `ANONYMOUS`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError
from toolchain.core.user_code import user_code

ANONYMOUS = ""
MOST_CALLS = 100_000
"""A function that yields more samples than this is taken to have no end."""

_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""zipfile says RuntimeError to a flipped flag: encrypted."""


@dataclass(frozen=True)
class Sample:
    """label: what tells it from others beside its number, such as a file name."""

    number: int
    label: str
    arrays: object


@dataclass(frozen=True)
class Reader:
    """Samples that can be read again and again.

    count: None where only reading to the end can tell.
    read: yields the samples of these ascending numbers; of all for None.
    batched: arrays carry the batch axis already, so none may be added.
    """

    source: str
    count: int | None
    read: Callable[[Sequence[int] | None], Iterator[Sample]]
    batched: bool = False


def from_images(folder: Path, files: Sequence[Path], pipeline: Callable[[Path], object]) -> Reader:
    """One image a sample."""
    return _from_files(folder, files, pipeline)


def from_npy_files(folder: Path, files: Sequence[Path]) -> Reader:
    """One ``.npy`` file a sample."""
    return _from_files(folder, files, _load_npy)


def _from_files(folder: Path, files: Sequence[Path], load: Callable[[Path], object]) -> Reader:
    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        for number in range(len(files)) if numbers is None else numbers:
            file = files[number]
            yield Sample(number, file.relative_to(folder).as_posix(), {ANONYMOUS: load(file)})

    return Reader(str(folder), len(files), read)


def _load_npy(path: Path) -> object:
    try:
        return np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"cannot be read as numpy arrays ({reason})", where=path, hint="save it again with numpy")


def from_arrays(path: Path) -> Reader:
    """An ``.npz``, or one ``.npy``, whose leading axis counts samples; rows are streamed, not loaded at once.

    Raises:
        DataError: unreadable, no arrays, arrays without or with different leading axes.
    """
    try:
        with ExitStack() as stack:
            counts = {name: _header(file).shape[:1] for name, file in _members(path, stack).items()}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not counts or any(not shape or shape[0] == 0 for shape in counts.values()):
        empty = next((name for name, shape in counts.items() if not shape or shape[0] == 0), None)
        what = "holds no arrays" if empty is None else f"array {empty!r} has no leading axis that counts samples"
        raise DataError(what, where=path, hint="save one array an input, stacked along a leading sample axis")
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{name!r} {shape[0]}" for name, shape in counts.items())
        raise DataError(f"its arrays hold different numbers of samples ({lengths})", where=path, hint="save it again")
    count = next(iter(counts.values()))[0]

    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        wanted = range(count) if numbers is None else numbers
        try:
            with ExitStack() as stack:
                columns = {name: _rows(file, wanted) for name, file in _members(path, stack).items()}
                for number in wanted:
                    yield Sample(number, "", {name: next(rows) for name, rows in columns.items()})
        except _UNREADABLE as error:
            raise _unreadable(path, error) from None

    return Reader(str(path), count, read)


def _members(path: Path, stack: ExitStack) -> dict[str, IO[bytes]]:
    if path.suffix == ".npy":
        return {ANONYMOUS: stack.enter_context(path.open("rb"))}
    archive = stack.enter_context(zipfile.ZipFile(path))
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): stack.enter_context(archive.open(name)) for name in names}


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]


def _header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"numpy format version {version} is for structured arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    return header


def _rows(file: IO[bytes], wanted: Sequence[int]) -> Iterator[npt.NDArray[np.generic]]:
    header = _header(file)
    shape, dtype = header.shape, header.dtype
    if header.fortran:  # rows are interleaved, so there is nothing to stream
        array = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape, order="F")
        yield from (array[number] for number in wanted)
        return
    size, position = math.prod(shape[1:]) * dtype.itemsize, 0
    for number in wanted:
        file.seek((number - position) * size, 1)
        data, position = file.read(size), number + 1
        if len(data) < size:
            raise EOFError(f"it ends within sample {number}")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


def from_calls(source: str, factory: Callable[[], object]) -> Reader:
    """`factory` is called for every reading, and gives an iterable of dictionaries of arrays."""

    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        wanted = None if numbers is None else set(numbers)
        with user_code(source, DataError):
            samples = factory()
        if not isinstance(samples, Iterable) or isinstance(samples, Mapping):
            raise DataError(
                f"gives an object of type {type(samples).__name__}, not an iterable of samples",
                where=source,
                hint="yield one dictionary from input name to array for every sample",
            )
        iterator = iter(samples)
        for number in range(MOST_CALLS + 1):
            if wanted is not None and not wanted:
                return
            with user_code(f"{source}: sample {number}", DataError):
                try:
                    arrays = next(iterator)
                except StopIteration:
                    return
            if wanted is None or number in wanted:
                yield Sample(number, "", arrays)
            if wanted is not None:
                wanted.discard(number)
        raise DataError(f"yields more than {MOST_CALLS} samples", where=source, hint="end it after a few hundred")

    return Reader(source, None, read, batched=True)
