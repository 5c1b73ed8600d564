"""`convert`: whatever the user has, as a checked ONNX model with the proof that it is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from toolchain.conversion.freeze import freeze as freeze_axes
from toolchain.conversion.from_onnx import from_onnx
from toolchain.conversion.inputs import random_feed
from toolchain.conversion.parity import Parity, Reference, measure
from toolchain.conversion.route import Imported
from toolchain.core.errors import GateError, InputError, ModelError, one_line
from toolchain.core.user_code import is_callable_spec, load_callable, user_code
from toolchain.formats.manifest import Source
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import check, io, run

if TYPE_CHECKING:
    import torch

ModelSource: TypeAlias = "str | Path | torch.nn.Module"
"""A file, ``package.module:callable``, or a module."""

# What people have instead of a model, by suffix, and what to do about it.
_NOT_MODELS = {
    (".pt", ".pth", ".ckpt", ".bin", ".safetensors"): (
        "holds weights, not a model",
        "write a function that builds the module and loads them, and give package.module:function",
    ),
    (".tflite", ".pb", ".h5", ".keras"): ("is a TensorFlow file", "turn it into ONNX with tf2onnx first"),
    (".ort",): ("is packaged for onnxruntime already", "give the .onnx file it was made from"),
}


@dataclass(frozen=True)
class Converted:
    """A model ready to be optimized.

    source: what it was made from, with its hash. exporter: what wrote the ONNX.
    notes: what was changed or fell short on the way, in sentences.
    parity: how close it is to its source; None for an ONNX file taken as it is, and where the source
        (an ONNX file of an old opset) ran on none of the random inputs, which the notes then say.
    """

    model: ir.Model
    source: Source
    exporter: str
    notes: tuple[str, ...]
    parity: Parity | None


def convert(
    source: ModelSource,
    *,
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
) -> Converted:
    """Bring `source` to ONNX (opset 17 or later), check it, and compare it with the source.

    Args:
        source: the path of an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an
            ``nn.Module``, or the module itself.
        inputs: what a module takes; an axis that is no number is dynamic. Only for modules.
        freeze: sizes for dynamic axes, by name or as ``input.axis``.

    Raises:
        ModelError: the source is missing, damaged, or uses what the toolchain cannot run.
        InputError: wrong `inputs` or `freeze`.
        GateError: the converted model does not compute what its source computes.
    """
    imported = _import(source, inputs)
    model = imported.model
    freeze_axes(model, freeze or {})
    check.check(model)
    notes = list(imported.notes)
    if freeze:
        _check_runs(model, freeze)
        notes.append("fixed " + ", ".join(f"{name} = {size}" for name, size in freeze.items()))
    parity = None
    if imported.reference is not None:
        for size in imported.sizes:
            parity = parity or _measured(model, imported, imported.reference, size)
        if parity is None:
            notes.append("the upgraded model was not compared: the original ran on no random input")
    return Converted(model, imported.source, imported.source.exporter, tuple(notes), parity)


def _measured(model: ir.Model, imported: Imported, reference: Reference, size: int) -> Parity | None:
    """As :func:`measure`; where the second exporter had to step in, that is why a model is off."""
    try:
        return measure(model, reference, size=size, ids=imported.ids)
    except GateError as error:
        if not imported.source.exporter.endswith("torchscript"):
            raise
        raise GateError(error.what, where=error.where, hint=imported.notes[0]) from None


def _import(source: ModelSource, inputs: Sequence[TensorSpec]) -> Imported:
    if not isinstance(source, str | Path):
        return _from_module(source, inputs, type(source).__name__)
    path = Path(source)
    if not path.exists() and is_callable_spec(str(source)):
        _need_torch(str(source))
        found: object = load_callable(str(source), error=ModelError)
        if not hasattr(found, "state_dict") or isinstance(found, type):
            with user_code(source, ModelError):
                found = found()  # type: ignore[operator]  # load_callable gives callables
        return _from_module(found, inputs, str(source))
    if inputs:
        what = "inputs are given, but only a torch module needs them: a file states its own"
        raise InputError(what, where=source, hint="drop --input")
    for suffixes, (what, hint) in _NOT_MODELS.items():
        if path.suffix.lower() in suffixes and path.is_file():
            raise ModelError(what, where=path, hint=hint)
    if not path.exists():
        hint = "give an .onnx or .pt2 file, or package.module:callable"
        raise ModelError("no such file", where=path, hint=hint)
    if path.suffix.lower() != ".pt2":
        return from_onnx(path)
    _need_torch(str(path))
    from toolchain.conversion.from_torch import from_pt2

    return from_pt2(path)


def _from_module(module: object, inputs: Sequence[TensorSpec], name: str) -> Imported:
    _need_torch(name)
    import torch

    if not isinstance(module, torch.nn.Module):
        what = f"gives an object of type {type(module).__name__}, not a torch.nn.Module"
        raise ModelError(what, where=name, hint="return a module")
    from toolchain.conversion.from_torch import from_module

    return from_module(module, inputs, name)


def _need_torch(name: str) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ModelError("torch is not installed", where=name, hint="pip install 'edge-toolchain[torch]'") from None


def _check_runs(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """A model all of whose axes are fixed must run; where some stay dynamic, their sizes are not known."""
    specs = io.inputs(model)
    if not all(isinstance(dim, int) for spec in specs for dim in spec.dims):
        return
    where = "freeze " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    try:
        run.run(model, [random_feed(specs, 0)])
    except run.OrtError as error:
        what = f"the model does not run with these sizes ({one_line(error)})"
        raise InputError(what, where=where, hint="choose others") from None
    except ModelError as error:  # shape inference refused while loading
        what = f"the model does not load with these sizes ({error.what})"
        raise InputError(what, where=where, hint="choose others") from None
