"""Loading and saving of models, also above the 2 GiB limit of one protobuf message."""

from __future__ import annotations

import os
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.core.files import replacing
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import external_data, normal_form, not_a_network

# A protobuf message must be smaller than 2 GiB; the margin is for everything but initializers.
EMBED_LIMIT_BYTES = 1_900_000_000

_UNREADABLE = (
    google.protobuf.message.DecodeError,
    onnx.checker.ValidationError,
    ir.serde.SerdeError,
    ValueError,
    TypeError,
    KeyError,
)
"""Exceptions that onnx_ir raises for bytes that are not a model."""


def load(path: str | Path) -> ir.Model:
    """Load an ``.onnx`` file; external data is memory-mapped, not read.

    Raises:
        ModelError: the file is missing, truncated, empty, not ONNX or no network of tensors, or external data is
            missing, too short, or does not belong to the model.
    """
    return read(path)[0]


def read(path: str | Path) -> tuple[ir.Model, tuple[str, ...]]:
    """Load a file as :func:`load` does; return also notes on what was changed to read it, one sentence each."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not an ONNX file" if path.is_dir() else "no such file"
        raise ModelError(what, where=path, hint="give the path of an .onnx file")
    if str(path).encode(errors="ignore") != os.fsencode(path):  # not UTF-8
        raise ModelError("has a name that onnxruntime cannot open", where=repr(str(path)), hint="rename the file")
    try:
        proto = onnx.load(path, load_external_data=False)
        not_a_network.refuse(proto, path)
        external_data.locate(proto, path)
        sparse = normal_form.make_dense(proto)
        normal_form.sort_nodes(proto.graph)
        normal_form.separate_names(proto.graph)
        model = ir.from_proto(proto)
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=path, hint="check the file") from None
    except _UNREADABLE as error:
        raise ModelError(
            f"is not an ONNX file, or is incomplete ({_first_line(error)})",
            where=path,
            hint="export or copy it again",
        ) from None
    if not model.graph.outputs or not any(True for _ in model.graph):
        raise ModelError("contains no nodes or no outputs", where=path, hint="export or copy it again")
    for tensor in _external(model):
        _check_external(tensor, path)
    for value in (*model.graph.inputs, *model.graph.outputs, *(o for n in model.graph.all_nodes() for o in n.outputs)):
        _forget_negative_sizes(value)
    model.graph.name = model.graph.name or path.stem  # onnx's checker wants a name, onnxruntime does not
    return model, (f"sparse constants ({sparse}) became dense ones",) if sparse else ()


def _forget_negative_sizes(value: ir.Value) -> None:
    """Make sizes of -1 unknown. Old exporters mean that by -1, but shape inference takes it for a size."""
    shape = value.shape
    if shape is not None and any(isinstance(size, int) and size < 0 for size in shape):
        value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in shape])


def _first_line(error: BaseException) -> str:
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__  # onnx_ir's message says where; the last cause says what is wrong
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    return [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]


def _check_external(tensor: ir.ExternalTensor, model_path: Path) -> None:
    file = Path(tensor.path)
    needed = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if file.stat().st_size < needed:
        raise ModelError(
            f"its external data file {file.name!r} has {file.stat().st_size} bytes, and {needed} are needed",
            where=model_path,
            hint="copy it again",
        )


def weight_bytes(model: ir.Model) -> int:
    """Total bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def save(model: ir.Model, path: str | Path) -> None:
    """Save `model` as one file, or as ``name.onnx`` and ``name.onnx.data`` if it is too large.

    After a failure, an existing file is as it was before.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with replacing(path) as folder:
        save_in_place(model, folder / path.name)


def save_in_place(model: ir.Model, path: Path) -> None:
    """Save as :func:`save` does, but directly to `path`, for callers with a temporary folder of their own."""
    if weight_bytes(model) > EMBED_LIMIT_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        path.write_bytes(to_bytes(model))


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf message with external data embedded; weights must be smaller than 1.9 GB.

    Raises:
        ModelError: the model is damaged: it has names that are not text, or attributes without a type.
    """
    try:
        data: bytes = ir.to_proto(embedded(model)).SerializeToString()
    except ir.serde.SerdeError as error:
        where = f"graph {model.graph.name!r}"
        raise ModelError(f"is damaged ({_first_line(error)})", where=where, hint="export or copy it again") from None
    return data


def embedded(model: ir.Model) -> ir.Model:
    """`model` itself, or a clone with external tensors read into memory."""
    if not _external(model):
        return model
    return ir.external_data.load_to_model(model.clone())


def _spec(value: ir.Value) -> TensorSpec:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower()
        hint = "export the part of the model that works on tensors"
        raise ModelError(f"is a {kind}, but only tensors are supported", where=f"graph value {value.name!r}", hint=hint)
    if value.name is None or value.dtype is None:
        raise ModelError("has no element type", where=f"graph value {value.name!r}", hint="export the model again")
    dims: tuple[int | str | None, ...] = ()
    if value.shape is not None:
        dims = tuple(_dim(dim) for dim in value.shape)
    return TensorSpec(value.name, np.dtype(value.dtype.numpy()), dims)


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim
    # Old exporters write "?" where they mean "unknown".
    return dim.value if dim.value and dim.value != "?" else None


def inputs(model: ir.Model) -> list[TensorSpec]:
    """Inputs that a session needs: those of the graph without a default value."""
    return [_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers]


def outputs(model: ir.Model) -> list[TensorSpec]:
    """The graph's outputs."""
    return [_spec(value) for value in model.graph.outputs]
