"""Fragments: connected groups of int8 nodes, the units that are raced against their float selves.

Inside a fragment integers flow from kernel to kernel; at its border every tensor is converted. The gain depends on
shapes and processor, so each fragment is cut out, written both ways and raced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.graph import edit, query
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.writer import Encoding, apply_quantization


@dataclass(frozen=True)
class Fragment:
    """A fragment: names of its nodes in graph order, its float model, and its int8 model according to the plan."""

    nodes: tuple[str, ...]
    float_model: ir.Model
    int8_model: ir.Model

    @property
    def name(self) -> str:
        """The name of its first node, which identifies it in reports."""
        return self.nodes[0]


def fragments(model: ir.Model, plan: Plan, encoding: Encoding) -> list[Fragment]:
    """Cut the plan's int8 nodes into connected fragments; a dynamic node is a fragment of its own.

    Args:
        model: the float model the plan was made for.
        plan: says which nodes are int8.
        encoding: how the int8 models spell activations.
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
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    order = [query.label(node) for node in model.graph if query.label(node) in chosen]
    for node in model.graph:
        name = query.label(node)
        if name not in chosen:
            continue
        leader[name] = name
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and query.label(producer) in leader:
                leader[find(name)] = find(query.label(producer))
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(find(name), []).append(name)
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
