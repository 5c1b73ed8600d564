"""`CalibrationData`: a few hundred unlabelled samples, read again and again and never all at once.

Sources (the command line's ``DATA``)
    a folder of images     with a `Preprocess` pipeline; sub-folders included
    a folder of ``.npy``   one sample a file
    an ``.npz``            one array an input, the leading axis counts samples (a lone ``.npy`` likewise)
    ``module:callable``    yields dictionaries of arrays, one feed each, again at every call

A *feed* is what the model's session takes: a dictionary from input name to array, batch axis included.
A sample from a file whose rank is one below the input's gets a batch axis of one. Everything is checked
against the model's inputs in one streaming pass when the data is opened; samples are numbered from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toolchain.core.errors import DataError
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.readers import ANONYMOUS, Reader, Sample, from_arrays, from_calls, from_images, from_npy_files
from toolchain.data.tensors import Feed, check_finite, conform, digest
from toolchain.formats.preprocess import IMAGE_SUFFIXES, PIPELINES, Preprocess, load_preprocess
from toolchain.formats.tensor_spec import TensorSpec

UNNAMED = "arr_0"
"""What numpy calls an array that was saved without a name."""

DataSpec = str | Path | Callable[[], Iterable[Mapping[str, object]]] | Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class CalibrationData:
    """Checked samples; iterating yields one `Feed` after another, freshly read every time.

    source: where they come from, as the user wrote it.
    preprocessing: the image pipeline in full, or None.
    """

    source: str
    preprocessing: dict[str, object] | None
    _reader: Reader = field(repr=False)
    _inputs: tuple[TensorSpec, ...] = field(repr=False)
    _numbers: tuple[int, ...] = field(repr=False)
    _digests: tuple[bytes, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Feed]:
        """Raises DataError where a sample has changed or vanished since the data was opened."""
        read = 0
        for sample, known in zip(self._reader.read(self._numbers), self._digests, strict=False):
            feed = _feed(sample, self._reader, self._inputs)
            if digest(feed) != known:
                what = "differs from what it was when it was first read"
                raise DataError(what, where=_place(sample, self._reader), hint="give the same samples each time")
            read += 1
            yield feed
        if read < len(self):
            what = f"gave {len(self)} samples at first and {read} when read again"
            raise DataError(what, where=self.source, hint="return a fresh iterator at every call")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the samples in their source, from 0: how errors name them."""
        return self._numbers

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every feed's names, dtypes, shapes and bytes, in order."""
        return hashlib.sha256(b"".join(self._digests)).hexdigest()

    def take(self, n: int) -> CalibrationData:
        """At most `n` of the samples, evenly spread."""
        return self._subset(_spread(len(self), n, self.source))

    def split(self, every: int = 4, most: int = 64) -> tuple[CalibrationData, CalibrationData]:
        """The samples to calibrate on, and those held out: one of `every`, at most `most`.

        Fewer than two times `every` samples are too few to spare any and serve for both.
        """
        if len(self) < 2 * every:
            return self, self
        held = range(every - 1, len(self), every)[:most]
        return self._subset([i for i in range(len(self)) if i not in held]), self._subset(held)

    def _subset(self, chosen: Sequence[int]) -> CalibrationData:
        numbers, digests = tuple(self._numbers[i] for i in chosen), tuple(self._digests[i] for i in chosen)
        return replace(self, _numbers=numbers, _digests=digests)


def check_source(spec: DataSpec, preprocess: str | Path | None = None) -> None:
    """Refuse what no model could be calibrated on: called before one is converted, which may take minutes.

    Raises:
        DataError: nothing there, an empty folder, an unreadable archive, no function of that name.
        ConfigError: an unknown pipeline, or a pipeline file that does not follow its schema.
    """
    _locate(spec, preprocess)


def open_data(
    spec: DataSpec,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: str | Path | None = None,
    samples: int | None = None,
) -> CalibrationData:
    """Open calibration data and check all of it against a model's inputs, one sample in memory at a time.

    Args:
        spec: a path, ``module:callable``, a function, or a sequence of feeds; see the module's docstring.
        inputs: what the model takes.
        preprocess: a named image pipeline or the path of a TOML file; for folders of images.
        samples: use at most so many, evenly spread over the data.

    Raises:
        DataError: nothing there, unreadable, or a name, shape, dtype or value that does not fit
            (:func:`toolchain.data.tensors.conform`).
        ConfigError: an unknown pipeline, or a pipeline file that does not follow its schema.
    """
    inputs = tuple(inputs)
    if not inputs:
        raise DataError("the model takes no inputs", where=_name(spec), hint="calibration needs a model with inputs")
    located = _locate(spec, preprocess)
    reader, preprocessing = (located, None) if isinstance(located, Reader) else _fit(located, inputs, str(preprocess))
    numbers = None if reader.count is None else _spread(reader.count, samples, reader.source)
    found, digests = [], []
    for sample in reader.read(numbers):
        feed = _feed(sample, reader, inputs)
        check_finite(feed, _place(sample, reader))
        found.append(sample.number)
        digests.append(digest(feed))
    if not found:
        raise DataError("gives no samples", where=reader.source, hint="yield a few hundred dictionaries of arrays")
    data = CalibrationData(reader.source, preprocessing, reader, inputs, tuple(found), tuple(digests))
    return data if samples is None else data.take(samples)


def _spread(count: int, samples: int | None, where: str) -> list[int]:
    """`samples` of ``range(count)``, each the middle of its share."""
    if samples is not None and samples < 1:
        raise DataError(f"{samples} samples are asked for", where=where, hint="ask for at least 1")
    n = count if samples is None else min(count, samples)
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]


def _place(sample: Sample, reader: Reader) -> str:
    return f"{reader.source}: sample {sample.number}" + (f" ({sample.label})" if sample.label else "")


def _feed(sample: Sample, reader: Reader, inputs: Sequence[TensorSpec]) -> Feed:
    arrays = sample.arrays
    if not reader.batched and isinstance(arrays, Mapping) and len(arrays) == 1:
        name = next(iter(arrays))
        if name in (ANONYMOUS, UNNAMED) and len(inputs) == 1:
            arrays = {inputs[0].name: arrays[name]}
        elif name == ANONYMOUS:
            raise _feeds_one(reader.source, inputs)
    return conform(arrays, inputs, _place(sample, reader), add_batch=not reader.batched)


def _feeds_one(where: object, inputs: Sequence[TensorSpec]) -> DataError:
    return DataError(
        f"feeds one input, and the model takes {len(inputs)}: {', '.join(spec.name for spec in inputs)}",
        where=where,
        hint="give an .npz with one array an input, or module:callable",
    )


def _name(spec: DataSpec) -> str:
    if isinstance(spec, str | Path):
        return str(spec)
    if callable(spec):
        return f"{getattr(spec, '__module__', '?')}:{getattr(spec, '__qualname__', type(spec).__name__)}"
    return f"{type(spec).__name__} of feeds"


@dataclass(frozen=True)
class _Images:
    """A folder of images and how the user wants them."""

    folder: Path
    files: Sequence[Path]
    pipeline: Preprocess


def _locate(spec: DataSpec, preprocess: str | Path | None) -> Reader | _Images:
    """Everything that can be said before it is known what the model takes."""
    where = _name(spec)
    if isinstance(spec, str | Path):
        path = Path(where)
        if path.is_dir():
            files = _listing(path)
            if files[0].suffix.lower() in IMAGE_SUFFIXES:
                return _Images(path, files, _pipeline(path, preprocess))
            reader = from_npy_files(path, files)
        elif path.exists() or not is_callable_spec(where):
            reader = _open_file(path)
        else:
            reader = from_calls(where, load_callable(where, error=DataError))
    else:
        reader = from_calls(where, spec if callable(spec) else lambda: spec)
    if preprocess is not None:
        raise DataError("only images are preprocessed, and these are arrays", where=where, hint="drop --preprocess")
    return reader


def _listing(folder: Path) -> list[Path]:
    """The folder's samples, sorted by path: all images or all arrays."""
    files = [f for f in folder.rglob("*") if f.is_file() and not any(p[0] == "." for p in f.relative_to(folder).parts)]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [file for file in files if file.suffix.lower() == ".npy"]
    if images and arrays:
        raise DataError("holds both images and .npy files", where=folder, hint="separate them")
    if not images and not arrays:
        others = ", ".join(sorted({file.suffix or file.name for file in files})[:5])
        raise DataError(
            f"holds no samples, only {others}" if others else "is an empty folder",
            where=folder,
            hint=f"put images ({' '.join(IMAGE_SUFFIXES)}) or .npy files there",
        )
    return sorted(images or arrays, key=lambda file: file.relative_to(folder).as_posix())


def _open_file(path: Path) -> Reader:
    if not path.exists():
        raise DataError(
            "no such file or folder",
            where=path,
            hint="give a folder of images, a folder of .npy files, an .npz, or module:callable",
        )
    if path.suffix.lower() not in (".npz", ".npy"):
        image = path.suffix.lower() in IMAGE_SUFFIXES
        raise DataError(
            "is neither a folder nor an .npz file",
            where=path,
            hint="give the folder that holds it" if image else "save the arrays with numpy.savez",
        )
    return from_arrays(path)


def _pipeline(folder: Path, preprocess: str | Path | None) -> Preprocess:
    if preprocess is None:
        raise DataError(
            "holds images, and how the model wants them is not known",
            where=folder,
            hint=f"give --preprocess one of {', '.join(PIPELINES)}, or a TOML file",
        )
    return load_preprocess(preprocess)


def _fit(images: _Images, inputs: Sequence[TensorSpec], preprocess: str) -> tuple[Reader, dict[str, object]]:
    """The images as the model takes them, and what is done to them in full."""
    folder, files = images.folder, images.files
    if len(inputs) > 1:
        raise _feeds_one(folder, inputs)
    try:
        pipeline = images.pipeline.fitted(inputs[0].dims)
    except DataError as error:
        raise DataError(error.what, where=folder, hint=error.hint) from None
    if inputs[0].dtype == np.uint8 and not pipeline.raw:
        raise DataError(
            "the model takes pixels as they are (uint8)", where=folder, hint="give a TOML file with scale = 1"
        )
    stated = {"name": preprocess, **pipeline.model_dump(mode="json", exclude={"schema_version"})}
    if inputs[0].dtype == np.uint8:
        return from_images(folder, files, lambda path: pipeline(path).astype(np.uint8)), stated
    return from_images(folder, files, pipeline), stated
