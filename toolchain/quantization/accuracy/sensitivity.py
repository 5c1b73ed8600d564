"""Sensitivity: the sources of an int8 model's error, measured as the effect of each rounding on the outputs.

Each rounding is switched on alone in the float model. The errors are small and nearly independent, so their squares
add up: on MobileNetV2 the sum over all tensors is within one decibel of the error with all roundings together. Shares
refer to that sum.

The rounding of a tensor disappears only when all int8 operators around it are float. So operators are left float in
clusters, one for each tensor: the operators that compute it and read it, with their weights. Clusters are ordered by
the noise they remove per multiply-accumulate that is no longer int8. Nothing is timed, so the order is the same on
every machine.

Results are kept on disk as they come, keyed by model, plan and samples: an interrupted measurement continues later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.core.cache import cache_path, read_cache, write_cache
from toolchain.core.progress import Progress
from toolchain.data.tensors import Feed
from toolchain.evaluation.fidelity import db_to_power, power_to_db
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import NoiseSource
from toolchain.graph import edit, io, query
from toolchain.ops.cost import total_macs
from toolchain.ops.table import macs
from toolchain.quantization.accuracy.rounding_switches import add_rounding_switches, switch_feed
from toolchain.quantization.plan import Plan

SourceKind = Literal["activation", "weight"]

MEASUREMENTS_PER_SAVE = 16
"""Number of measurements between two writes of the cache."""
MIN_COST_SHARE = 1e-3
"""Smallest cost of an operator, as a share of all multiply-accumulates. However little a float operator computes, it
costs two conversions between int8 operators."""


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
    model: ir.Model, plan: Plan, judge: Judge, samples_key: str, progress: Progress
) -> tuple[NoiseSource, ...]:
    """Measure the noise of every activation and weight of a plan.

    Args:
        model: the float model the plan was made for.
        plan: its grids and weights.
        judge: measures the fidelity of the outputs.
        samples_key: fingerprint of the judge's samples.
        progress: called for every measurement.

    Returns:
        The sources, the largest first.
    """
    cache = _PowerCache(model, plan, samples_key)
    total = len(plan.activations) + len(plan.products)
    powers: dict[tuple[SourceKind, str], float] = {}
    for source, power in chain(
        _activation_powers(model, plan, judge, cache), _weight_powers(model, plan, judge, cache)
    ):
        powers[source] = power
        progress("measuring sensitivity", len(powers), total)
    cache.save()
    return _noise_sources(model, powers)


def _activation_powers(
    model: ir.Model, plan: Plan, judge: Judge, cache: _PowerCache
) -> Iterator[tuple[tuple[SourceKind, str], float]]:
    """Measure the noise of rounding each activation alone, in one model in which every rounding can be switched on."""
    names = list(plan.activations)
    measure: Callable[[Feed], float] | None = None
    for name, grid in plan.activations.items():
        power = cache.get("activation", name)
        if power is None:
            measure = measure or judge.fidelity_function(add_rounding_switches(model, names))
            power = cache.put("activation", name, db_to_power(measure(switch_feed(names, {name: grid}))))
        yield ("activation", name), power


def _weight_powers(
    model: ir.Model, plan: Plan, judge: Judge, cache: _PowerCache
) -> Iterator[tuple[tuple[SourceKind, str], float]]:
    """Measure the noise of each weight's rounding alone."""
    for name, product in plan.products.items():
        power = cache.get("weight", name)
        if power is None:
            rounded = _with_weight(model, name, product.weight.dequantized())
            power = cache.put("weight", name, db_to_power(judge.fidelity_db(rounded)))
        yield ("weight", name), power


def _with_weight(model: ir.Model, name: str, weight: F32) -> ir.Model:
    """Clone the model and replace the weight of one node."""
    clone = model.clone()
    node = next(n for n in clone.graph if query.label(n) == name)
    constant = edit.add_constant(clone.graph, edit.Names(clone.graph).fresh(f"{name}_rounded"), weight)
    edit.set_input(node, 1, constant)
    return clone


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
    all_macs = total_macs(model) or 1
    return {query.label(node): max((macs(node) or 0) / all_macs, MIN_COST_SHARE) for node in model.graph}


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

    def get(self, kind: str, name: str) -> float | None:
        return self._powers.get(f"{kind} {name}")

    def put(self, kind: str, name: str, power: float) -> float:
        self._powers[f"{kind} {name}"] = power
        self._unsaved += 1
        if self._unsaved >= MEASUREMENTS_PER_SAVE:
            self.save()
        return power

    def save(self) -> None:
        if self._unsaved:
            write_cache(self._path, json.dumps(self._powers).encode())
            self._unsaved = 0


def _parse_powers(content: bytes) -> dict[str, float]:
    return {str(name): float(power) for name, power in json.loads(content).items()}
