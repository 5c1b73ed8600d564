"""Changes to a graph, each leaving it consistent. Only ``graph/`` and the ``apply`` modules call these."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from toolchain.data.tensors import Array


class Names:
    """Hands out names that are free in a graph; made once for many insertions, since a scan is linear."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken: set[str | None] = {value.name for value in graph.inputs}
        self._taken.update(graph.initializers)
        for node in graph.all_nodes():
            self._taken.add(node.name)
            self._taken.update(output.name for output in node.outputs)

    def fresh(self, wanted: str) -> str:
        """A free name like `wanted`, taken from now on."""
        name = _free(wanted, self._taken)
        self._taken.add(name)
        return name


def _free(wanted: str, taken: set[str | None]) -> str:
    if wanted not in taken:
        return wanted
    number = 1
    while f"{wanted}_{number}" in taken:
        number += 1
    return f"{wanted}_{number}"


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register an initializer whose type and shape are those of `array`. The name must be free."""
    # asarray, not ascontiguousarray: that one turns a scalar into a vector, and scales must stay scalars.
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Replace one input, growing the input list for an optional one that was left off."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def redirect(old: ir.Value, new: ir.Value, nodes: Iterable[ir.Node]) -> None:
    """Make `nodes` read `new` wherever they read `old`."""
    chosen = set(nodes)
    for use in list(old.uses()):
        if use.node in chosen:
            use.node.replace_input_with(use.idx, new)


def bypass(node: ir.Node) -> None:
    """Remove a node of one output whose first input stands for it; a graph output keeps its name.

    Where the input already is a graph input, output or constant of its own name, an Identity takes the node's place.
    """
    source, output, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None:
        raise ValueError(f"{node.op_type} has no first input to stand for it")
    if graph is None:
        raise ValueError(f"{node.op_type} is in no graph")
    leaves, name = output.is_graph_output(), output.name
    if leaves and (source.producer() is None or source.is_graph_output()):
        replace_node(node, ir.node("Identity", [source], name=node.name))
        return
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if leaves:
        source.name = name


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`, of as many outputs, keeping the outputs' names, types and shapes."""
    graph = old.graph
    if graph is None:
        raise ValueError(f"{old.op_type} is in no graph")
    graph.insert_before(old, new)
    names = [output.name for output in old.outputs]
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.type, after.shape = before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    for name, after in zip(names, new.outputs, strict=True):
        after.name = name


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and initializers that no output needs."""
    passes.RemoveUnusedNodesPass()(model)


def keep_outputs(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Make `values` the only outputs, in their order, and drop what they do not need."""
    graph, names = model.graph, Names(model.graph)
    chosen: list[ir.Value] = []
    for value in values:
        if value.is_graph_input():  # the runtime refuses an input that is an output at once
            node = ir.node("Identity", [value], name=names.fresh(f"{value.name}_copy"))
            node.outputs[0].name = names.fresh(f"{value.name}_copy_out")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            value = node.outputs[0]
        chosen.append(value)
    graph.outputs.clear()
    graph.outputs.extend(chosen)
    remove_unused(model)


def _let_go(node: ir.Node) -> None:
    """The branches of an If or Loop no longer read the graph around them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)


def extract(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A model of the named nodes alone: what they read becomes inputs, what others read of them outputs."""
    clone = model.clone()
    graph, chosen = clone.graph, set(names)
    inside = [node for node in graph if node.name in chosen]
    computed = {output for node in inside for output in node.outputs}
    read = dict.fromkeys(v for n in inside for v in n.inputs if v is not None and v not in computed)
    sources = [value for value in read if not value.is_initializer()]
    results = [
        value
        for value in computed
        if value.is_graph_output() or any(use.node.name not in chosen for use in value.uses())
    ]
    results.sort(key=lambda value: str(value.name))
    feeds = []
    for value in sources:
        feed = ir.Value(name=value.name, type=value.type, shape=value.shape)
        redirect(value, feed, inside)
        feeds.append(feed)
    graph.outputs.clear()
    graph.outputs.extend(results)
    for value in list(graph.inputs):
        graph.inputs.remove(value)
    for node in reversed(list(graph)):
        if node.name not in chosen:
            _let_go(node)
            graph.remove(node, safe=True)  # which also lets go of its inputs, so that unused weights are seen as such
    graph.inputs.extend(feeds)
    remove_unused(clone)
    return clone
