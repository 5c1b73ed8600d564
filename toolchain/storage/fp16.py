"""Half the download: weights that stay float are stored as float16 and cast to float32 where the model is loaded.

    initializer float16 → Cast → whoever read the float32 weight

onnxruntime folds a Cast of a constant when it loads an ``.onnx`` file, so speed and memory at run time are those of
float32 weights. (A ``.ort`` file stores the graph that is run, and so the float32 weights again.) A weight keeps 11 of
24 bits: at most 2⁻¹¹ = 0.05 % off where it is 6e-5 or larger, and up to 3e-8 below that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F16, F32
from toolchain.graph import check, edit, query

LEAST_BYTES = 4096
"""Smaller weights are not worth an operator."""
LARGEST_ERROR = 1e-3
"""Root mean square of a tensor's rounding error, relative to that of the tensor."""
NEVER = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""They read scales, which must be what the integers were rounded with."""


@dataclass(frozen=True)
class Halved:
    """tensors: how many are float16 now; saved_bytes: by that. error: the largest relative error of one (rms).

    kept: names of large float32 weights that float16 cannot hold well.
    """

    model: ir.Model
    tensors: int
    saved_bytes: int
    error: float
    kept: tuple[str, ...]

    def __str__(self) -> str:
        if not self.tensors:
            return "no float weight is stored as float16: none is large enough and within its range"
        text = f"{self.tensors} float weights are stored as float16, rounded by up to {self.error:.1e} (relative)"
        return text + (f"; {len(self.kept)} stay float32, since float16 cannot hold them" if self.kept else "")


def halve_weights(model: ir.Model) -> Halved:
    """A clone of `model` whose large float32 weights are stored as float16.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    graph, names = result.graph, edit.Names(result.graph)
    saved, kept, errors = 0, [], []
    for value in list(graph.initializers.values()):
        array = query.float_array(value)
        if array is None or array.nbytes < LEAST_BYTES or value.is_graph_output() or not _is_weight(value):
            continue
        half = _half(array)
        error = _relative_error(array, half)
        if not error <= LARGEST_ERROR:
            kept.append(str(value.name))
            continue
        stored = edit.add_constant(graph, names.fresh(f"{value.name}_fp16"), half)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=names.fresh(f"{value.name}_Cast"))
        output = cast.outputs[0]
        output.name, output.type, output.shape = names.fresh(f"{value.name}_fp32"), value.type, value.shape
        value.replace_all_uses_with(output)
        graph.insert_before(next(iter(graph)), cast)
        saved += array.nbytes - half.nbytes
        errors.append(error)
    edit.remove_unused(result)
    check.check(result)
    return Halved(result, len(errors), saved, max(errors, default=0.0), tuple(kept))


def _is_weight(value: ir.Value) -> bool:
    """Whether only float operators of the graph itself read it; a branch's reader may need a plain constant."""
    readers = query.consumers(value)
    return bool(readers) and all(node.graph is value.graph and query.op(node) not in NEVER for node in readers)


def _half(array: F32) -> F16:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _relative_error(array: F32, half: F16) -> float:
    """Infinite where a number left float16's range."""
    if not np.isfinite(half).all():
        return float("inf")
    size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(half.astype(np.float64) - array)))) / max(size, 1e-30)
