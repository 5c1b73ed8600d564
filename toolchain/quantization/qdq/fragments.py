"""Fragments: connected groups of int8 nodes. Each fragment is raced against its float version.

Inside a fragment, kernels pass integers to each other; at its border every tensor is converted. The gain depends on
shapes and processor, so each fragment is cut out, written in both forms and raced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.core.union_find import representatives
from toolchain.formats.target import Encoding
from toolchain.graph import edit, query
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.writer import apply_quantization


@dataclass(frozen=True)
class Fragment:
    """A part of the graph in both forms.

    Attributes:
        nodes: names of the nodes in graph order.
        float_model: the part as a float model.
        int8_model: the part as an int8 model according to the plan.
    """

    nodes: tuple[str, ...]
    float_model: ir.Model
    int8_model: ir.Model

    @property
    def name(self) -> str:
        """Name of the first node, which identifies the fragment in reports."""
        return self.nodes[0]


def fragments(model: ir.Model, plan: Plan, encoding: Encoding) -> list[Fragment]:
    """Cut the plan's int8 nodes into connected fragments; a dynamic node is a fragment of its own.

    Args:
        model: the float model the plan was made for.
        plan: says which nodes are int8.
        encoding: encoding of activations in the int8 models.
    """
    groups = _connected(model, plan.int8_nodes()) + [(name,) for name in plan.recurrent]
    return [_fragment(model, plan, group, encoding) for group in groups]


def int8_part(model: ir.Model, plan: Plan, encoding: Encoding) -> Fragment:
    """Cut out all int8 nodes of the plan together; tensors that float nodes compute for them become inputs."""
    chosen = plan.int8_nodes()
    return _fragment(
        model, plan, tuple(name for node in model.graph if (name := query.label(node)) in chosen), encoding
    )


def _connected(model: ir.Model, chosen: set[str]) -> list[tuple[str, ...]]:
    """Group int8 nodes that are joined by tensors between them, in graph order."""
    nodes = [node for node in model.graph if query.label(node) in chosen]
    joined = [
        (query.label(node), query.label(producer))
        for node in nodes
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None and query.label(producer) in chosen
    ]
    representative = representatives(joined)
    groups: dict[str, list[str]] = {}
    for node in nodes:
        groups.setdefault(representative(query.label(node)), []).append(query.label(node))
    return [tuple(group) for group in groups.values()]


def _fragment(model: ir.Model, plan: Plan, names: tuple[str, ...], encoding: Encoding) -> Fragment:
    alone = edit.extract(model, names)
    inside = {str(value.name) for value in query.activations(alone)}
    part = replace(
        plan,
        choices=tuple(c for c in plan.choices if c.node in names),
        activations={n: a for n, a in plan.activations.items() if n in inside},
        products={n: p for n, p in plan.products.items() if n in names},
        recurrent={n: w for n, w in plan.recurrent.items() if n in names},
        tables={},
    )
    return Fragment(names, alone, apply_quantization(alone, part, encoding))
