"""`convert`: a torch module, a ``.pt2`` or an ``.onnx`` file as a checked ONNX model, compared with its source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from toolchain.conversion import repeatability
from toolchain.conversion.freeze import freeze as freeze_axes
from toolchain.conversion.from_onnx import MIN_OPSET, from_onnx
from toolchain.conversion.imported import Imported
from toolchain.conversion.inputs import concrete, random_feed
from toolchain.conversion.parity import Parity, measure, measure_on
from toolchain.conversion.widen import widen, widened_note
from toolchain.core.errors import GateError, InputError, ModelError, one_line
from toolchain.core.user_code import is_callable_spec, load_callable, user_code
from toolchain.data.tensors import Feed
from toolchain.formats.manifest import Source
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import check, io, run

if TYPE_CHECKING:
    import torch

ModelSource: TypeAlias = "str | Path | torch.nn.Module"
"""A file, ``package.module:callable``, or a module."""

LOGGER = logging.getLogger(__name__)

# Files that users may take for a model, by suffix: what they are, and what to give instead.
_NOT_MODELS = {
    (".pt", ".pth", ".ckpt", ".bin", ".safetensors"): (
        "holds weights, not a model",
        "write a function that builds the module and loads the weights, and give package.module:function",
    ),
    (".tflite", ".pb", ".h5", ".keras"): ("is a TensorFlow file", "convert it to ONNX with tf2onnx first"),
    (".ort",): ("is already packaged for onnxruntime", "give the .onnx file it was made from"),
    (".py",): ("is Python code, not a model", "give package.module:function, where the function returns the module"),
}


NOT_COMPARED = "the upgraded model was not compared: the original ran on no random input"
"""The note on a model that was changed and not compared with its source."""


@dataclass(frozen=True)
class Converted:
    """A model ready to be optimized.

    Attributes:
        model: the model.
        source: the file or module it was made from, with its hash.
        exporter: the program that wrote the ONNX model.
        notes: changes and limitations of the conversion that the user should know, one sentence each.
        parity: differences from the source; None for an ONNX file that was taken as it is, and for one of an old opset
            that ran on none of the random inputs (a note then says so).
        unmeasured: the source, where a comparison was wanted and it ran on none of the random inputs.
    """

    model: ir.Model
    source: Source
    exporter: str
    notes: tuple[str, ...]
    parity: Parity | None
    unmeasured: Imported | None = None


def convert(
    source: ModelSource,
    *,
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
) -> Converted:
    """Convert `source` to ONNX (opset 17 or later), check the result, and compare it with the source.

    Args:
        source: the path of an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` that returns an ``nn.Module``, or
            the module itself.
        inputs: inputs of a torch module; an axis that is not a number is dynamic. Files state their own.
        freeze: sizes for dynamic axes, by name or as ``input.axis``.

    Raises:
        ModelError: the source is missing, damaged, uses something that the toolchain cannot run, or gives two different
            results for one input.
        InputError: wrong `inputs` or `freeze`.
        GateError: the converted model does not compute what its source computes.
    """
    imported = _import(source, inputs)
    model = imported.model
    LOGGER.info("converted %s, written by %s", imported.source.name, imported.source.exporter)
    repeatability.refuse_training_mode(model, imported.source.name)
    freeze_axes(model, freeze or {})
    check.check(model)
    _check_repeatable(model, imported)
    notes = list(imported.notes)
    if freeze:
        _check_runs(model, freeze)
        notes.append("fixed " + ", ".join(f"{name} = {size}" for name, size in freeze.items()))
    parity = None
    if imported.reference is not None:
        for size in imported.sizes:
            parity = parity or _measured(model, imported, partial(measure, size=size, ids=imported.ids))
        if parity is None:
            notes.append(NOT_COMPARED)
    for note in notes:
        LOGGER.info("%s", note)
    unmeasured = imported if imported.reference is not None and parity is None else None
    return Converted(model, imported.source, imported.source.exporter, tuple(notes), parity, unmeasured)


def compared_on(converted: Converted, feeds: Iterable[Feed]) -> Converted:
    """Compare a model with its source on samples, where that was not possible on random inputs.

    Args:
        converted: the model; returned as it is where it was compared already.
        feeds: samples of the model's inputs.

    Raises:
        GateError: the model does not compute what its source computes.
        ModelError: the source gives two different results for one sample.
    """
    if converted.unmeasured is None:
        return converted
    parity = _measured(converted.model, converted.unmeasured, partial(measure_on, feeds=feeds))
    if parity is None:
        return converted
    notes = tuple(note for note in converted.notes if note != NOT_COMPARED)
    return replace(converted, notes=notes, parity=parity, unmeasured=None)


def _check_repeatable(model: ir.Model, imported: Imported) -> None:
    """Refuse a model whose random numbers reach an output. If it runs on no random input, the samples will show it."""
    if not repeatability.random_nodes(model):
        return
    engine = run.session(model)
    for size in imported.sizes:
        feed = random_feed(concrete(io.inputs(model), 1, size), 0, imported.ids)
        try:
            repeatability.check_repeatable(model, engine, feed, imported.source.name)
        except run.OrtError:
            continue  # it does not take this size
        return


def _measured(model: ir.Model, imported: Imported, measure: Callable[..., Parity | None]) -> Parity | None:
    """Measure parity. If it fails, the hint depends on who changed the model.

    For the TorchScript exporter it says why dynamo was not used; for an ONNX file only its upgrade can be the cause.
    """
    if imported.reference is None:
        return None
    try:
        parity = measure(model, imported.reference, half=imported.half)
        if parity is not None:
            error, samples = parity.max_rel_error, parity.samples
            LOGGER.info("parity with the source: largest relative error %.1e on %d samples", error, samples)
        return parity
    except GateError as error:
        if imported.source.kind == "onnx":
            kind = "as float32 " if imported.half else ""
            hint = f"its upgrade went wrong: export it again {kind}with opset {MIN_OPSET} or later"
        elif imported.source.exporter.endswith("torchscript"):
            hint = imported.notes[0]
        else:
            raise
        raise GateError(error.what, where=error.where, hint=hint) from None


def _import(source: ModelSource, inputs: Sequence[TensorSpec]) -> Imported:
    if not isinstance(source, str | Path):
        return _widened(_from_module(source, inputs, type(source).__name__))
    path = Path(source)
    if not path.exists() and is_callable_spec(str(source)):
        _need_torch(str(source))
        module: object = load_callable(str(source), error=ModelError)
        if not hasattr(module, "state_dict") or isinstance(module, type):
            with user_code(source, ModelError):
                module = module()  # type: ignore[operator]  # load_callable returns callables
        return _widened(_from_module(module, inputs, str(source)))
    for suffixes, (what, hint) in _NOT_MODELS.items():
        if path.suffix.lower() in suffixes and path.is_file():
            raise ModelError(what, where=path, hint=hint)
    if not path.exists():
        hint = "give an .onnx or .pt2 file, or package.module:callable"
        if ".py:" in str(source):
            hint = "give package.module:function, with dots between folders and without .py"
        raise ModelError("no such file", where=path, hint=hint)
    if inputs:
        what = f"states its inputs itself, so --input {inputs[0].name} does not apply"
        raise InputError(what, where=source, hint="leave --input out")
    if path.suffix.lower() != ".pt2":
        return from_onnx(path)
    _need_torch(str(path))
    from toolchain.conversion.from_torch import from_pt2

    return _widened(from_pt2(path))


def _widened(imported: Imported) -> Imported:
    """Make a module's model float32 if it computes in 16-bit floats; `from_onnx` does so itself, before the upgrade."""
    halves = widen(imported.model)
    return replace(imported, notes=(*imported.notes, widened_note(halves)), half=True) if halves else imported


def _from_module(module: object, inputs: Sequence[TensorSpec], name: str) -> Imported:
    _need_torch(name)
    import torch

    if not isinstance(module, torch.nn.Module):
        what = f"returns an object of type {type(module).__name__}, not a torch.nn.Module"
        raise ModelError(what, where=name, hint="return the module")
    from toolchain.conversion.from_torch import from_module

    return from_module(module, inputs, name)


def _need_torch(name: str) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ModelError("torch is not installed", where=name, hint="pip install 'edge-toolchain[torch]'") from None


def _check_runs(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Run a model whose axes are all fixed. One with other dynamic axes is not run, since their sizes are not known."""
    specs = io.inputs(model)
    if not all(isinstance(dim, int) for spec in specs for dim in spec.dims):
        return
    where = "freeze " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    try:
        run.run(model, [random_feed(specs, 0)])
    except run.OrtError as error:
        what = f"the model does not run with these sizes ({one_line(error)})"
        raise InputError(what, where=where, hint="choose other sizes") from None
    except ModelError as error:  # shape inference refused while loading
        what = f"the model does not load with these sizes ({error.what})"
        raise InputError(what, where=where, hint="choose other sizes") from None
