"""Weights beside a model file: which files a model may name, and where they are.

A model file is data from strangers, so it may only name files that belong to it. Their names are relative paths
without "..", and after all links are followed they lie

1. in the model's folder, or below it; or
2. in the folder of the real model file, where the model is a link itself. The cache of ``huggingface_hub`` is of this
   form: ``snapshots/REVISION/model.onnx`` and ``model.onnx_data`` are links to two files of one folder ``blobs``.

Hard links are ordinary files. onnx_ir refuses them, and layouts of the second kind, so the checks here replace its own:
tensors get absolute paths, which it does not check.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from toolchain.core.errors import ModelError

LOCATION = "location"
"""The key of a file's name in the external data of a tensor."""


def locate(proto: onnx.ModelProto, path: Path) -> None:
    """Replace the names of all external data files in `proto` by absolute paths.

    Raises:
        ModelError: a file is missing, or does not belong to the model at `path`.
    """
    for tensor in tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        for entry in tensor.external_data:
            if entry.key == LOCATION:
                entry.value = str(_find(_name(entry), path))


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and attributes, also those of subgraphs and functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _name(entry: onnx.StringStringEntryProto) -> str | bytes:
    """The value of `entry`: protobuf returns bytes if it is not UTF-8."""
    value: str | bytes = entry.value
    return value


def _find(name: str | bytes, model: Path) -> Path:
    """The absolute path of the external data file `name` of `model`, with all links followed."""
    if isinstance(name, bytes):
        what = f"the name of its external data file cannot be read ({name!r})"
        raise ModelError(what, where=model, hint="export or copy it again")
    what = f"its external data file {name!r}"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        hint = "save model and weights again in one folder"
        raise ModelError(f"{what} is named by an absolute path", where=model, hint=hint)
    if ".." in (*PurePosixPath(name).parts, *PureWindowsPath(name).parts):
        hint = "save model and weights again in one folder"
        raise ModelError(f"{what} lies outside the model's folder", where=model, hint=hint)
    try:
        file = (model.parent / name).resolve(strict=True)
        real_model = model.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # a link to itself, or a name with a zero byte
        file = None
    if file is None or not file.is_file():
        raise ModelError(f"{what} is missing", where=model, hint="copy it next to the model")
    if not (file.is_relative_to(model.parent.resolve()) or file.parent == real_model.parent):
        what += f" is a link to {str(file)!r}, outside the model's folder"
        raise ModelError(what, where=model, hint="copy the file itself next to the model")
    return file
