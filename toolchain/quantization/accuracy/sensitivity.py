"""Where an int8 model's error comes from: what the rounding of each tensor and each weight does to the outputs.

Each is switched on alone in the float model. The errors are small and as good as independent, so their squares add up:
on MobileNetV2 the sum over all tensors lies within a decibel of all of them together. A share is of that sum.

A tensor's rounding is gone only when all int8 operators around it are float. So operators to leave float go in
clusters, one for each noisy tensor: what computes it and what reads it, with their weights. They are ordered by the
noise they take out for every multiply-accumulate that int8 loses: no clock, so the order is the same everywhere.

The results are kept on disk as they come, keyed by model, plan and samples: an interrupted search goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from toolchain.core.cache import cache_path, read_cache, write_cache
from toolchain.core.progress import Progress
from toolchain.evaluation.fidelity import Probe, db_to_power, power_to_db
from toolchain.formats.findings import NoiseSource
from toolchain.graph import edit, io, query
from toolchain.ops.cost import total_macs
from toolchain.ops.table import macs
from toolchain.quantization.accuracy.rounding_switches import switch_feed, with_switches
from toolchain.quantization.plan import Plan

SAVE_EVERY = 16
LEAST_SHARE = 1e-3
"""Of all multiply-accumulates: an operator counts as at least so much, for a float one between int8 ones costs two
conversions however little it computes."""


@dataclass(frozen=True)
class NoiseCluster:
    """Operators to leave float together, and the share of all noise that goes with them."""

    nodes: tuple[str, ...]
    share: float
    tensor: str


def noises(model: ir.Model, plan: Plan, probe: Probe, key: str, progress: Progress) -> tuple[NoiseSource, ...]:
    """The noise of every activation and weight of a plan, the largest first.

    Args:
        model: the float model the plan was made for.
        plan: its grids and weights.
        probe: measures at the outputs.
        key: of the samples.
        progress: told about every step.
    """
    producers = {str(v.name): query.op(n) if (n := v.producer()) else "input" for v in query.activations(model)}
    nodes = {query.label(node): node for node in model.graph}
    cache = _PowerCache(model, plan, key)
    names = list(plan.activations)
    total = len(names) + len(plan.products)
    powers: dict[tuple[Literal["activation", "weight"], str], float] = {}
    measure = None
    for name, grid in plan.activations.items():
        known = cache.get("activation", name)
        if known is None:
            measure = measure or probe.opened(with_switches(model, names))
            known = cache.put("activation", name, db_to_power(measure(switch_feed(names, {name: grid}))))
        powers["activation", name] = known
        progress("measuring sensitivity", len(powers), total)
    for name, product in plan.products.items():
        known = cache.get("weight", name)
        if known is None:
            clone = model.clone()
            node = next(n for n in clone.graph if query.label(n) == name)
            constant = edit.add_constant(
                clone.graph, edit.Names(clone.graph).fresh(f"{name}_rounded"), product.weight.dequantized()
            )
            edit.set_input(node, 1, constant)
            known = cache.put("weight", name, db_to_power(probe.fidelity_db(clone)))
        powers["weight", name] = known
        progress("measuring sensitivity", len(powers), total)
    cache.save()
    whole = sum(powers.values()) or 1.0
    return tuple(
        NoiseSource(
            kind=kind,
            at=at,
            op=producers[at] if kind == "activation" else query.op(nodes[at]),
            share=power / whole,
            fidelity_db=power_to_db(power),
        )
        for (kind, at), power in sorted(powers.items(), key=lambda item: (-item[1], item[0][1]))
    )


def clusters(model: ir.Model, plan: Plan, noises: Sequence[NoiseSource]) -> list[NoiseCluster]:
    """What to leave float, the most rewarding first; no operator is in two clusters."""
    int8 = plan.int8_nodes()
    power = {(noise.kind, noise.at): noise.share for noise in noises}
    nodes = {query.label(node): node for node in model.graph}
    whole = total_macs(model) or 1
    found = []
    for value in query.activations(model):
        share = power.get(("activation", str(value.name)))
        if share is None:
            continue
        around = _around(value, int8)
        share += sum(power.get(("weight", name), 0.0) for name in around)
        cost = sum(max((macs(nodes[name]) or 0) / whole, LEAST_SHARE) for name in around)
        if around:
            found.append((share / cost, NoiseCluster(around, share, str(value.name))))
    taken: set[str] = set()
    ordered = []
    for _, cluster in sorted(found, key=lambda item: (-item[0], item[1].tensor)):
        left = tuple(name for name in cluster.nodes if name not in taken)
        if left:
            ordered.append(NoiseCluster(left, cluster.share, cluster.tensor))
            taken.update(left)
    return ordered


def _around(value: ir.Value, int8: set[str]) -> tuple[str, ...]:
    """The int8 operators that read or compute a tensor; behind a Relu or Clip, what that one follows too."""
    names = [query.label(node) for node in query.consumers(value)]
    producer = value.producer()
    while producer is not None:
        names.append(query.label(producer))
        behind = producer.inputs[0].producer() if producer.op_type in ("Relu", "Clip") and producer.inputs[0] else None
        producer = behind
    return tuple(sorted(name for name in dict.fromkeys(names) if name in int8))


class _PowerCache:
    """Noise powers by kind and name, kept in one file for a model, its plan and the samples."""

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
        if self._unsaved >= SAVE_EVERY:
            self.save()
        return power

    def save(self) -> None:
        if self._unsaved:
            write_cache(self._path, json.dumps(self._powers).encode())
            self._unsaved = 0


def _parse_powers(content: bytes) -> dict[str, float]:
    return {str(name): float(power) for name, power in json.loads(content).items()}
