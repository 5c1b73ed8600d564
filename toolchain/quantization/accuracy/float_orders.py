"""Orders in which operators become float until a model's answer is kept.

    from the outputs   what only lost parts need first, then backwards: for what is lost in a head or behind it
    from the inputs    forwards: for what is lost in a front end
    by noise           clusters around the noisiest tensors: for what is lost here and there

Where eight convolutions of a front end each alone ruin the answer, leaving any one of them float helps nothing, so an
order by the effect of single operators is not enough: a region has to become float as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.formats.findings import NoiseSource
from toolchain.graph import query
from toolchain.quantization.accuracy.sensitivity import noise_clusters
from toolchain.quantization.quantized import Quantized

KEPT_FOR_THE_ANSWER = "left float, because the answer is lost with it in int8"


@dataclass(frozen=True)
class FloatOrder:
    """Groups of int8 operators in the order in which they become float.

    Attributes:
        groups: names of the operators of each group.
        reasons: for each group, the reason that its operators are float.
    """

    groups: tuple[tuple[str, ...], ...]
    reasons: tuple[str, ...]

    def first(self, count: int) -> dict[str, str]:
        """Return the operators of the first `count` groups, with their reasons."""
        pairs = zip(self.groups[:count], self.reasons[:count], strict=True)
        return {name: reason for group, reason in pairs for name in group}


def from_outputs(quantized: Quantized, lost: Collection[str], kept: Collection[str]) -> FloatOrder:
    """Order the operators that the tensors `lost` need from the outputs; those that `kept` need as well come last."""
    needed, shared = _behind(quantized.model, lost), _behind(quantized.model, kept)
    nodes = [node for node in reversed(list(quantized.model.graph)) if node in needed]
    return _one_by_one(quantized, sorted(nodes, key=lambda node: node in shared))


def from_inputs(quantized: Quantized, lost: Collection[str]) -> FloatOrder:
    """Order the operators that the tensors `lost` need from the inputs."""
    needed = _behind(quantized.model, lost)
    return _one_by_one(quantized, [node for node in quantized.model.graph if node in needed])


def by_noise(quantized: Quantized, sources: Sequence[NoiseSource]) -> FloatOrder:
    """Order clusters of operators by the noise that leaves with them for their cost."""
    clusters = noise_clusters(quantized.model, quantized.plan, sources)
    reasons = tuple(f"left float for accuracy: {cluster.error_share(1)}" for cluster in clusters)
    return FloatOrder(tuple(cluster.nodes for cluster in clusters), reasons)


def _one_by_one(quantized: Quantized, nodes: Iterable[ir.Node]) -> FloatOrder:
    computing = set(quantized.computing)
    groups = tuple((name,) for node in nodes if (name := query.label(node)) in computing)
    return FloatOrder(groups, (KEPT_FOR_THE_ANSWER,) * len(groups))


def _behind(model: ir.Model, tensors: Collection[str]) -> set[ir.Node]:
    """Return the nodes that the tensors are computed from."""
    values = {str(value.name): value for value in query.activations(model)}
    waiting = [node for name in tensors if name in values and (node := values[name].producer()) is not None]
    found: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.predecessors()
    return found
