"""`gather`: an export's `Findings`, from what its stages left and a run of onnxruntime's profiler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from toolchain.data.tensors import Feed
from toolchain.formats.findings import Findings, NoiseSource, Profile
from toolchain.formats.results import Measurement
from toolchain.formats.target import Target
from toolchain.graph import query
from toolchain.inspection.target_fit import fit_to
from toolchain.latency.profile import profile
from toolchain.ops import cost
from toolchain.ops.cells import Absorbed
from toolchain.ops.table import rule
from toolchain.pruning.goal import Pruned
from toolchain.quantization.loop import Quantized

PROFILED_S = 0.5
"""A variant is profiled so long, in not more than so many runs:"""
RUNS = 20

_FUSED = re.compile(r"_nchwc$|_token_\d+$")
"""What onnxruntime appends to the name of a node, or of the tensor it makes, when it puts another in its place."""


def gather(
    dense: ir.Model,
    quantized: Quantized,
    models: Mapping[str, Path],
    rows: Sequence[Measurement],
    feed: Feed,
    profiles: Sequence[Target],
    *,
    pruned: Pruned | None = None,
    noises: Sequence[NoiseSource] = (),
) -> Findings:
    """Profile the models and collect the rest.

    Args:
        dense: the float model before pruning.
        quantized: the plan.
        models: a file of every variant, as this machine runs it.
        rows: their measurements on this machine.
        feed: inputs for the profiler.
        profiles: the targets.
        pruned: what was cut first.
        noises: of the plan, where they were computed.
    """
    float_model = quantized.source
    counts = cost.count(float_model)
    weights = cost.count(quantized.write(quantized.encoding)).weight_bytes
    peak = counts.int8_peak_activation_bytes
    fits = [fit_to(target, float_model, counts, weights=weights, peak=peak) for target in profiles]
    layers = _layers(dense)
    seconds = {row.variant: row.latency.p50_ms / 1000 for row in rows if row.latency}
    return Findings(
        when=rows[0].when,
        profiles=tuple(
            _profile(variant, path, feed, layers, seconds.get(variant, PROFILED_S)) for variant, path in models.items()
        ),
        macs={node: macs for node, macs in counts.macs.items() if macs},
        fits=tuple(fits),
        pruning=pruned.record if pruned else None,
        causes=tuple(noises),
    )


def _profile(variant: str, path: Path, feed: Feed, layers: Mapping[str, str], seconds: float) -> Profile:
    runs = max(3, min(RUNS, int(PROFILED_S / seconds)))
    found = profile(path, feed, runs=runs)
    return Profile(
        variant=variant,
        operators=tuple(
            operator.model_copy(update={"layer": layers.get(_FUSED.sub("", operator.node))}) for operator in found
        ),
    )


def _layers(model: ir.Model) -> dict[str, str]:
    """Nodes by their own name and by those of the tensors they make, the latter through a Relu or Clip behind them."""
    found: dict[str, str] = {}
    for node in model.graph:
        maker = node
        while isinstance(rule(maker).int8, Absorbed) and maker.inputs[0] and (before := maker.inputs[0].producer()):
            maker = before
        found.update({str(value.name): query.label(maker) for value in node.outputs})
    return found | {query.label(node): query.label(node) for node in model.graph}
