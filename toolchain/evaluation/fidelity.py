"""Fidelity in decibels, and the fidelity of one sample as training measures it.

    fidelity of a sample = −10 log₁₀ ( mean over outputs of  ‖y − ŷ‖² / ‖y‖² )

It relates an error to the energy of a whole output, so it says nothing about parts of it; models that are shipped are
judged part by part (`judge`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Array

SATURATING_OPERATORS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
"""Operators at the end of an output whose input is compared instead."""
MAX_FIDELITY_DB = 100.0
"""Highest fidelity that is reported; the rounding of float32 itself limits it to about this value."""


def power_to_db(power: float) -> float:
    """Express a relative error power (squared error over energy) in decibels, at most :data:`MAX_FIDELITY_DB`."""
    return min(MAX_FIDELITY_DB, -10 * float(np.log10(max(power, 10 ** (-MAX_FIDELITY_DB / 10)))))


def db_to_power(fidelity_db: float) -> float:
    """Return the relative error power (squared error over energy) of a fidelity in decibels."""
    return float(10 ** (-fidelity_db / 10))


def saturating_tail(output: ir.Value) -> list[ir.Node]:
    """List the Softmax and Sigmoid nodes that a graph output ends in, the last one of the graph first.

    The first input of the last node listed holds the scores before any of them.
    """
    tail: list[ir.Node] = []
    node = output.producer()
    while node is not None and node.op_type in SATURATING_OPERATORS and node.inputs[0] is not None:
        tail.append(node)
        node = node.inputs[0].producer()
    return tail


def decibels(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Compute the fidelity of one sample: energy over squared error, mean over outputs, in decibels."""
    return power_to_db(float(np.mean([_error_share(a, b) for a, b in zip(expected, got, strict=True)])))


def _error_share(expected: Array, got: Array) -> float:
    """Compute squared error over energy, for the elements that are finite in `expected`.

    The result is 1, as for an output of zeros, in three cases: the shapes differ, `got` is not finite there, or
    `expected` has no energy and `got` differs from it.
    """
    if expected.shape != got.shape:
        return 1.0
    finite = np.isfinite(expected)
    a, b = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    energy, error = float(np.sum(a**2)), float(np.sum((a - b) ** 2))
    if not np.isfinite(error):
        return 1.0
    return error / energy if energy > 0 else float(error > 0)
