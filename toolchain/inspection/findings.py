"""`gather`: the `Findings` of an export, from the results of its stages and a run of onnxruntime's profiler."""

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
from toolchain.quantization.quantized import Quantized

PROFILE_SECONDS = 0.5
"""Approximate seconds of profiling for each variant."""
MIN_PROFILE_RUNS = 3
MAX_PROFILE_RUNS = 20

_FUSION_SUFFIX = re.compile(r"_nchwc$|_token_\d+$")
"""Suffixes in onnxruntime's names of fused nodes. It appends them to the name of the node that it replaces, or of that
node's output."""


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
    """Profile the models and collect the findings of all stages.

    Args:
        dense: the float model before pruning.
        quantized: the quantized model with its plan.
        models: the file of every variant as this machine runs it.
        rows: measurements of the variants on this machine.
        feed: inputs for the profiler.
        profiles: the targets.
        pruned: the result of pruning, None where nothing was pruned.
        noises: sources of the plan's error, where they were measured.
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
            _profile(variant, path, feed, layers, seconds.get(variant, PROFILE_SECONDS))
            for variant, path in models.items()
        ),
        macs={node: macs for node, macs in counts.macs.items() if macs},
        fits=tuple(fits),
        pruning=pruned.record if pruned else None,
        causes=tuple(noises),
    )


def _profile(variant: str, path: Path, feed: Feed, layers: Mapping[str, str], seconds: float) -> Profile:
    runs = max(MIN_PROFILE_RUNS, min(MAX_PROFILE_RUNS, int(PROFILE_SECONDS / seconds)))
    operators = (
        operator.model_copy(update={"layer": layers.get(_FUSION_SUFFIX.sub("", operator.node))})
        for operator in profile(path, feed, runs=runs)
    )
    return Profile(variant=variant, operators=tuple(operators))


def _layers(model: ir.Model) -> dict[str, str]:
    """Map the name of each node, and of each node's output, to the name of the node.

    The output of a Relu or Clip is mapped to the node before it, because the two are fused.
    """
    layers: dict[str, str] = {}
    for node in model.graph:
        source = node
        while isinstance(rule(source).int8, Absorbed) and source.inputs[0] and (before := source.inputs[0].producer()):
            source = before
        layers.update({str(value.name): query.label(source) for value in node.outputs})
    return layers | {query.label(node): query.label(node) for node in model.graph}
