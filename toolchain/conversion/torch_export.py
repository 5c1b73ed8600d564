"""Calls of torch's two exporters. The models get readable names and copies of the weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from toolchain.core.errors import ModelError
from toolchain.graph import edit

if TYPE_CHECKING:
    import torch

EXPORT_OPSET = 18
Axes = Mapping[str, Mapping[int, str]]
"""Names of the dynamic axes of each input, by position."""


def export_module(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], axes: Axes, by_name: bool, name: str
) -> tuple[ir.Model, str, tuple[str, ...]]:
    """Export a module.

    Returns:
        The ONNX model, the exporter that wrote it (``dynamo`` or ``torchscript``), and notes for the user.

    Raises:
        ModelError: both exporters fail.
    """
    args = () if by_name else tuple(tensors.values())
    kwargs = dict(tensors) if by_name else None
    shapes = (dict(axes) if by_name else tuple(axes.values())) if any(axes.values()) else None
    with quiet():
        try:
            return _dynamo(module, args, kwargs, shapes), "dynamo", ()
        except RuntimeError as error:
            first = reason(error)
        try:
            model = _torchscript(module, args, kwargs, list(tensors), axes)
        except RuntimeError as error:
            raise ModelError(
                f"torch cannot export it: dynamo says {first}; TorchScript says {reason(error)}",
                where=name,
                hint="change the module, or export it to ONNX yourself",
            ) from error
    note = (
        f"the dynamo exporter failed ({first}); traced by the TorchScript exporter instead, "
        "so branches that depend on data always take the path that the example input took"
    )
    return model, "torchscript", (note,)


def export_program(program: torch.export.ExportedProgram, name: str) -> ir.Model:
    """Convert an exported program to ONNX.

    Raises:
        ModelError: torch cannot convert it.
    """
    with quiet():
        try:
            return _dynamo(program, (), None, None)
        except RuntimeError as error:
            what = f"torch cannot export it ({reason(error)})"
            raise ModelError(what, where=name, hint="change the module that it was exported from") from error


def _dynamo(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, shapes: Any) -> ir.Model:
    import torch

    exported = torch.onnx.export(
        program, args, kwargs=kwargs, dynamo=True, opset_version=EXPORT_OPSET, dynamic_shapes=shapes, verbose=False
    )
    model: ir.Model = exported.model
    return model


def _torchscript(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None, names: list[str], axes: Axes
) -> ir.Model:
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        args,
        buffer,
        kwargs=kwargs,
        dynamo=False,
        opset_version=EXPORT_OPSET,
        input_names=names,
        dynamic_axes={name: dict(named) for name, named in axes.items() if named},
    )
    buffer.seek(0)
    model: ir.Model = ir.from_proto(onnx.load_model(buffer))
    return model


def reason(error: BaseException) -> str:
    """The first line of torch's message, or two if the first ends in a colon; the rest is advice."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(cause).__name__}: {first[:240]}".rstrip(": ")


def finish_export(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Copy all weights, remove stack traces of the exporting machine, and name inputs and outputs as the user does.

    `inputs` and `outputs` are these names; they are not set if their number differs from the model's.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    common.ClearMetadataAndDocStringPass()(model)
    _separate_outputs(model)
    ports = (*model.graph.inputs, *model.graph.outputs)
    if len(inputs) != len(model.graph.inputs) or len(outputs) != len(model.graph.outputs):
        return
    names = edit.Names(model.graph)
    for port in ports:  # free names first, since two may swap theirs
        port.name = names.fresh(f"{port.name}_port")
    for port, name in zip(ports, (*inputs, *outputs), strict=True):
        _set_name(model, port, name)


def _separate_outputs(model: ir.Model) -> None:
    """Add an Identity for a value that is an output twice, or an input and an output."""
    graph = model.graph
    names = edit.Names(graph)
    for index, value in enumerate(graph.outputs):
        if value.is_graph_input() or value.is_initializer() or value in graph.outputs[:index]:
            node = ir.node("Identity", [value], name=names.fresh(f"{value.name}_copy"))
            node.outputs[0].name = names.fresh(f"{value.name}_out")
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def _set_name(model: ir.Model, port: ir.Value, name: str) -> None:
    """Name an input or output. If an inner value has the name, that value gets another one.

    If another input or output has the name, `port` gets the name with a number. torch names values after the modules
    that made them, so an output named like an ``nn.Embedding`` would be written twice, which is an invalid file.
    """
    graph, names = model.graph, edit.Names(model.graph)
    if any(other.name == name for other in (*graph.inputs, *graph.outputs)):
        port.name = names.fresh(name)
        return
    inner = [*graph.initializers.values(), *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in inner:
        if value.name == name:
            value.name = names.fresh(name)
    port.name = name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporters, which log, warn and print whole graphs; we report one sentence instead."""
    disabled = logging.root.manager.disable
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        # All logging, since many of torch's loggers have their own level and handler.
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def output_tensors(outputs: object) -> list[tuple[str, torch.Tensor]]:
    """All tensors in the result of ``forward``, named by their keys or positions."""
    import torch
    from torch.utils import _pytree

    leaves, _ = _pytree.tree_flatten_with_path(outputs)
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]

    def name(path: Sequence[object]) -> str:
        parts = [str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", "")))) for p in path]
        return "_".join(parts if parts and not parts[0].isdigit() else ["output", *parts])

    return [(name(path), tensor) for path, tensor in tensors]
