"""Check dynamic int8 nodes: compare each with its float version on calibration data.

The range of a dynamic tensor is set by the largest number of each step. An input with many magnitudes, such as a raw
spectrum, loses its small numbers, and the errors of an LSTM add up over time. Both depend on the data, so the error is
measured, as a share of how much the result varies: a result that has become constant has lost everything, even where
the constant is close to the mean.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.formats.target import Encoding
from toolchain.graph import run, tap
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.fragments import Fragment, fragments

MAX_RELATIVE_ERROR = 0.1
"""Largest accepted root mean square of the error, relative to the deviation of the result; 0.1 is 20 dB."""
DYNAMIC_CHECK_SAMPLES = 8
"""Calibration samples that a node is checked on."""


def inaccurate_dynamic_nodes(model: ir.Model, plan: Plan, encoding: Encoding, data: CalibrationData) -> dict[str, str]:
    """Return the dynamic nodes with an error above :data:`MAX_RELATIVE_ERROR`, and the reason to leave them float."""
    if not plan.recurrent:
        return {}
    parts = [part for part in fragments(model, plan, encoding) if part.name in plan.recurrent]
    names = [str(value.name) for part in parts for value in part.float_model.graph.inputs]
    feeds = tap.capture(model, names, data.take(DYNAMIC_CHECK_SAMPLES))
    errors = {part.name: _relative_error(part, feeds) for part in parts}
    return {
        name: f"dynamic int8 is too inaccurate: its error is {error:.0%}, at most {MAX_RELATIVE_ERROR:.0%} is accepted"
        for name, error in errors.items()
        if not error <= MAX_RELATIVE_ERROR
    }


def _relative_error(part: Fragment, feeds: list[dict[str, Array]]) -> float:
    """Return the error of the worst output over all feeds: its root mean square, relative to the output's deviation.

    The deviation is that from the mean of each feature, which is an element of the last axis.
    """
    inputs = [str(value.name) for value in part.float_model.graph.inputs]
    part_feeds = [{name: feed[name] for name in inputs} for feed in feeds]
    exact, rounded = (_rows(run.run(model, part_feeds)) for model in (part.float_model, part.int8_model))
    return float(np.sqrt(max(_error_share(a, b) for a, b in zip(exact, rounded, strict=True))))


def _error_share(exact: F64, rounded: F64) -> float:
    """Return squared error over squared deviation of [rows, features]; over the energy where nothing varies."""
    energy, varied = float(np.sum(exact**2)), float(np.sum((exact - exact.mean(axis=0)) ** 2))
    # What float32 cannot tell from a constant is one.
    reference = varied if varied > len(exact) * 1e-12 * energy else energy
    return float(np.sum((exact - rounded) ** 2)) / max(reference, 1e-30)


def _rows(runs: list[list[Array]]) -> list[F64]:
    """Concatenate every output over all runs, as rows of features."""
    return [
        np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays], dtype=np.float64)
        for arrays in zip(*runs, strict=True)
    ]
