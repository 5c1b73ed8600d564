"""Conversion of a torch module or a ``.pt2`` file with torch's exporters.

The dynamo exporter is used; if it fails, the TorchScript exporter, and a note says why. The module is exported and run
in evaluation mode, and left in the mode it was in. torch is imported inside functions only: nothing but conversion and
training needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolchain.conversion.freeze import rename_axis
from toolchain.conversion.imported import Imported
from toolchain.conversion.inputs import concrete, random_feed
from toolchain.conversion.parity import Reference
from toolchain.conversion.torch_export import (
    export_module,
    export_program,
    finish_export,
    output_tensors,
    quiet,
    reason,
)
from toolchain.core.errors import InputError, ModelError, ToolchainError
from toolchain.core.files import sha256
from toolchain.core.user_code import user_code
from toolchain.data.tensors import Array, Feed
from toolchain.formats.manifest import Source
from toolchain.formats.tensor_spec import TensorSpec

if TYPE_CHECKING:
    import torch

Call = Callable[[Feed], object]
"""Runs the source; returns the result of its ``forward``."""


def from_module(module: torch.nn.Module, inputs: Sequence[TensorSpec], name: str) -> Imported:
    """Export `module`; axes of inputs that are not numbers become dynamic.

    Inputs are passed by name if all are named like parameters of ``forward``, else by position.

    Raises:
        InputError: inputs are missing or wrong.
        ModelError: the module does not run on them, or both of torch's exporters fail.
    """
    import torch

    specs = _named_axes(inputs)
    by_name = _bind(module, specs, name)
    call = _caller(module, specs, by_name)
    embeddings = [m.num_embeddings for m in module.modules() if isinstance(m, torch.nn.Embedding)]
    ids = min(embeddings, default=2)
    size, example = _working_size(specs, call, ids, name)
    tensors = _tensors(module, random_feed(concrete(specs, 2, size), 0, ids))
    axes = {spec.name: {a: dim for a, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in specs}
    # Exporters raise any exception for modules they do not foresee, e.g. with weights that have no values.
    with _evaluating(module), user_code(name, ModelError, "change the module, or export it to ONNX yourself"):
        model, exporter, notes = export_module(module, tensors, axes, by_name, name)
    finish_export(model, [spec.name for spec in specs], [key for key, _ in output_tensors(example)])
    source = Source(name=name, sha256=_state_hash(module), kind="torch", exporter=_exporter(exporter))
    return Imported(model, source, notes, _reference(call, name), (size,), ids)


def from_pt2(path: Path) -> Imported:
    """Export the program that ``torch.export.save`` wrote to `path`.

    Raises:
        ModelError: not a file of this kind, damaged, or the exporter fails.
    """
    import torch

    with quiet():
        try:
            program = torch.export.load(path)
        except (RuntimeError, zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"is not a program saved by torch.export.save, or it is damaged ({reason(error)})",
                where=path,
                hint=f"save it again with torch {torch.__version__}",
            ) from None
    specs, arguments = _program_inputs(program)
    module = program.module()

    def call(feed: Feed) -> object:
        flat = [torch.from_numpy(feed[a]) if isinstance(a, str) and a in feed else a for a in arguments]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
        with torch.no_grad():
            return module(*args, **kwargs)

    size, example = _working_size(specs, call, 2, str(path))
    model = export_program(program, str(path))
    for symbol in {spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], str)}:
        rename_axis(model, symbol, "batch")  # torch does not store the names; it writes s77
    finish_export(model, [spec.name for spec in specs], [key for key, _ in output_tensors(example)])
    source = Source(name=str(path), sha256=sha256(path), kind="pt2", exporter=_exporter("dynamo"))
    return Imported(model, source, (), _reference(call, str(path)), (size,))


def _exporter(name: str) -> str:
    import torch

    return f"torch {torch.__version__} {name}"


# ------------------------------------------------------------------------------------------------ inputs


def _named_axes(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Name every dynamic axis, since the exporter needs names; the leading one is the batch."""

    def named(spec: TensorSpec, axis: int, dim: int | str | None) -> int | str:
        return dim if dim is not None else "batch" if axis == 0 else f"{spec.name}_{axis}"

    return [replace(spec, dims=tuple(named(spec, a, d) for a, d in enumerate(spec.dims))) for spec in inputs]


def _bind(module: torch.nn.Module, specs: Sequence[TensorSpec], name: str) -> bool:
    """True if inputs are passed by name, False if by position.

    Raises:
        InputError: ``forward`` takes them in neither way.
    """
    signature = inspect.signature(module.forward)
    if not specs:
        needed = [p.name for p in signature.parameters.values() if p.default is p.empty]
        raise InputError(
            f"the shapes of its inputs are not known (forward takes {', '.join(needed) or 'nothing'})",
            where=name,
            hint=f"give --input {needed[0] if needed else 'x'}:1x3x224x224 for each",
        )
    names = [spec.name for spec in specs]
    by_name = set(names) <= set(signature.parameters)
    try:
        signature.bind(*(() if by_name else names), **(dict.fromkeys(names) if by_name else {}))
    except TypeError as error:
        raise InputError(
            f"forward{signature} cannot take the inputs {', '.join(names)} ({error})",
            where=name,
            hint="give one --input for each parameter",
        ) from None
    return by_name


def _caller(module: torch.nn.Module, specs: Sequence[TensorSpec], by_name: bool) -> Call:
    import torch

    def call(feed: Feed) -> object:
        tensors = _tensors(module, feed)
        with _evaluating(module), torch.no_grad():
            return module(**tensors) if by_name else module(*tensors.values())

    return call


def _tensors(module: torch.nn.Module, feed: Feed) -> dict[str, torch.Tensor]:
    import torch

    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    return {name: torch.from_numpy(array).to(device) for name, array in feed.items()}


def _program_inputs(program: torch.export.ExportedProgram) -> tuple[list[TensorSpec], list[object]]:
    """Specs of a program's input tensors, and all its arguments in order: names of tensors, or constants."""
    import torch

    shapes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs: list[TensorSpec] = []
    arguments: list[object] = []
    for item in program.graph_signature.input_specs:
        if item.kind != torch.export.graph_signature.InputKind.USER_INPUT:
            continue
        value = shapes.get(item.arg.name)
        if isinstance(value, torch.Tensor):
            dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
            dims = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
            specs.append(TensorSpec(item.arg.name, dtype, dims))
            arguments.append(item.arg.name)
        else:
            arguments.append(item.arg.value)
    return specs, arguments


def _working_size(specs: Sequence[TensorSpec], call: Call, ids: int, name: str) -> tuple[int, object]:
    """Find a size that the source takes for dynamic axes other than the batch; also return its result for that size.

    A dynamic batch is tried with 2 and with 3, since the source may work with one fixed batch size only.
    """
    fault: ModelError | None = None
    for size in Imported.sizes:
        try:
            example = _run(concrete(specs, 2, size), call, ids, name)
        except ModelError as error:
            fault = fault or error
            continue
        if concrete(specs, 3, size) != concrete(specs, 2, size):
            _run(concrete(specs, 3, size), call, ids, name)
        return size, example
    raise fault or ModelError("does not run", where=name)


def _run(specs: Sequence[TensorSpec], call: Call, ids: int, name: str) -> object:
    shapes = ", ".join(f"{spec.name} {list(spec.dims)}" for spec in specs)
    with user_code(name, ModelError, f"it was run on {shapes}: check --input"):
        return call(random_feed(specs, 0, ids))


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _reference(call: Call, name: str) -> Reference:
    def reference(feed: Feed) -> list[Array] | None:
        try:
            with user_code(name, ModelError):
                outputs = call(feed)
        except ToolchainError:
            return None  # the module does not take these sizes
        return [_array(tensor) for _, tensor in output_tensors(outputs)]

    return reference


def _array(tensor: torch.Tensor) -> Array:
    import torch

    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _state_hash(module: torch.nn.Module) -> str:
    """SHA-256 of the module's class and its named parameters and buffers."""
    total = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for key, tensor in module.state_dict().items():
        if hasattr(tensor, "detach"):
            array = np.ascontiguousarray(_array(tensor))
            total.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode())
            total.update(array.view(np.uint8).data)
    return total.hexdigest()
