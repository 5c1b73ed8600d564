"""Is a dynamic int8 node accurate enough? It is run beside its float self on calibration data.

Dynamic ranges follow the largest number of the moment. An input of many magnitudes, as raw spectra are, loses its
small ones, and an LSTM adds its errors up over time; both depend on the data, so they are measured.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.graph import run, tap
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.fragments import Fragment, fragments
from toolchain.quantization.qdq.writer import Encoding

LARGEST_ERROR = 0.1
"""Root mean square of the error, relative to that of the result: 20 dB."""
SAMPLES = 8


def inaccurate(model: ir.Model, plan: Plan, encoding: Encoding, data: CalibrationData) -> dict[str, str]:
    """Reasons for the dynamic nodes whose results are further than :data:`LARGEST_ERROR` from float."""
    if not plan.recurrent:
        return {}
    parts = [part for part in fragments(model, plan, encoding) if part.name in plan.recurrent]
    names = [str(value.name) for part in parts for value in part.float_model.graph.inputs]
    feeds = tap.capture(model, names, data.take(SAMPLES))
    found = {part.name: _error(part, feeds) for part in parts}
    return {
        name: f"as dynamic int8 its result is off by {error:.0%}, more than {LARGEST_ERROR:.0%} (root mean square)"
        for name, error in found.items()
        if not error <= LARGEST_ERROR
    }


def _error(part: Fragment, feeds: list[dict[str, Array]]) -> float:
    """Of the worst output over all feeds."""
    inputs = [str(value.name) for value in part.float_model.graph.inputs]
    own = [{name: feed[name] for name in inputs} for feed in feeds]
    exact, rounded = (_flat(run.run(model, own)) for model in (part.float_model, part.int8_model))
    ratios = [np.sum((a - b) ** 2) / max(np.sum(a**2), 1e-30) for a, b in zip(exact, rounded, strict=True)]
    return float(np.sqrt(max(ratios)))


def _flat(runs: list[list[Array]]) -> list[F64]:
    """Every output over all runs."""
    return [np.concatenate([array.ravel() for array in arrays], dtype=np.float64) for arrays in zip(*runs, strict=True)]
