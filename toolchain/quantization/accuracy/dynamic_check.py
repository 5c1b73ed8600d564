"""Check dynamic int8 nodes: each is run beside its float self on calibration data.

The range of a dynamic tensor follows the largest number of the moment. An input of many magnitudes, such as a raw
spectrum, loses its small numbers, and an LSTM adds its errors up over time. Both depend on the data, so they are
measured.
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

MAX_RELATIVE_ERROR = 0.1
"""Root mean square of the error over that of the result: 20 dB."""
SAMPLES = 8
"""Calibration samples that a node is checked on."""


def inaccurate_dynamic_nodes(model: ir.Model, plan: Plan, encoding: Encoding, data: CalibrationData) -> dict[str, str]:
    """Return the dynamic nodes with an error above :data:`MAX_RELATIVE_ERROR`, and the reason to leave them float."""
    if not plan.recurrent:
        return {}
    parts = [part for part in fragments(model, plan, encoding) if part.name in plan.recurrent]
    names = [str(value.name) for part in parts for value in part.float_model.graph.inputs]
    feeds = tap.capture(model, names, data.take(SAMPLES))
    errors = {part.name: _relative_error(part, feeds) for part in parts}
    return {
        name: f"dynamic int8 is too inaccurate: its error is {error:.0%}, at most {MAX_RELATIVE_ERROR:.0%} is accepted"
        for name, error in errors.items()
        if not error <= MAX_RELATIVE_ERROR
    }


def _relative_error(part: Fragment, feeds: list[dict[str, Array]]) -> float:
    """Root mean square of the error over that of the result, for the worst output over all feeds."""
    inputs = [str(value.name) for value in part.float_model.graph.inputs]
    own = [{name: feed[name] for name in inputs} for feed in feeds]
    exact, rounded = (_flat(run.run(model, own)) for model in (part.float_model, part.int8_model))
    ratios = [np.sum((a - b) ** 2) / max(np.sum(a**2), 1e-30) for a, b in zip(exact, rounded, strict=True)]
    return float(np.sqrt(max(ratios)))


def _flat(runs: list[list[Array]]) -> list[F64]:
    """Concatenate every output over all runs."""
    return [np.concatenate([array.ravel() for array in arrays], dtype=np.float64) for arrays in zip(*runs, strict=True)]
