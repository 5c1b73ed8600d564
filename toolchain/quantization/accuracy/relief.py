"""Relief: a few operators become float where that makes the answer more accurate and the model hardly slower.

Tried are the smallest of the last convolutions together, because nothing needs their results rounded, and then the
clusters of operators that make most of the error (`sensitivity`). It is for models that do not give the same bits on
every processor anyway; the operators that a lost answer needs in float are found by `mixed_precision`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolchain.data.tensors import Feed
from toolchain.evaluation.judge import Judge
from toolchain.formats.manifest import AccuracyStep
from toolchain.graph import query
from toolchain.ops.cost import macs_by_node
from toolchain.quantization import races
from toolchain.quantization.accuracy.sensitivity import noise_clusters
from toolchain.quantization.accuracy.steps import MIXED_PRECISION, TRYING, log_step
from toolchain.quantization.plan import constant_weight
from toolchain.quantization.planner import log_left_float
from toolchain.quantization.quantized import Quantized
from toolchain.quantization.selection import output_point

RELIEF_BELOW_DB = 30.0
"""Operators become float for accuracy below this fidelity, where the error is a thousandth of the outputs' variance."""
MIN_FLOAT_NOISE_SHARE = 0.1
"""A cluster of operators is tried in float if it makes at least this share of all noise ..."""
MIN_FLOAT_GAIN_DB = 0.5
"""... and stays float if that raises the fidelity by at least this much."""
MAX_FLOAT_CLUSTERS = 4
"""At most this many clusters are tried in float."""
MAX_CLUSTER_SLOWDOWN = 1.02
"""A cluster stays float unless the model takes longer by more than this factor, which a race can tell."""
MAX_LAST_MACS, MAX_LAST_WEIGHTS = 0.005, 0.01
"""The smallest of the last convolutions are tried in float, up to these shares of the multiply-accumulates and of the
weights, so that the file grows by three percent at most. Rounded to 8 bits, the distances of a detector's coarse cells
cost 1.5 points of its mean average precision."""
MAX_LAST_LOSS_DB = 0.1
"""They stay float unless the fidelity falls by more. It need not rise: most cells of a detector show nothing, so what
its boxes gain is hardly seen in decibels."""
MAX_LAST_SLOWDOWN = 1.05
"""They stay float unless the model takes longer by more than this factor."""
LAST_CONVOLUTIONS = "it computes little, and int8 would round its result, which no int8 operator reads"


@dataclass(frozen=True)
class _FloatTrial:
    """Operators to try in float: why, and what they must gain and may cost to stay so."""

    nodes: tuple[str, ...]
    reason: str
    min_gain_db: float
    max_slowdown: float


def relieve(quantized: Quantized, judge: Judge, feed: Feed) -> Quantized:
    """Try the last convolutions and the noisiest clusters in float, and keep what helps.

    Args:
        quantized: an int8 plan.
        judge: measures the fidelity of the outputs.
        feed: inputs of the races.

    Returns:
        The plan, with the step in its list where something was tried.
    """
    progress = quantized.planner.progress
    progress(TRYING)
    current = quantized.write(quantized.encoding)
    best_db = before_db = judge.fidelity_db(current)
    if before_db >= RELIEF_BELOW_DB:
        return quantized
    trials = list[_FloatTrial]()
    if last := _last_convolutions(quantized):
        trials.append(_FloatTrial(last, LAST_CONVOLUTIONS, -MAX_LAST_LOSS_DB, MAX_LAST_SLOWDOWN))
    clusters = noise_clusters(quantized.model, quantized.plan, quantized.noise_sources())
    noisiest = [cluster for cluster in clusters if cluster.share >= MIN_FLOAT_NOISE_SHARE]
    for cluster in noisiest[:MAX_FLOAT_CLUSTERS]:
        reason = f"float is more accurate and not slower here: {cluster.error_share(0)}"
        trials.append(_FloatTrial(cluster.nodes, reason, MIN_FLOAT_GAIN_DB, MAX_CLUSTER_SLOWDOWN))
    used = False
    for trial in trials:
        progress(TRYING)
        reasons = dict.fromkeys(trial.nodes, trial.reason)
        tried = quantized.leaving_float(reasons)
        written = tried.write(quantized.encoding)
        tried_db = judge.fidelity_db(written)
        if tried_db < best_db + trial.min_gain_db:
            continue
        result = races.race_models(current, written, feed, seconds=races.WHOLE_MODEL_RACE_SECONDS, decide=True)
        if not result.second_is_slower(by=trial.max_slowdown):
            log_left_float(reasons)
            quantized, current, best_db, used = tried, written, tried_db, True
    if not trials:
        return quantized
    step = AccuracyStep(name=MIXED_PRECISION, without_db=before_db, with_db=best_db, used=used)
    log_step(step)
    return replace(quantized, steps=(*quantized.steps, step))


def _last_convolutions(quantized: Quantized) -> tuple[str, ...]:
    """Name the smallest int8 convolutions whose results only float operators read."""
    model, results, products = quantized.model, quantized.basis.selection.results, quantized.plan.products
    int8 = quantized.plan.int8_nodes()
    nodes = {name: node for node in model.graph if (name := query.label(node)) in products}
    last = [name for name, node in nodes.items() if output_point(node, int8).name in results]
    macs = macs_by_node(model, quantized.check.shapes)
    weights = {name: constant_weight(node).size for name, node in nodes.items()}
    chosen = list[str]()
    for name in sorted(last, key=macs.__getitem__):
        enlarged = [*chosen, name]
        if _share(enlarged, macs) > MAX_LAST_MACS or _share(enlarged, weights) > MAX_LAST_WEIGHTS:
            break
        chosen = enlarged
    return tuple(chosen)


def _share(names: Sequence[str], sizes: Mapping[str, int]) -> float:
    return sum(sizes[name] for name in names) / (sum(sizes.values()) or 1)
