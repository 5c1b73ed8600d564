"""Changes to a graph, each of which leaves it consistent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from toolchain.data.tensors import Array
from toolchain.graph import query


class Names:
    """Source of unused names in a graph. Make one object for many insertions, since it reads the whole graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken: set[str | None] = {value.name for value in graph.inputs}
        self._taken.update(graph.initializers)
        for inner in graph.subgraphs():
            self._taken.update(inner.initializers)
            self._taken.update(value.name for value in inner.inputs)
        for node in graph.all_nodes():
            self._taken.add(node.name)
            self._taken.update(output.name for output in node.outputs)

    def fresh(self, base: str) -> str:
        """Return `base`, or `base` with a number if it is taken; the result is taken from now on."""
        name, number = base, 0
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register an initializer with the type and shape of `array`. The name must be unused."""
    # asarray, because ascontiguousarray turns a scalar into a vector, and scales must stay scalars.
    # ir.tensor takes any object, and asking what it is takes longer than all else that writes a constant.
    make = ir.Tensor if array.dtype.kind in "biuf" else ir.tensor
    tensor = make(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Replace one input of a node, or set an optional one that was left off."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def set_constant(graph: ir.Graph, names: Names, node: ir.Node, index: int, name: str, array: Array) -> None:
    """Give a node a constant input of its own: other nodes may read the old one. A number is added to a taken name."""
    set_input(node, index, add_constant(graph, names.fresh(name), array))


def redirect(old: ir.Value, new: ir.Value, nodes: Iterable[ir.Node]) -> None:
    """Make `nodes` read `new` instead of `old`."""
    chosen = set(nodes)
    for use in list(old.uses()):
        if use.node in chosen:
            use.node.replace_input_with(use.idx, new)


def take_over_output(graph: ir.Graph, old: ir.Value, new: ir.Value, old_name: str) -> None:
    """Make `new` the graph output instead of `old`, with its name; `old` is called `old_name`, which must be unused."""
    new.name, old.name = old.name, old_name
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new


def bypass(node: ir.Node) -> None:
    """Remove a node with one output; its readers read its first input instead.

    If the node computes a graph output, the input takes the name of that output. Where it cannot, because it is itself
    an input, an output or a constant of the graph, an Identity replaces the node.
    """
    source, output, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None:
        raise ValueError(f"{node.op_type} has no first input")
    if graph is None:
        raise ValueError(f"{node.op_type} is in no graph")
    is_output, name = output.is_graph_output(), output.name
    if is_output and (source.producer() is None or source.is_graph_output()):
        replace_node(node, ir.node("Identity", [source], name=node.name))
        return
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if is_output:
        source.name = name


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Replace `old` by `new`, whose outputs take the names, types and shapes of the old ones. Both have as many."""
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
    """Drop nodes and initializers that no output needs, also in branches and loop bodies."""
    alive = set(model.graph.all_nodes())
    for value in _all_values(model):
        for use in list(value.uses()):
            if use.node not in alive:  # in a branch that was removed without its nodes
                use.node.replace_input_with(use.idx, None)
    passes.RemoveUnusedNodesPass()(model)
    for graph in model.graph.subgraphs():  # the pass leaves the initializers of these
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def keep_outputs(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Make `values` the only outputs, in this order, and remove nodes that they do not need."""
    graph, names = model.graph, Names(model.graph)
    chosen: list[ir.Value] = []
    for value in values:
        if value.is_graph_input():  # onnxruntime refuses a value that is both input and output
            node = ir.node("Identity", [value], name=names.fresh(f"{value.name}_copy"))
            node.outputs[0].name = names.fresh(f"{value.name}_copy_out")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            value = node.outputs[0]
        chosen.append(value)
    graph.outputs.clear()
    graph.outputs.extend(chosen)
    remove_unused(model)


def name_outputs(model: ir.Model, names: Iterable[str]) -> None:
    """Give each output its name in `names`, in their order; a value that has another name gets an Identity behind it.

    A user's program reads outputs by name or by position, so no pass may change them. An output may be an input of the
    graph, or stand in the list twice.
    """
    graph = model.graph
    for index, (value, name) in enumerate(zip(graph.outputs, names, strict=True)):
        if value.name == name:
            continue
        node = ir.node("Identity", [value])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
        graph.append(node)
        graph.outputs[index] = node.outputs[0]


def _detach_branches(node: ir.Node) -> None:
    """Remove all inputs of nodes in the branches of an If or Loop, so that they no longer use values outside."""
    for inner in query.inner_nodes(node):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)


def extract(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Extract the named nodes as a model: values that they read become inputs, values that others read outputs."""
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
            _detach_branches(node)
            graph.remove(node, safe=True)  # this also detaches its inputs, so that unused weights are recognized
    graph.inputs.extend(feeds)
    remove_unused(clone)
    return clone
