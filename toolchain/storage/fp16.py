"""Float weights stored as float16, in half the bytes, and cast to float32 when the model is loaded.

    initializer float16 → Cast → readers of the float32 weight

onnxruntime folds a Cast of a constant when it loads an ``.onnx`` file, so speed and memory at run time are those of
float32 weights. (A ``.ort`` file stores the graph that is run, and so the float32 weights again.) A weight keeps 11 of
24 bits: its error is at most 2⁻¹¹ = 0.05 % if it is 6e-5 or larger, and at most 3e-8 if it is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F16, F32
from toolchain.graph import check, edit, query

MIN_WEIGHT_BYTES = 4096
"""Smaller weights stay float32: the Cast would not pay."""
MAX_RELATIVE_ERROR = 1e-3
"""Largest root mean square of a tensor's rounding error, relative to the root mean square of the tensor."""
SCALE_READERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators whose scales stay float32: the integers were rounded with exactly these numbers."""


@dataclass(frozen=True)
class HalvedModel:
    """A model with float16 weights.

    Attributes:
        model: the model.
        tensors: number of tensors stored as float16.
        saved_bytes: number of bytes that this saves.
        error: the largest relative error of a tensor (root mean square).
        kept: names of large weights that stay float32, because float16 would round them too coarsely.
    """

    model: ir.Model
    tensors: int
    saved_bytes: int
    error: float
    kept: tuple[str, ...]

    def __str__(self) -> str:
        if not self.tensors:
            return "no float weight is stored as float16: none is large enough and in the range of float16"
        weights = "1 float weight is" if self.tensors == 1 else f"{self.tensors} float weights are"
        text = f"{weights} stored as float16, rounded by up to {self.error:.1e} (relative)"
        return text + (f"; {len(self.kept)} stay float32, outside the range of float16" if self.kept else "")


def halve_weights(model: ir.Model) -> HalvedModel:
    """Clone a model and store its large float32 weights as float16.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    graph, names = result.graph, edit.Names(result.graph)
    saved, kept, errors = 0, [], []
    for value in list(graph.initializers.values()):
        array = query.float_array(value)
        if array is None or array.nbytes < MIN_WEIGHT_BYTES or value.is_graph_output() or not _is_weight(value):
            continue
        half = _half(array)
        error = _relative_error(array, half)
        if not error <= MAX_RELATIVE_ERROR:
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
    return HalvedModel(result, len(errors), saved, max(errors, default=0.0), tuple(kept))


def _is_weight(value: ir.Value) -> bool:
    """True where only float operators of the graph itself read it; readers in branches may need a plain constant."""
    readers = query.consumers(value)
    return bool(readers) and all(node.graph is value.graph and query.op(node) not in SCALE_READERS for node in readers)


def _half(array: F32) -> F16:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _relative_error(array: F32, half: F16) -> float:
    """Compute the relative error (root mean square); infinite where a number is outside the range of float16."""
    if not np.isfinite(half).all():
        return float("inf")
    magnitude = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(half.astype(np.float64) - array)))) / max(magnitude, 1e-30)
