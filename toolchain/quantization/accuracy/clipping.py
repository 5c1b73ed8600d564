"""Clipping: values of samples that were not observed, outside the ranges that were chosen from those that were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.data.tensors import Feed
from toolchain.formats.findings import ClippedTensor
from toolchain.graph import run, tap
from toolchain.quantization.ranges import Affine

MAX_LEVEL = 255
"""The largest integer of an activation; the smallest is 0."""


def count_clipped(model: ir.Model, grids: Mapping[str, Affine], feeds: Iterable[Feed]) -> tuple[ClippedTensor, ...]:
    """Count the values of every quantized tensor that its grid cannot hold, by more than half a step.

    Args:
        model: the float model that the grids were chosen for.
        grids: the grids by the name of their tensor.
        feeds: samples that no range was taken from.

    Returns:
        The tensors with such values, those with the largest share first.
    """
    names = list(grids)
    if not names:
        return ()
    engine = run.session(tap.expose(model, names), pattern=False)
    outside, total, excess = (np.zeros(len(names)) for _ in range(3))
    for feed in feeds:
        for number, (name, value) in enumerate(zip(names, engine.run(None, feed), strict=True)):
            beyond = _steps_beyond(np.asarray(value, np.float64), grids[name])
            outside[number] += np.count_nonzero(beyond > 0.5)
            total[number] += beyond.size
            excess[number] = max(excess[number], beyond.max(initial=0.0))
    found = [
        ClippedTensor(tensor=name, share=outside[i] / total[i], beyond=excess[i] / MAX_LEVEL)
        for i, name in enumerate(names)
        if outside[i]
    ]
    return tuple(sorted(found, key=lambda entry: -entry.share))


def _steps_beyond(values: F64, grid: Affine) -> F64:
    """Return the distance of each value from the grid, in steps of the grid; 0 inside."""
    steps = values / grid.scale + grid.zero_point
    return np.asarray(np.maximum(np.maximum(steps - MAX_LEVEL, -steps), 0))
