"""Sensitivity: the sources of an int8 model's error, measured as the effect of each rounding on the outputs.

Each rounding is switched on alone in the float model. The errors are small and nearly independent, so their squares
add up: on MobileNetV2 the sum over all tensors is within one decibel of the error with all roundings together. Shares
refer to that sum. For the same reason, where there are too many roundings to measure each alone, neighbours are
switched on together, and the noisiest groups are divided.

The rounding of a tensor disappears only when all int8 operators around it are float. So operators are left float in
clusters, one for each tensor: the operators that compute it and read it, with their weights. Clusters are ordered by
the noise they remove per multiply-accumulate that is no longer int8. Nothing is timed, so the order is the same on
every machine.

Results are kept on disk as they come, keyed by model, plan and samples: an interrupted measurement continues later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from toolchain.core.cache import cache_path, read_cache, write_cache
from toolchain.core.progress import Progress, Stage
from toolchain.data.tensors import Feed
from toolchain.evaluation.fidelity import db_to_power, power_to_db
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import NoiseSource
from toolchain.graph import io, query
from toolchain.ops.cost import macs_by_node, total_macs
from toolchain.quantization.accuracy.rounding_switches import (
    add_rounding_switches,
    make_weights_inputs,
    switch_feed,
    weight_feed,
)
from toolchain.quantization.plan import Plan

SourceKind = Literal["activation", "weight"]

MAX_MEASUREMENTS = 400
"""Largest number of measurements ..."""
MAX_MACS = 2e11
"""... which take at most this number of multiply-accumulates together, some ten seconds of a processor ..."""
MIN_MEASUREMENTS = 24
"""... but at least this number."""
MEASUREMENTS_PER_SAVE = 16
"""Number of measurements between two writes of the cache."""
MIN_COST_SHARE = 1e-3
"""Smallest cost of an operator, as a share of all multiply-accumulates. However little a float operator computes, it
costs two conversions between int8 operators."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoiseCluster:
    """Operators to leave float together.

    Attributes:
        nodes: names of the operators.
        share: share of all noise that disappears if they are float.
        tensor: name of the tensor that they compute or read.
    """

    nodes: tuple[str, ...]
    share: float
    tensor: str

    def error_share(self, digits: int) -> str:
        """Describe the share of the error as a clause for a reason, in percent with this number of decimals."""
        return f"rounding {self.tensor!r} makes {self.share:.{digits}%} of the error"


def measure_noise(
    model: ir.Model, plan: Plan, judge: Judge, samples_key: str, progress: Progress, *, macs: int | None = None
) -> tuple[NoiseSource, ...]:
    """Measure the noise of every activation and weight of a plan.

    Args:
        model: the float model the plan was made for.
        plan: its grids and weights.
        judge: measures the fidelity of the outputs.
        samples_key: fingerprint of the judge's samples.
        progress: called for every measurement.
        macs: multiply-accumulates for one sample; None: those of the model's own shapes.

    Returns:
        The sources, the largest first.
    """
    cache = _PowerCache(model, plan, samples_key)
    kinds = _activations(model, plan), _weights(model, plan)
    count = sum(len(roundings.names) for roundings in kinds)
    affordable = MAX_MACS // max(1, judge.samples * (total_macs(model) if macs is None else macs))
    most = int(max(MIN_MEASUREMENTS, min(affordable, MAX_MEASUREMENTS)))
    if count > most:
        _log.info("sensitivity: %d roundings are measured in groups, with %d measurements", count, most)
    stage = Stage("measuring sensitivity", min(count, most), progress)
    powers: dict[tuple[SourceKind, str], float] = {}
    for roundings in kinds:
        share = -(-most * len(roundings.names) // max(1, count))
        measure = _Measure(roundings, judge, cache, stage)
        powers |= {(roundings.kind, name): power for name, power in _divided(roundings.names, measure, share).items()}
    cache.save()
    return _noise_sources(model, powers)


@dataclass(frozen=True)
class _Roundings:
    """All roundings of one kind.

    Attributes:
        kind: their kind.
        names: the tensors that are rounded, or the products whose weights are, in graph order.
        switched: makes a model in which each can be switched on.
        feed: makes the inputs of this model that switch the named ones on.
    """

    kind: SourceKind
    names: tuple[str, ...]
    switched: Callable[[], ir.Model]
    feed: Callable[[Collection[str]], Feed]


def _activations(model: ir.Model, plan: Plan) -> _Roundings:
    names = tuple(plan.activations)

    def feed(on: Collection[str]) -> Feed:
        return switch_feed(names, {name: plan.activations[name] for name in on})

    return _Roundings("activation", names, lambda: add_rounding_switches(model, names), feed)


def _weights(model: ir.Model, plan: Plan) -> _Roundings:
    names = tuple(plan.products)
    plain = weight_feed(model, dict.fromkeys(names))

    def feed(on: Collection[str]) -> Feed:
        return plain | weight_feed(model, {name: plan.products[name].weight for name in on})

    return _Roundings("weight", names, lambda: make_weights_inputs(model, names), feed)


class _Measure:
    """Measures the power of some roundings together, or reads it from the cache; makes the model when it is needed."""

    def __init__(self, roundings: _Roundings, judge: Judge, cache: _PowerCache, stage: Stage) -> None:
        self._roundings, self._judge, self._cache, self._stage = roundings, judge, cache, stage
        self._fidelity_db: Callable[[Feed], float] | None = None

    def __call__(self, on: Sequence[str]) -> float:
        power = self._cache.get(self._roundings.kind, on)
        if power is None:
            if self._fidelity_db is None:
                self._fidelity_db = self._judge.fidelity_function(self._roundings.switched())
            power = db_to_power(self._fidelity_db(self._roundings.feed(on)))
            self._cache.put(self._roundings.kind, on, power)
        self._stage.step()
        return power


def _divided(names: Sequence[str], measure: Callable[[Sequence[str]], float], most: int) -> dict[str, float]:
    """Measure names one by one; where they are more than `most`, groups of neighbours, dividing the noisiest groups."""
    size = 1 if len(names) <= most else -(-2 * len(names) // most)
    groups = {part: measure(part) for i in range(0, len(names), size) if (part := tuple(names[i : i + size]))}
    left = most - len(groups)
    while left >= 2 and (divisible := [group for group in groups if len(group) > 1]):
        noisiest = max(divisible, key=groups.__getitem__)
        del groups[noisiest]
        middle = len(noisiest) // 2
        groups |= {half: measure(half) for half in (noisiest[:middle], noisiest[middle:])}
        left -= 2
    return {name: power / len(group) for group, power in groups.items() for name in group}


def _noise_sources(model: ir.Model, powers: Mapping[tuple[SourceKind, str], float]) -> tuple[NoiseSource, ...]:
    """Turn powers into shares of their sum, the largest first."""
    producers = {str(v.name): query.op(n) if (n := v.producer()) else "input" for v in query.activations(model)}
    operators = {query.label(node): query.op(node) for node in model.graph}
    total = sum(powers.values()) or 1.0
    return tuple(
        NoiseSource(
            kind=kind,
            at=at,
            op=producers[at] if kind == "activation" else operators[at],
            share=power / total,
            fidelity_db=power_to_db(power),
        )
        for (kind, at), power in sorted(powers.items(), key=lambda item: (-item[1], item[0][1]))
    )


def noise_clusters(model: ir.Model, plan: Plan, sources: Sequence[NoiseSource]) -> list[NoiseCluster]:
    """List the clusters to leave float, by the noise they remove for their cost; no operator is in two of them."""
    int8 = plan.int8_nodes()
    shares = {(source.kind, source.at): source.share for source in sources}
    costs = _cost_shares(model)
    rated: list[tuple[float, NoiseCluster]] = []
    for value in query.activations(model):
        share = shares.get(("activation", str(value.name)))
        around = _int8_around(value, int8) if share is not None else ()
        if share is None or not around:
            continue
        share += sum(shares.get(("weight", name), 0.0) for name in around)
        rated.append((share / sum(costs[name] for name in around), NoiseCluster(around, share, str(value.name))))
    return _disjoint([cluster for _, cluster in sorted(rated, key=lambda item: (-item[0], item[1].tensor))])


def _cost_shares(model: ir.Model) -> dict[str, float]:
    """Return each operator's share of all multiply-accumulates, at least :data:`MIN_COST_SHARE`."""
    macs = macs_by_node(model)
    all_macs = sum(macs.values()) or 1
    return {name: max(count / all_macs, MIN_COST_SHARE) for name, count in macs.items()}


def _disjoint(clusters: Sequence[NoiseCluster]) -> list[NoiseCluster]:
    """Give each operator to the first cluster that has it."""
    taken: set[str] = set()
    result = []
    for cluster in clusters:
        free = tuple(name for name in cluster.nodes if name not in taken)
        if free:
            result.append(replace(cluster, nodes=free))
            taken.update(free)
    return result


def _int8_around(value: ir.Value, int8: set[str]) -> tuple[str, ...]:
    """Name the int8 operators that read or compute a tensor; for a Relu or Clip, also the operator before it."""
    names = [query.label(node) for node in query.consumers(value)]
    producer = value.producer()
    while producer is not None:
        names.append(query.label(producer))
        source = producer.inputs[0] if producer.op_type in ("Relu", "Clip") else None
        producer = source.producer() if source is not None else None
    return tuple(sorted(name for name in dict.fromkeys(names) if name in int8))


class _PowerCache:
    """Noise powers by kind and name, stored in one file for a model, its plan and the samples."""

    def __init__(self, model: ir.Model, plan: Plan, samples_key: str) -> None:
        content = io.to_bytes(model) if io.weight_bytes(model) <= io.EMBED_LIMIT_BYTES else b""
        weights = [
            part
            for name, product in plan.products.items()
            for part in (name, product.weight.values.tobytes(), product.weight.scales.tobytes())
        ]
        grids = sorted(plan.activations.items())
        self._path = cache_path("sensitivity", content, grids, *weights, samples_key, suffix=".json")
        self._powers = read_cache(self._path, _parse_powers) or {}
        self._unsaved = 0

    def get(self, kind: str, names: Sequence[str]) -> float | None:
        return self._powers.get(" ".join((kind, *names)))

    def put(self, kind: str, names: Sequence[str], power: float) -> None:
        self._powers[" ".join((kind, *names))] = power
        self._unsaved += 1
        if self._unsaved >= MEASUREMENTS_PER_SAVE:
            self.save()

    def save(self) -> None:
        if self._unsaved:
            write_cache(self._path, json.dumps(self._powers).encode())
            self._unsaved = 0


def _parse_powers(content: bytes) -> dict[str, float]:
    return {str(name): float(power) for name, power in json.loads(content).items()}
