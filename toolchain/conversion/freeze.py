"""Fixed sizes for dynamic axes, and for all shapes in the graph that follow from them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from toolchain.core.errors import InputError, did_you_mean
from toolchain.graph import query

LARGEST_SIZE = 2**31 - 1
"""No axis of a model for a small device is longer; ONNX itself allows 63 bits."""


def freeze(model: ir.Model, sizes: Mapping[str, int]) -> None:
    """Fix dynamic axes in place and infer all shapes again.

    A key of `sizes` is the name of an axis, which is then fixed in all shapes, or ``input.axis`` (``x.0``) for an axis
    without a name.

    Raises:
        InputError: there is no such axis (the message lists all and suggests one), the axis has another size already,
            or a size is below 1.
    """
    check_sizes(sizes)
    for key, size in sizes.items():
        if key in _axis_names(model):
            rename_axis(model, key, size)
        else:
            value, axis = _find(model, key)
            _fix(model, value, axis, size)
    if sizes:
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse sizes that no axis has. Called before a model is converted, which takes time.

    Raises:
        InputError: a size below 1 or above `LARGEST_SIZE`.
    """
    for key, size in sizes.items():
        where = f"freeze {key}={size}"
        if size < 1:
            raise InputError(f"size {size} is below 1", where=where, hint="give a size of 1 or more")
        if size > LARGEST_SIZE:
            raise InputError(f"size {size} is above {LARGEST_SIZE}", where=where, hint="give a smaller size")


def rename_axis(model: ir.Model, name: str, new: str | int) -> None:
    """Replace the symbol `name` by another symbol or a size in every shape; expressions with it are evaluated."""

    def replaced(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return dim
        if dim.value == name:
            return new if isinstance(new, int) else ir.SymbolicDim(new)
        if name not in query.symbols(dim):
            return dim
        # An expression such as 384*batch. If the symbol is renamed, the size becomes unknown and is inferred later.
        return dim.evaluate({name: new}) if isinstance(new, int) else ir.SymbolicDim(None)

    for value in _values(model):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([replaced(dim) for dim in value.shape])


def _values(model: ir.Model) -> list[ir.Value]:
    return [
        value
        for graph in model.graphs()
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs))
    ]


def _has_name(dim: int | ir.SymbolicDim) -> bool:
    # Paddle writes "?" for every unknown axis, so it is not one name for all of them.
    return isinstance(dim, ir.SymbolicDim) and dim.value not in (None, "", "?")


def _inputs_without_default(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _axis_names(model: ir.Model) -> list[str]:
    """Names of dynamic input axes, in order of appearance."""
    dims = [dim for value in _inputs_without_default(model) if value.shape is not None for dim in value.shape]
    return list(dict.fromkeys(str(dim.value) for dim in dims if isinstance(dim, ir.SymbolicDim) and _has_name(dim)))


def _choices(model: ir.Model) -> list[str]:
    """List the axes that can be fixed: by their names, or as ``input.axis`` where they have none."""
    unnamed = [
        f"{value.name}.{axis}"
        for value in _inputs_without_default(model)
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int) and not _has_name(dim)
    ]
    return _axis_names(model) + unnamed


def _find(model: ir.Model, key: str) -> tuple[ir.Value, int]:
    name, _, axis = key.rpartition(".")
    for value in _inputs_without_default(model):
        if value.name == name and value.shape is not None and axis.isdecimal() and int(axis) < len(value.shape):
            return value, int(axis)
    choices = _choices(model)
    if not choices:
        raise InputError("all axes of the model's inputs are fixed", where=f"freeze {key}", hint="leave it out")
    listed = ", ".join(choices)
    near = did_you_mean(key, choices)
    hint = near if near.startswith("did") else "choose one of those"
    raise InputError(f"the model has no such dynamic axis, it has {listed}", where=f"freeze {key}", hint=hint)


def _fix(model: ir.Model, value: ir.Value, axis: int, size: int) -> None:
    shape = list(value.shape or ())
    dim = shape[axis]
    if isinstance(dim, ir.SymbolicDim) and _has_name(dim):
        rename_axis(model, str(dim.value), size)
    elif isinstance(dim, ir.SymbolicDim) or dim < 0:
        shape[axis] = size
        value.shape = ir.Shape(shape)
    elif dim != size:
        where = f"freeze {value.name}.{axis}={size}"
        raise InputError(f"that axis already has size {dim}", where=where, hint="leave it, or export the model again")
