"""Inputs of a model during conversion: the specs that users write, and random arrays for a spec."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolchain.core.errors import InputError, did_you_mean
from toolchain.data.tensors import Array, Feed
from toolchain.formats.tensor_spec import TensorSpec

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_UNKNOWN = ("-1", "?", "*")


def parse_input(text: str) -> TensorSpec:
    """Parse ``name:1x3x224x224[:dtype]``; the dtype is float32 if left out.

    A dimension is a size, a name (a dynamic axis), or ``-1`` (a dynamic axis without a name). Dimensions are separated
    by commas, or by an ``x`` with a digit or a space beside it: ``ids:batch,seq:int64``, ``x:batchx3x32x32``.

    Raises:
        InputError: not of this form, or an ``x`` may be either a separator or part of a name.
    """
    where = f"input {text!r}"
    name, _, rest = (part.strip() for part in text.partition(":"))
    dims, _, dtype = (part.strip() for part in rest.partition(":"))
    if not name or not dims:
        raise InputError("is not of the form name:1x3x224x224[:dtype]", where=where, hint="for example x:1x3x224x224")
    if (dtype or "float32") not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", where=where, hint=did_you_mean(dtype, DTYPES))
    return TensorSpec(name, np.dtype(dtype or "float32"), tuple(_dimension(d, dims, where) for d in _split(dims)))


def _split(dims: str) -> list[str]:
    if "," in dims:
        return [part.strip() for part in dims.split(",")]
    return [part.strip() for part in re.split(r"\s+x\s+|(?<=[\d?*])x|x(?=[\d?*-])", dims)]


def _dimension(part: str, dims: str, where: str) -> int | str | None:
    if part in _UNKNOWN:
        return None
    if part.isdecimal() and int(part) > 0:
        return int(part)
    if "x" in part and "," not in dims and part != dims:
        raise InputError(f"it is unclear where {part!r} ends", where=where, hint="separate the dimensions with commas")
    if not part.isidentifier():
        raise InputError(f"{part!r} is not a dimension", where=where, hint="write a size above 0, a name, or -1")
    return part


def parse_freeze(texts: Sequence[str]) -> dict[str, int]:
    """Parse sizes such as ``["batch=1", "x.2=224"]`` to a dictionary.

    Raises:
        InputError: not of the form ``name=size``.
    """
    sizes = {}
    for text in texts:
        name, _, size = (part.strip() for part in text.rpartition("="))
        if not name or not size.isdecimal():
            raise InputError("is not of the form name=size", where=f"freeze {text!r}", hint="for example batch=1")
        sizes[name] = int(size)
    return sizes


def concrete(specs: Sequence[TensorSpec], batch: int, size: int) -> list[TensorSpec]:
    """Replace every dynamic leading axis of `specs` by `batch`, and other dynamic axes by `size`.

    Axes of one name get one size: in a state of shape [layers, batch, width] the second axis is the batch.
    """
    leading = {spec.dims[0] for spec in specs if spec.dims}

    def fixed(axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int):
            return dim
        return batch if axis == 0 or (dim is not None and dim in leading) else size

    return [replace(spec, dims=tuple(fixed(axis, dim) for axis, dim in enumerate(spec.dims))) for spec in specs]


def random_feed(specs: Sequence[TensorSpec], seed: int, ids: int = 2) -> Feed:
    """Draw normal numbers for float inputs, 0..255 for 8-bit ones, ``0..ids-1`` for other integers, digits for text.

    Args:
        specs: with sizes only, as :func:`concrete` returns them.
        seed: seed of the random numbers.
        ids: upper bound of integers; 2 is safe for ids, masks and flags of an unknown model.
    """
    rng = np.random.default_rng(seed)

    def draw(spec: TensorSpec) -> Array:
        shape = tuple(int(dim) for dim in spec.dims if dim is not None)
        if spec.dtype.hasobject:
            return rng.integers(0, 10, shape).astype(np.str_)
        if spec.dtype.kind == "f":
            return rng.standard_normal(shape).astype(spec.dtype)
        high = 256 if spec.dtype == np.uint8 else ids
        return rng.integers(0, 2 if spec.dtype == np.bool_ else high, shape).astype(spec.dtype)

    return {spec.name: draw(spec) for spec in specs}
