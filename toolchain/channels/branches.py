"""Removal of whole residual branches: y = x + f(x) becomes y = x.

The branch f consists of all nodes between a tensor x and a sum that adds x, if nothing else needs their results. Where
few samples are available, removing one branch loses less accuracy than making all of them narrower to save the same
time (PRACTISE, arXiv 2202.07861).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.channels.groups import parameters
from toolchain.core.errors import ModelError
from toolchain.graph import check, edit, query


@dataclass(frozen=True)
class Branch:
    """A residual branch.

    Attributes:
        name: node of its sum.
        stream: name of the tensor x.
        nodes: names of the nodes in the branch.
    """

    name: str
    stream: str
    nodes: tuple[str, ...]


def branches(model: ir.Model) -> tuple[Branch, ...]:
    """List the branches that contain weights and whose stream has the shape of the sum, in graph order."""
    weighted = {node for node, _, _ in parameters(model)}
    order = {node: number for number, node in enumerate(model.graph)}
    result = []
    for node in model.graph:
        if query.op(node) != "Add" or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
            continue
        for stream, other in (node.inputs, reversed(node.inputs)):
            inside = _only_for(node, other, stream)
            if inside is None or not inside & weighted:
                continue
            if stream is not None and query.sizes(stream, dynamic=-1) == query.sizes(node.outputs[0], dynamic=-1):
                names = tuple(query.label(n) for n in sorted(inside, key=order.__getitem__))
                result.append(Branch(query.label(node), str(stream.name), names))
                break
    return tuple(result)


def _only_for(sum_: ir.Node, branch: ir.Value | None, stream: ir.Value | None) -> set[ir.Node] | None:
    """The nodes that compute a branch from the stream, if nothing else needs them; None if it is not a branch."""
    if branch is None or stream is None or query.constant(stream) is not None or branch is stream:
        return None
    inside: set[ir.Node] = set()
    waiting, reached = [branch], False
    while waiting:
        value = waiting.pop()
        if value is stream:
            reached = True
            continue
        node = value.producer()
        if query.constant(value) is not None:
            continue
        if node is None or any(output.is_graph_output() for output in node.outputs):
            return None
        if node not in inside:
            inside.add(node)
            waiting += [v for v in node.inputs if v is not None]
    readers = {use.node for node in inside for output in node.outputs for use in output.uses()}
    return inside if reached and readers <= inside | {sum_} else None


def drop_branches(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Remove the branches of these sums from a clone.

    If a product or another sum computes the stream, the stream takes the name of the removed sum. Repair finds tensors
    by name, so it then fits the stream to the values of that sum.

    Raises:
        ModelError: there is no such branch.
    """
    clone = model.clone()
    for name in names:
        branch = next((b for b in branches(clone) if b.name == name), None)
        if branch is None:
            raise ModelError("there is no such residual branch", where=f"sum {name!r}")
        node = next(n for n in clone.graph if query.label(n) == name)
        stream = next(v for v in node.inputs if v is not None and v.name == branch.stream)
        output = node.outputs[0]
        output.replace_all_uses_with(stream)
        clone.graph.remove(node, safe=True)
        edit.remove_unused(clone)
        producer = stream.producer()
        if producer is not None and producer.op_type in ("Add", "Conv", "Gemm") and not stream.is_graph_output():
            stream.name = output.name
    check.check(clone)
    return clone
