"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.formats.target import Target
from toolchain.graph import query
from toolchain.ops.cells import Weighted
from toolchain.ops.cost import Cost
from toolchain.ops.table import rule

MIB = 2**20


@dataclass(frozen=True)
class FitBudget:
    """A limit of the target. value: what the model takes of it, None where it must be measured; fits: likewise."""

    name: str
    unit: str
    limit: float
    value: float | None
    fits: bool | None


@dataclass(frozen=True)
class FitMisfit:
    """Convolutions of one number of output channels that is no multiple of the target's. macs: of all of them."""

    channels: int
    nodes: int
    macs: int
    example: str


@dataclass(frozen=True)
class Fit:
    """A model on a target. convolutions: how many it has; misfits: which of them have unfortunate widths."""

    target: str
    title: str
    channel_multiple: int
    convolutions: int
    misfits: tuple[FitMisfit, ...]
    budgets: tuple[FitBudget, ...]


def fit_to(target: Target, model: ir.Model, counts: Cost, *, weights: int, peak: int) -> Fit:
    """Hold a model against a profile.

    Args:
        target: the profile.
        model: with the nodes' names that `counts` has.
        counts: what it costs.
        weights: bytes of its constants on the target.
        peak: bytes of its activations there, at the least.
    """
    widths: dict[int, list[str]] = {}
    convolutions = [node for node in model.graph if isinstance(rule(node).channels, Weighted)]
    for node in convolutions:
        shape = query.sizes(node.outputs[0])
        if shape is not None and len(shape) > 1 and shape[1] % target.channel_multiple:
            widths.setdefault(shape[1], []).append(query.label(node))
    misfits = tuple(
        FitMisfit(width, len(nodes), sum(counts.macs[name] or 0 for name in nodes), nodes[0])
        for width, nodes in sorted(widths.items())
    )
    values = {"size": ("MiB", target.budget.size_mib, weights / MIB),
              "memory": ("MiB", target.budget.memory_mib or target.memory_mib, (weights + peak) / MIB),
              "latency": ("ms", target.budget.latency_ms, None)}  # fmt: skip
    budgets = tuple(
        FitBudget(name, unit, limit, value, None if value is None else value <= limit)
        for name, (unit, limit, value) in values.items()
        if limit is not None
    )
    return Fit(target.name, target.title, target.channel_multiple, len(convolutions), misfits, budgets)
