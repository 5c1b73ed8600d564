"""Reading samples one at a time: from files, arrays in memory, functions, generators and data loaders.

A `Reader` yields arrays as they are; `tensors` checks whether they fit the model. An array without a name (an image, a
``.npy`` file, a single array) has the key `NO_NAME`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError
from toolchain.core.user_code import user_code
from toolchain.data.tensors import Array

NO_NAME = ""
"""The key of an array that has no name."""
MAX_SAMPLES = 100_000
"""A source that yields more samples than this is assumed to have no end."""

Rereading = Literal["stable", "possible", "never"]
"""The result of reading a source a second time.

- ``stable``: the same bytes (files, arrays in memory).
- ``possible``: perhaps other bytes (a function or loader that shuffles or augments).
- ``never``: nothing, because it is used up after one reading (a generator).
"""

_DAMAGED_FILE_ERRORS = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""Exceptions that numpy and zipfile raise for a damaged file (RuntimeError: damaged bytes claim encryption)."""


@dataclass(frozen=True)
class Sample:
    """One sample, not checked yet.

    Attributes:
        number: position in the source, from 0.
        label: its file's name, for messages; empty if it has no file of its own.
        arrays: a mapping from input name to array, a tuple of arrays, or an array.
    """

    number: int
    label: str
    arrays: object


@dataclass(frozen=True)
class Reader:
    """A source of samples.

    Attributes:
        source: name for messages.
        count: number of samples; None if it is known only after reading all.
        read: yields the samples with the given numbers, which ascend; None: all.
        batched: True if arrays already have the batch axis, so that none may be added.
        rereading: the result of calling `read` again.
    """

    source: str
    count: int | None
    read: Callable[[Sequence[int] | None], Iterator[Sample]]
    batched: bool = False
    rereading: Rereading = "stable"


def from_images(folder: Path, files: Sequence[Path], pipeline: Callable[[Path], object]) -> Reader:
    """Read one sample from each image file."""
    return _from_files(folder, files, pipeline)


def from_npy_files(folder: Path, files: Sequence[Path]) -> Reader:
    """Read one sample from each ``.npy`` file."""
    return _from_files(folder, files, _load_npy)


def _from_files(folder: Path, files: Sequence[Path], load: Callable[[Path], object]) -> Reader:
    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        for number in range(len(files)) if numbers is None else numbers:
            file = files[number]
            yield Sample(number, file.relative_to(folder).as_posix(), {NO_NAME: load(file)})

    return Reader(str(folder), len(files), read)


def _load_npy(path: Path) -> object:
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED_FILE_ERRORS as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"cannot be read as numpy arrays ({reason})", where=path, hint="save it again with numpy")


def from_arrays(path: Path) -> Reader:
    """Read the rows of an ``.npz`` or of one ``.npy``; the leading axis counts samples. Rows are streamed from disk.

    Raises:
        DataError: it cannot be read, has no arrays, or the arrays have no or different leading axes.
    """
    try:
        with ExitStack() as stack:
            counts = {name: _header(file).shape[:1] for name, file in _members(path, stack).items()}
    except _DAMAGED_FILE_ERRORS as error:
        raise _unreadable(path, error) from None
    count = _sample_count({name: shape[:1] for name, shape in counts.items()}, path)

    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        chosen = range(count) if numbers is None else numbers
        try:
            with ExitStack() as stack:
                columns = {name: _rows(file, chosen) for name, file in _members(path, stack).items()}
                for number in chosen:
                    yield Sample(number, "", {name: next(rows) for name, rows in columns.items()})
        except _DAMAGED_FILE_ERRORS as error:
            raise _unreadable(path, error) from None

    return Reader(str(path), count, read)


def from_memory(source: str, arrays: Mapping[str, Array]) -> Reader:
    """Read the rows of arrays in memory; their leading axes count the samples.

    Raises:
        DataError: there are no arrays, or they have no or different leading axes.
    """
    count = _sample_count({name: array.shape[:1] for name, array in arrays.items()}, source)

    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        for number in range(count) if numbers is None else numbers:
            yield Sample(number, "", {name: array[number] for name, array in arrays.items()})

    return Reader(source, count, read)


def _sample_count(leading: Mapping[str, tuple[int, ...]], where: object) -> int:
    """Return the number of samples in arrays with these leading axes."""
    unfit = next((name for name, axis in leading.items() if not axis or axis[0] == 0), None)
    if not leading or unfit is not None:
        named = f"array {unfit!r}" if unfit else "the array"
        what = "holds no arrays" if unfit is None else f"{named} has no leading axis that counts samples"
        if unfit is not None and leading[unfit]:
            what = f"{named} holds no samples, its leading axis is 0 long"
        raise DataError(what, where=where, hint="give one array for each input, stacked along a leading sample axis")
    if len(set(leading.values())) > 1:
        lengths = ", ".join(f"{name!r} {axis[0]}" for name, axis in leading.items())
        what = f"its arrays hold different numbers of samples ({lengths})"
        raise DataError(what, where=where, hint="give arrays of the same length")
    return next(iter(leading.values()))[0]


def _members(path: Path, stack: ExitStack) -> dict[str, IO[bytes]]:
    if path.suffix == ".npy":
        return {NO_NAME: stack.enter_context(path.open("rb"))}
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


def _rows(file: IO[bytes], numbers: Sequence[int]) -> Iterator[npt.NDArray[np.generic]]:
    header = _header(file)
    shape, dtype = header.shape, header.dtype
    if header.fortran:  # rows are interleaved, so there is nothing to stream
        array = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape, order="F")
        yield from (array[number] for number in numbers)
        return
    size, position = math.prod(shape[1:]) * dtype.itemsize, 0
    for number in numbers:
        file.seek((number - position) * size, 1)
        data, position = file.read(size), number + 1
        if len(data) < size:
            raise EOFError(f"it ends within sample {number}")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


def from_calls(source: str, factory: Callable[[], object], rereading: Rereading = "possible") -> Reader:
    """Read from a function that returns an iterable of samples; it is called for every reading.

    Args:
        source: name for messages.
        factory: the function.
        rereading: ``stable`` if the samples are known to stay the same, as in a list.
    """
    return _from_iterables(source, factory, lambda item, where: [item], rereading)


class Indexed(Protocol):
    """Samples by number, such as a ``torch.utils.data.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> object: ...


def from_dataset(source: str, dataset: Indexed) -> Reader:
    """Read single samples, without a batch axis, by number; the dataset may augment them."""
    with user_code(source, DataError):
        count = len(dataset)
    if not count:
        raise DataError("is empty", where=source, hint="give a few hundred samples")

    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        for number in range(count) if numbers is None else numbers:
            with user_code(f"{source}: sample {number}", DataError):
                arrays = dataset[number]
            yield Sample(number, "", arrays)

    return Reader(source, count, read, rereading="possible")


Divide = Callable[[object, str], Iterable[object]]
"""Takes an item of a user's iterable and its name in errors; returns the samples in it."""


def from_loader(source: str, loader: Iterable[object], divide: Divide) -> Reader:
    """Read from an iterable that gives batches, such as ``torch.utils.data.DataLoader``.

    Args:
        source: name for messages.
        loader: iterated for every reading.
        divide: turns a batch into samples.
    """
    return _from_iterables(source, lambda: loader, divide, "possible")


def _from_iterables(source: str, factory: Callable[[], object], divide: Divide, rereading: Rereading) -> Reader:
    def read(numbers: Sequence[int] | None) -> Iterator[Sample]:
        left = None if numbers is None else set(numbers)
        for number, arrays in enumerate(_items(source, factory, divide)):
            if left is None or number in left:
                yield Sample(number, "", arrays)
            if left is not None:
                left.discard(number)
                if not left:
                    return

    return Reader(source, None, read, batched=True, rereading=rereading)


def _items(source: str, factory: Callable[[], object], divide: Divide) -> Iterator[object]:
    """Yield the samples of a user's iterable; every exception in it becomes a DataError that names the sample."""
    with user_code(source, DataError):
        samples = factory()
    if not isinstance(samples, Iterable) or isinstance(samples, Mapping):
        raise DataError(
            f"gives an object of type {type(samples).__name__}, not an iterable of samples",
            where=source,
            hint="yield one dictionary from input name to array for every sample",
        )
    number = 0
    with user_code(f"{source}: sample {number}", DataError):
        iterator = iter(samples)
    while True:
        where = f"{source}: sample {number}"
        with user_code(where, DataError):
            try:
                item = next(iterator)
            except StopIteration:
                return
        for part in divide(item, where):
            if number == MAX_SAMPLES:
                what = f"yields more than {MAX_SAMPLES} samples"
                raise DataError(what, where=source, hint="end it after a few hundred")
            yield part
            number += 1
