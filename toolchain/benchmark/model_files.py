"""Files that belong to a model: the model file, and the files beside it that hold its weights."""

from __future__ import annotations

import mmap
from pathlib import Path, PurePosixPath

from toolchain.core.errors import ModelError


def model_files(path: Path) -> list[str]:
    """Return the names of a model's files below its folder, the model file's own name first.

    Raises:
        ModelError: the file is not an ONNX model, or its weights are missing or lie outside its folder.
    """
    if path.suffix != ".onnx" or path.stat().st_size == 0:
        return [path.name]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"location") < 0:
            return [path.name]  # External data has this key; without it, the slow import and parse are not needed.
    import onnx
    from google.protobuf.message import DecodeError

    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except DecodeError:
        raise ModelError("is no ONNX model", where=path, hint="check the file") from None
    names = sorted({e.value for t in tensors for e in t.external_data if e.key == "location"})
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"has weights outside its folder, in {name}", where=path, hint="save it in one folder")
        if not (path.parent / name).is_file():
            raise ModelError(f"its weights in {name} are missing", where=path, hint="copy them beside it")
    return [path.name, *names]


def model_bytes(path: Path) -> int:
    """Return the size of a model file together with its external data files.

    Raises:
        ModelError: as for `model_files`.
    """
    return sum((path.parent / name).stat().st_size for name in model_files(path))
