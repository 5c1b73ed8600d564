"""`CalibrationData`: a few hundred unlabelled samples that can be read repeatedly and are never all in memory.

Sources
    a folder of images       with a `Preprocess` pipeline; sub-folders included
    a folder of ``.npy``     one sample in each file
    an ``.npz``              one array for each input, the leading axis counts samples; a single ``.npy`` likewise
    a dictionary of arrays   with the same contents as an ``.npz``; or one array, for a model with one input
    a list of feeds          dictionaries of arrays with their batch axis
    a function               returns an iterable of feeds; on the command line ``package.module:callable``
    a generator              yields feeds; it is read once
    a data loader            such as ``torch.utils.data.DataLoader``; its batches are divided into single samples
    a dataset                an object with ``__len__`` and ``__getitem__``, such as ``torch.utils.data.TensorDataset``

A *feed* is the input of one call of the model's session: a dictionary from input name to array, with the batch axis. A
tuple of arrays is taken in the order of the model's inputs, a single array as the only input; torch tensors count as
arrays. If a sample comes from a file, an array in memory, a data loader or a dataset and has one axis less than the
input, it gets a batch axis of size one. An array called ``labels`` that the model does not take is ground truth:
training uses it, everything else ignores it.

Opening the data reads all of it once and checks it against the model's inputs; samples are numbered from 0. A source
that may give other samples at a second reading (a generator, a loader that shuffles, a function that augments) is
copied to disk while it is opened, so that every later step sees the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

import numpy as np

from toolchain.core.errors import DataError
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.images import IMAGE_SUFFIXES, read_image
from toolchain.data.readers import (
    NO_NAME,
    Indexed,
    Reader,
    Sample,
    from_arrays,
    from_calls,
    from_dataset,
    from_images,
    from_loader,
    from_memory,
    from_npy_files,
)
from toolchain.data.spool import MAX_SPOOL_BYTES, Spool
from toolchain.data.tensors import Array, Feed, as_array, check_finite, conform, digest
from toolchain.formats.preprocess import PIPELINES, Preprocess, load_preprocess
from toolchain.formats.tensor_spec import TensorSpec

NO_SAMPLES_HINT = "yield a few hundred dictionaries of arrays"
NUMPY_DEFAULT_NAME = "arr_0"
"""The name that numpy gives an array that is saved without one."""
LABELS = "labels"
"""The array of ground truth beside a sample's inputs: int64 classes, or floats with the shape of the first output."""

DataSpec = str | Path | Mapping[str, Array] | Array | Iterable[object] | Callable[[], Iterable[object]] | Indexed
"""A source of samples, as listed in the module's docstring."""


@dataclass(frozen=True)
class CalibrationData:
    """Checked samples; iterating reads them again and yields one `Feed` after another.

    Attributes:
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
        """Yield the feeds; raise DataError where a sample has changed or vanished since the data was opened."""
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
        """The samples' positions in their source, from 0, as errors name them."""
        return self._numbers

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of every feed's names, dtypes, shapes and bytes, in order."""
        return hashlib.sha256(b"".join(self._digests)).hexdigest()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the first sample, by the input's name."""
        return {name: array.shape for name, array in next(iter(self)).items()}

    def take(self, n: int) -> CalibrationData:
        """Return at most `n` of the samples, evenly spread."""
        return self._subset(_spread(len(self), n, self.source))

    def split(self, every: int = 4, most: int = 64) -> tuple[CalibrationData, CalibrationData]:
        """Divide the samples into those to calibrate on and those held out: one in `every`, and at most `most`.

        With fewer than two times `every` samples, all of them are used for both.
        """
        if len(self) < 2 * every:
            return self, self
        held = range(every - 1, len(self), every)[:most]
        return self._subset([i for i in range(len(self)) if i not in held]), self._subset(held)

    def _subset(self, chosen: Sequence[int]) -> CalibrationData:
        numbers, digests = tuple(self._numbers[i] for i in chosen), tuple(self._digests[i] for i in chosen)
        return replace(self, _numbers=numbers, _digests=digests)


def check_source(spec: DataSpec, preprocess: str | Path | None = None) -> None:
    """Refuse a source that is unusable for every model. Call this before a model is converted, which takes time.

    Raises:
        DataError: there is nothing, an empty folder, an unreadable archive, no function of that name, or an object of a
            type that gives no samples.
        ConfigError: an unknown pipeline, or a pipeline file that does not follow its schema.
    """
    _find_source(spec, preprocess)


def open_data(
    spec: DataSpec,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: str | Path | None = None,
    samples: int | None = None,
    labels: bool = False,
) -> CalibrationData:
    """Open calibration data and check all of it against a model's inputs, one sample in memory at a time.

    Args:
        spec: one of the sources in the module's docstring.
        inputs: the model's inputs.
        preprocess: a named image pipeline or the path of a TOML file; for folders of images.
        samples: use at most this many, evenly spread over the data.
        labels: feeds keep the array `LABELS` if the samples have it.

    Raises:
        DataError: there is nothing, it cannot be read, or a name, shape, dtype or value does not fit
            (:func:`toolchain.data.tensors.conform`).
        ConfigError: an unknown pipeline, or a pipeline file that does not follow its schema.
    """
    inputs = tuple(inputs)
    if not inputs:
        raise DataError("the model takes no inputs", where=_name(spec), hint="calibration needs a model with inputs")
    reader, preprocessing = _reader_for(_find_source(spec, preprocess), inputs, str(preprocess))
    numbers = None if reader.count is None else _spread(reader.count, samples, reader.source)
    spool = None if reader.rereading == "stable" else Spool()
    specs: tuple[TensorSpec, ...] = ()
    read, digests = [], []
    for sample in reader.read(numbers):
        specs = specs or (*inputs, *(_label_specs(sample, reader, inputs) if labels else ()))
        feed = _feed(sample, reader, specs)
        check_finite(feed, _place(sample, reader))
        read.append(sample.number)
        digests.append(digest(feed))
        if spool is not None:
            spool.write(sample.number, feed)
            if spool.full and reader.rereading == "never":
                what = f"gives more than {MAX_SPOOL_BYTES / 2**30:g} GiB of samples, and can be read only once"
                raise DataError(what, where=reader.source, hint="end it after a few hundred samples")
    if not read:
        what = "gives no samples" + (", or was read before" if reader.rereading == "never" else "")
        raise DataError(what, where=reader.source, hint=NO_SAMPLES_HINT)
    if spool is not None and not spool.full:
        reader = spool.reader(reader.source)
    data = CalibrationData(reader.source, preprocessing, reader, specs, tuple(read), tuple(digests))
    return data if samples is None else data.take(samples)


def _label_specs(sample: Sample, reader: Reader, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the spec of the labels in the first sample, if it has any: int64 for all integers, float32 for floats."""
    arrays = _named(sample.arrays, inputs)
    if not isinstance(arrays, Mapping) or LABELS not in arrays or any(spec.name == LABELS for spec in inputs):
        return []
    array = as_array(arrays[LABELS], _place(sample, reader))
    kind = np.dtype(np.float32 if array.dtype.kind == "f" else np.int64)
    return [TensorSpec(LABELS, kind, ("batch", *(array.shape[1:] if reader.batched else array.shape)))]


def _spread(count: int, samples: int | None, where: str) -> list[int]:
    """Return `samples` numbers below `count`, evenly spread: each is the middle of an equal part; None: all."""
    if samples is not None and samples < 1:
        raise DataError(f"{samples} samples are requested", where=where, hint="request at least 1")
    n = count if samples is None else min(count, samples)
    return [(2 * i + 1) * count // (2 * n) for i in range(n)]


def _place(sample: Sample, reader: Reader) -> str:
    return f"{reader.source}: sample {sample.number}" + (f" ({sample.label})" if sample.label else "")


def _feed(sample: Sample, reader: Reader, inputs: Sequence[TensorSpec]) -> Feed:
    arrays = _named(sample.arrays, inputs)
    if not reader.batched and isinstance(arrays, Mapping) and len(arrays) == 1:
        name = next(iter(arrays))
        if name in (NO_NAME, NUMPY_DEFAULT_NAME) and len(inputs) == 1:
            arrays = {inputs[0].name: arrays[name]}
        elif name == NO_NAME:
            raise _one_input_error(reader.source, inputs)
    if isinstance(arrays, Mapping) and LABELS in arrays and all(spec.name != LABELS for spec in inputs):
        arrays = {name: array for name, array in arrays.items() if name != LABELS}
    return conform(arrays, inputs, _place(sample, reader), add_batch=not reader.batched)


def _named(arrays: object, inputs: Sequence[TensorSpec]) -> object:
    """Name the arrays of a tuple: by the model's inputs in their order, and `LABELS` if there is one more.

    A single array gets the name of the only input.
    """
    names = [spec.name for spec in inputs if spec.name != LABELS]
    if isinstance(arrays, tuple | list) and len(arrays) in (len(names), len(names) + 1):
        return dict(zip([*names, LABELS], arrays, strict=False))
    if hasattr(arrays, "__array__") and len(names) == 1:
        return {names[0]: arrays}
    return arrays


def _one_input_error(where: object, inputs: Sequence[TensorSpec]) -> DataError:
    return DataError(
        f"has data for one input, but the model takes {len(inputs)}: {', '.join(spec.name for spec in inputs)}",
        where=where,
        hint="give an .npz with one array for each input, or module:callable",
    )


def _name(spec: DataSpec) -> str:
    if isinstance(spec, str | Path):
        return str(spec)
    if callable(spec):
        return f"{getattr(spec, '__module__', '?')}:{getattr(spec, '__qualname__', type(spec).__name__)}"
    if isinstance(spec, Mapping):
        return "dictionary of arrays"
    return f"{type(spec).__name__} of feeds" if isinstance(spec, Sequence) else type(spec).__name__


@dataclass(frozen=True)
class _Images:
    """A folder of images, and the pipeline to read them with."""

    folder: Path
    files: Sequence[Path]
    pipeline: Preprocess


@dataclass(frozen=True)
class _Loader:
    """An iterable that yields batches."""

    source: str
    batches: Iterable[object]


def _find_source(spec: DataSpec, preprocess: str | Path | None) -> Reader | _Images | _Loader:
    """Find the source, with all checks that do not need the model's inputs."""
    where = _name(spec)
    source: Reader | _Loader
    if isinstance(spec, str | Path):
        path = Path(where)
        if path.is_dir():
            files = _listing(path)
            if files[0].suffix.lower() in IMAGE_SUFFIXES:
                return _Images(path, files, _pipeline(path, preprocess))
            source = from_npy_files(path, files)
        elif path.exists() or not is_callable_spec(where):
            source = _open_file(path)
        else:
            source = from_calls(where, load_callable(where, error=DataError))
    else:
        source = _from_object(spec, where)
    if preprocess is not None:
        hint = "leave --preprocess out"
        raise DataError("only images are preprocessed, and these are arrays", where=where, hint=hint)
    return source


def check_kind(spec: object) -> None:
    """Refuse an object of a type that gives no samples.

    Raises:
        DataError: neither a path, nor arrays, nor anything that is iterated, indexed or called.
    """
    kinds = (str, Path, Mapping, Iterable)
    if isinstance(spec, bytes | bytearray) or not (isinstance(spec, kinds) or callable(spec) or _is_indexed(spec)):
        raise DataError(
            f"is of type {type(spec).__name__}, which gives no samples",
            where="calibration data",
            hint="give a path, a dictionary of arrays, an array, a list, generator or function of feeds, a data loader "
            "or a dataset",
        )


def _is_indexed(spec: object) -> TypeGuard[Indexed]:
    return hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, type)


def _from_object(spec: object, where: str) -> Reader | _Loader:
    """Return the way to read a Python object: a reader of samples, or a loader of batches."""
    check_kind(spec)
    if isinstance(spec, Mapping):
        return from_memory(where, {str(name): as_array(a, f"{where}, {str(name)!r}") for name, a in spec.items()})
    if hasattr(spec, "__array__"):
        return from_memory(where, {NO_NAME: as_array(spec, where)})
    if isinstance(spec, Sequence):
        _check_list(spec, where)
        return from_calls(where, lambda: spec, "stable")
    if isinstance(spec, Iterator):
        return from_calls(where, lambda: spec, "never")
    if isinstance(spec, Iterable):
        return _Loader(where, spec)
    if _is_indexed(spec):
        return from_dataset(where, spec)
    assert callable(spec)
    return from_calls(where, spec)


def _check_list(spec: Sequence[object], where: str) -> None:
    """Refuse a list without samples, or with items that cannot be samples of any model."""
    if not spec:
        raise DataError("gives no samples", where=where, hint=NO_SAMPLES_HINT)
    for number, item in enumerate(spec):
        if not isinstance(item, Mapping | tuple | list) and not hasattr(item, "__array__"):
            what = f"is of type {type(item).__name__}, not a dictionary from input name to array"
            raise DataError(what, where=f"{where}: sample {number}", hint=NO_SAMPLES_HINT)


def _listing(folder: Path) -> list[Path]:
    """List the folder's samples, sorted by path: all are images, or all are arrays."""
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
            hint="give the folder with the images" if image else "save the arrays with numpy.savez",
        )
    return from_arrays(path)


def _pipeline(folder: Path, preprocess: str | Path | None) -> Preprocess:
    if preprocess is None:
        raise DataError(
            "holds images, and their preprocessing is not given",
            where=folder,
            hint=f"give --preprocess with one of {', '.join(PIPELINES)}, or a TOML file",
        )
    return load_preprocess(preprocess)


def _reader_for(
    source: Reader | _Images | _Loader, inputs: Sequence[TensorSpec], preprocess: str
) -> tuple[Reader, dict[str, object] | None]:
    """Return the reader of samples for these inputs, and all settings of the image pipeline."""
    if isinstance(source, _Images):
        return _image_reader(source, inputs, preprocess)
    if isinstance(source, _Loader):
        divide = partial(_single_samples, inputs)
        return from_loader(source.source, source.batches, divide), None
    return source, None


def _single_samples(inputs: Sequence[TensorSpec], batch: object, where: str) -> list[object]:
    """Divide a batch into single samples, unless the model takes a fixed batch of another size.

    If an array has one axis less than its input, it is a sample, not a batch: some loaders do not make batches.
    """
    arrays = _named(batch, inputs)
    fixed = any(isinstance(spec.dims[0], int) and spec.dims[0] > 1 for spec in inputs if spec.dims)
    if not isinstance(arrays, Mapping) or fixed:
        return [arrays]
    columns = {name: as_array(array, f"{where}, input {name!r}") for name, array in arrays.items()}
    if any(spec.name in columns and columns[spec.name].ndim == len(spec.dims) - 1 for spec in inputs):
        return [{name: array[None] for name, array in columns.items()}]
    sizes = {array.shape[:1] for array in columns.values()}
    if len(sizes) != 1 or sizes == {()}:
        return [columns]
    ((size,),) = sizes
    return [{name: array[i : i + 1] for name, array in columns.items()} for i in range(size)]


def _image_reader(images: _Images, inputs: Sequence[TensorSpec], preprocess: str) -> tuple[Reader, dict[str, object]]:
    """Return a reader of the images in the model's shape and dtype, and all settings of the pipeline."""
    folder, files = images.folder, images.files
    if len(inputs) > 1:
        raise _one_input_error(folder, inputs)
    try:
        pipeline = images.pipeline.fitted(inputs[0].dims)
    except DataError as error:
        raise DataError(error.what, where=folder, hint=error.hint) from None
    if inputs[0].dtype == np.uint8 and not pipeline.raw:
        raise DataError(
            "the model takes unscaled pixels (uint8)", where=folder, hint="give --preprocess a TOML file with scale = 1"
        )
    stated = {"name": preprocess, **pipeline.model_dump(mode="json", exclude={"schema_version"})}
    if inputs[0].dtype == np.uint8:
        return from_images(folder, files, lambda path: read_image(path, pipeline).astype(np.uint8)), stated
    return from_images(folder, files, lambda path: read_image(path, pipeline)), stated
