"""Saturation: the limits beyond which the readers of a tensor cannot tell its values apart.

A convolution in front of a HardSwish gives an 8-bit result, and everything below -3 in it becomes 0. Steps that are
spent there are lost: of a result in [-20, 10], a grid of [-3, 10] has steps of less than half the size.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import onnx_ir as ir

from toolchain.calibration.observation import TensorStats
from toolchain.graph import query
from toolchain.quantization.selection import clip_limits

Limits = tuple[float, float]

LIMITS: dict[str, Limits] = {
    "Relu": (0.0, inf),
    "HardSwish": (-3.0, inf),
    "Gelu": (-6.0, inf),
    "Sigmoid": (-12.0, 12.0),
    "Tanh": (-7.0, 7.0),
    "Softplus": (-12.0, inf),
}
"""Inputs outside these limits give what the limit gives, or differ from it by less than 1e-5."""
SILU_LOW = -15.0
"""Below, x·Sigmoid(x) differs from 0 by less than 1e-5."""
NO_LIMITS = (-inf, inf)


def useful_limits(value: ir.Value) -> Limits:
    """Return the smallest interval outside which no reader of a tensor tells values apart; infinite where one does."""
    found = [_limits(node, value) for node in query.consumers(value)]
    if not found or value.is_graph_output():
        return NO_LIMITS
    return min(low for low, _ in found), max(high for _, high in found)


def _limits(reader: ir.Node, value: ir.Value) -> Limits:
    match reader.op_type:
        case "Clip" if reader.inputs[0] is value:
            low, high = clip_limits(reader)
            return -inf if low is None else low, inf if high is None else high
        case "HardSigmoid":
            alpha, beta = query.attribute(reader, "alpha", 0.2), query.attribute(reader, "beta", 0.5)
            return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else NO_LIMITS
        case "Mul":
            return _limits_of_gate(reader, value)
    return LIMITS.get(reader.op_type, NO_LIMITS)


def _limits_of_gate(mul: ir.Node, value: ir.Value) -> Limits:
    """Return the limits of x in x·Sigmoid(x) and x·HardSigmoid(x), which are 0 for small x."""
    others = [other for other in mul.inputs if other is not value]
    gate = others[0].producer() if len(others) == 1 and others[0] is not None else None
    if gate is None or gate.inputs[0] is not value:
        return NO_LIMITS
    if gate.op_type == "Sigmoid":
        return SILU_LOW, inf
    return (_limits(gate, value)[0], inf) if gate.op_type == "HardSigmoid" else NO_LIMITS


def saturated(stats: TensorStats, limits: Limits) -> TensorStats:
    """Move what lies outside `limits` to them, to the nearest edges of the histogram's bins that leave nothing out.

    Statistics by channel stay as they are.
    """
    bins, width = len(stats.histogram), stats.maximum - stats.minimum
    if not width > 0 or not bins:
        return stats
    low = int(np.clip(np.floor((limits[0] - stats.minimum) / width * bins), 0, bins - 1))
    high = int(np.clip(np.ceil((limits[1] - stats.minimum) / width * bins), low + 1, bins))
    if (low, high) == (0, bins):
        return stats
    histogram = stats.histogram[low:high].copy()
    histogram[0] += stats.histogram[:low].sum()
    histogram[-1] += stats.histogram[high:].sum()
    edges = stats.edges
    return replace(stats, minimum=float(edges[low]), maximum=float(edges[high]), histogram=histogram)
