"""Clipping: values of samples that were not observed, outside the ranges that were chosen from those that were.

Values that the readers of a tensor do not tell from its limits do not count (`saturation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Feed
from toolchain.formats.findings import ClippedTensor
from toolchain.graph import query, run, tap
from toolchain.quantization.ranges import UINT8_MAX, Affine
from toolchain.quantization.saturation import useful_limits

MAX_ROUNDING = 0.5
"""Rounding moves a value inside the grid by at most this many steps."""


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
    limits = {str(value.name): useful_limits(value) for value in query.activations(model) if value.name in grids}
    engine = run.session(tap.expose(model, names), pattern=False)
    outside, total, excess = (np.zeros(len(names)) for _ in range(3))
    for feed in feeds:
        for number, (name, value) in enumerate(zip(names, engine.run(None, feed), strict=True)):
            total[number] += value.size
            if not value.size:
                continue
            grid, (lowest, highest) = grids[name], limits[name]
            low, high = max(float(value.min()), lowest), min(float(value.max()), highest)
            beyond = max(high / grid.scale + grid.zero_point - UINT8_MAX, -(low / grid.scale + grid.zero_point), 0.0)
            excess[number] = max(excess[number], beyond)
            if beyond > MAX_ROUNDING:  # most tensors have no such value, and need no second look at every element
                margin = MAX_ROUNDING * grid.scale
                below = (value < grid.low - margin) & (grid.low - margin > lowest)
                above = (value > grid.high + margin) & (grid.high + margin < highest)
                outside[number] += np.count_nonzero(below | above)
    found = [
        ClippedTensor(tensor=name, share=outside[i] / total[i], beyond=excess[i] / UINT8_MAX)
        for i, name in enumerate(names)
        if outside[i]
    ]
    return tuple(sorted(found, key=lambda entry: -entry.share))
