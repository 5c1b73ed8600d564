"""Fidelity: the distance between a quantized model's outputs and the float model's, in decibels, without labels.

    fidelity = mean over samples of  −10 log₁₀ ( mean over outputs of  ‖y − ŷ‖² / ‖y‖² )

The logarithm is taken for each sample, so that one unusual sample does not outweigh all others. Where an output ends in
a Softmax or Sigmoid, its input is compared instead: saturated probabilities hide how the scores changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Array, Feed
from toolchain.graph import query, run, tap

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


class Probe:
    """Measures the fidelity of models to one float model on a few samples.

    Every measured model must have the float model's node names, as quantized and equalized clones do.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self._points = [_measured_point(value) for value in model.graph.outputs if query.is_float(value)]
        self._feeds = list(feeds)
        self._expected = self._runner(model)({}) if self.usable else []

    @property
    def usable(self) -> bool:
        """True where there is something to measure: a float output and a sample."""
        return bool(self._points and self._feeds)

    def fidelity_db(self, model: ir.Model) -> float:
        """Measure the fidelity of `model`, mean over the samples, in decibels."""
        return self.fidelity_function(model)({})

    def fidelity_function(self, model: ir.Model) -> Callable[[Feed], float]:
        """Load `model` once and return a function that measures its fidelity in decibels with additional inputs.

        The additional inputs are the same for every sample.
        """
        run_all = self._runner(model)

        def measure(additional: Feed) -> float:
            pairs = zip(self._expected, run_all(additional), strict=True)
            return float(np.mean([decibels(expected, got) for expected, got in pairs]))

        return measure

    def _runner(self, model: ir.Model) -> Callable[[Feed], list[Sequence[Array]]]:
        nodes = {query.label(node): node for node in model.graph}
        names = [str(nodes[node].inputs[0].name) if node else name for name, node in self._points]  # type: ignore[union-attr]
        engine = run.session(tap.expose(model, names), threads=0)
        return lambda additional: [engine.run(None, {**feed, **additional}) for feed in self._feeds]


def _measured_point(output: ir.Value) -> tuple[str, str | None]:
    """Return the output's name, and the node whose input is compared instead of it, or None."""
    tail = saturating_tail(output)
    return str(output.name), query.label(tail[-1]) if tail else None


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
