"""Arrays and feeds, and the check that a feed fits a model's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError, did_you_mean, one_line
from toolchain.formats.tensor_spec import TensorSpec

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]

# numpy's default dtypes make these casts necessary; they lose nothing that matters to a model.
_SILENT_CASTS = {("float64", "float32"), ("int32", "int64")}


def is_text(array: Array) -> bool:
    """True for the value of a string tensor: numpy's texts, or Python's, which onnxruntime returns."""
    return array.dtype.kind in "OSU"


def as_array(value: Any, where: str) -> Array:
    """Return an array of a value that is one, or can become one without a loss.

    Tensors of torch are taken from any device and without their gradients; bfloat16, which numpy does not have, becomes
    float32, which holds all its values.

    Args:
        value: an array, a tensor, or nested lists of numbers.
        where: its name in errors.

    Raises:
        DataError: no array can be made of it.
    """
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):  # a torch tensor; torch itself may not be installed
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error).rstrip(".")
        if "inhomogeneous" in reason:
            reason = "its parts have different shapes"
        raise DataError(f"is not an array ({reason})", where=where, hint="give a numpy array") from None


def conform(arrays: object, inputs: Sequence[TensorSpec], where: str, *, add_batch: bool = False) -> Feed:
    """Return a feed for `inputs`, in their order and with their dtypes.

    float64 becomes float32 and int32 becomes int64 where the model takes those; no other cast is made. Text has numpy's
    own type. An array may be
    empty where another is not: a decoder's cache is so before the first step.

    Args:
        arrays: a mapping from input name to array; anything else is refused.
        inputs: the model's inputs.
        where: the feed's name in errors.
        add_batch: add a leading axis of one to an array whose rank is one below its input's.

    Raises:
        DataError: a name, dtype, rank or size does not fit, all arrays are empty, or axes with one name have different
            sizes.
    """
    names = [spec.name for spec in inputs]
    if not isinstance(arrays, Mapping):
        what = f"is of type {type(arrays).__name__}, not a dictionary from input name to array"
        if isinstance(arrays, tuple | list):
            what += f", and holds {len(arrays)} items where the model takes {', '.join(names)}"
        raise DataError(what, where=where, hint=f"yield {{{names[0]!r}: array}}")
    for name in arrays:
        if name not in names:
            raise DataError(f"the model has no input {name!r}", where=where, hint=did_you_mean(str(name), names))
    feed: Feed = {}
    bound: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name not in arrays:
            hint = f"the model takes {', '.join(names)}"
            raise DataError(f"input {spec.name!r} is missing", where=where, hint=hint)
        array = as_array(arrays[spec.name], f"{where}, input {spec.name!r}")
        if add_batch and array.ndim == len(spec.dims) - 1:
            array = array[None]
        _check_dtype(array, spec, where)
        _check_shape(array, spec, where, bound)
        if spec.dtype.hasobject:
            feed[spec.name] = array.astype(np.str_)
            continue
        with np.errstate(over="ignore"):  # too large values become infinity, which `check_finite` reports
            feed[spec.name] = array.astype(spec.dtype, copy=False)
    if feed and all(array.size == 0 for array in feed.values()):
        spec = inputs[0]
        _refuse(where, spec, f"is empty (shape {list(feed[spec.name].shape)})", "drop the sample")
    return feed


def _refuse(where: str, spec: TensorSpec, what: str, hint: str) -> NoReturn:
    raise DataError(what, where=f"{where}, input {spec.name!r}", hint=hint)


def _check_shape(array: Array, spec: TensorSpec, where: str, bound: dict[str, tuple[int, str]]) -> None:
    """Refuse a shape that does not fit; `bound` collects the sizes of this feed's named axes."""
    if not spec.dims:  # a scalar, or an input whose rank the model does not state
        return
    dims = ", ".join("any" if d is None else str(d) for d in spec.dims)
    what = f"has shape {list(array.shape)} where the model takes [{dims}]"
    if array.ndim != len(spec.dims):
        one_less = array.ndim == len(spec.dims) - 1
        _refuse(where, spec, what, "add the batch axis: array[None]" if one_less else f"give {len(spec.dims)} axes")
    for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
        if isinstance(dim, int) and size != dim:
            _refuse(where, spec, what, f"make axis {axis} {dim} long")
        # Some exporters give the name "None" to every axis of unknown size.
        if isinstance(dim, str) and dim.isidentifier() and dim != "None":
            known, other = bound.setdefault(dim, (size, spec.name))
            if known != size:
                other = "another axis" if other == spec.name else f"input {other!r}"
                what = f"axis {axis} ({dim}) is {size} long, but {known} in {other}"
                _refuse(where, spec, what, "make them equal")


def _check_dtype(array: Array, spec: TensorSpec, where: str) -> None:
    if array.dtype == spec.dtype or (array.dtype.name, spec.dtype.name) in _SILENT_CASTS:
        return
    if spec.dtype.hasobject and is_text(array):
        return
    if spec.dtype.hasobject:
        _refuse(where, spec, f"is {array.dtype} where the model takes text", "give an array of strings")
    if array.dtype.hasobject:
        _refuse(where, spec, "holds Python objects, not numbers", "give a plain numeric array")
    if array.dtype.kind in "SU":
        _refuse(where, spec, "holds text, not numbers", "give a plain numeric array")
    what = f"is {array.dtype} where the model takes {spec.dtype}"
    hint = f"convert it with .astype('{spec.dtype}') if that is intended"
    if array.dtype.kind in "iu" and spec.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 255:
        what = f"holds integers 0..255 where the model takes {spec.dtype}"
        hint = "normalize pixels as the model was trained, or give the images themselves with --preprocess"
    _refuse(where, spec, what, hint)


def check_finite(feed: Feed, where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: names the input and the number of bad values.
    """
    for name, array in feed.items():
        if array.dtype.kind != "f":
            continue
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            kind = "NaN" if np.isnan(array).any() else "infinity"
            what = f"holds {kind} ({bad} of {array.size} values)"
            raise DataError(what, where=f"{where}, input {name!r}", hint="correct or remove the sample")


def digest(feed: Feed) -> bytes:
    """Return the SHA-256 of names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name, array in feed.items():
        total.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).view(np.uint8).data)
    return total.digest()
