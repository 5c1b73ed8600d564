"""How far a quantized model's outputs lie from the float model's, in decibels, without labels.

    fidelity = mean over samples of  −10 log₁₀ ( mean over outputs of  ‖y − ŷ‖² / ‖y‖² )

A logarithm for each sample, so that one odd sample does not outweigh all others. Outputs behind a Softmax or Sigmoid
are taken before it: saturated probabilities hide what happens to the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Array, Feed
from toolchain.graph import edit, query, run

SATURATING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
BEST_DB = 100.0
"""No fidelity is higher: float32 itself ends about there."""


class Probe:
    """Measures models against one float model on a few samples.

    Every model must have the float model's node names, as quantized and equalized clones do.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self._points = [_before_saturation(value) for value in model.graph.outputs if query.is_float(value)]
        self._feeds = list(feeds)
        self._expected = self._runner(model)({}) if self.usable else []

    @property
    def usable(self) -> bool:
        """Whether there is anything to measure: a float output, and a sample."""
        return bool(self._points and self._feeds)

    def fidelity_db(self, model: ir.Model) -> float:
        """The fidelity of `model`."""
        return self.opened(model)({})

    def opened(self, model: ir.Model) -> Callable[[Feed], float]:
        """A function from further inputs, the same for every sample, to the fidelity of `model` with them."""
        run_all = self._runner(model)

        def measure(more: Feed) -> float:
            pairs = zip(self._expected, run_all(more), strict=True)
            return float(np.mean([decibels(expected, got) for expected, got in pairs]))

        return measure

    def _runner(self, model: ir.Model) -> Callable[[Feed], list[Sequence[Array]]]:
        clone = model.clone()
        nodes = {query.label(node): node for node in clone.graph}
        outputs = {value.name: value for value in clone.graph.outputs}
        edit.keep_outputs(clone, [nodes[at].inputs[0] if at else outputs[name] for name, at in self._points])  # type: ignore[misc]
        engine = run.session(clone, threads=0)
        return lambda more: [engine.run(None, {**feed, **more}) for feed in self._feeds]


def _before_saturation(output: ir.Value) -> tuple[str, str | None]:
    """The output's name, and the node whose input is measured in its stead."""
    name, at, node = str(output.name), None, output.producer()
    while node is not None and node.op_type in SATURATING and node.inputs[0] is not None:
        at, node = query.label(node), node.inputs[0].producer()
    return name, at


def decibels(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Of one sample: energy over squared error, mean over outputs."""
    shares = [_share(a, b) for a, b in zip(expected, got, strict=True)]
    return min(BEST_DB, -10 * float(np.log10(max(float(np.mean(shares)), 10 ** (-BEST_DB / 10)))))


def _share(expected: Array, got: Array) -> float:
    """Squared error over energy, of the elements that are finite in `expected`.

    1, as of an output of zeros, for another shape, for what is not finite, and for any error where there is no energy.
    """
    if expected.shape != got.shape:
        return 1.0
    finite = np.isfinite(expected)
    a, b = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    energy, error = float(np.sum(a**2)), float(np.sum((a - b) ** 2))
    if not np.isfinite(error):
        return 1.0
    return error / energy if energy > 0 else float(error > 0)
