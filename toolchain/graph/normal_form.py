"""The form of a file that onnx_ir and onnx's checker want, where onnxruntime takes others as well.

- Nodes stand behind those whose results they read. onnxruntime sorts them itself.
- Constants are dense. No kernel for a product in onnxruntime gains from sparse ones.
- Every node has a name of its own, or none, because recipes and reports find nodes by their names. onnxruntime allows
  Constant nodes to share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from toolchain.core.errors import ModelError
from toolchain.graph.messages import all_nodes, subgraphs


def make_dense(proto: onnx.ModelProto) -> int:
    """Replace sparse initializers and sparse Constant nodes by dense ones, in all graphs; return their number.

    Raises:
        ModelError: the indices of a sparse tensor do not fit its shape.
    """
    return _graph(proto.graph) + sum(_nodes(function.node) for function in proto.functions)


def _graph(graph: onnx.GraphProto) -> int:
    count = len(graph.sparse_initializer)
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    del graph.sparse_initializer[:]
    return count + _nodes(graph.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> int:
    count = 0
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            attribute.CopyFrom(onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor)))
            count += 1
        count += sum(_graph(graph) for graph in subgraphs(attribute))
    return count


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The dense tensor; indices are positions in the flat array [n], or coordinates [n, rank] (onnx, SparseTensor)."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(dims, values.dtype)
    try:
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
    except (IndexError, ValueError):
        where = f"sparse constant {name!r}"
        what = f"has {values.size} values at positions that do not fit its shape {list(dims)}"
        raise ModelError(what, where=where, hint="export the model again") from None
    return numpy_helper.from_array(dense, name)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort the nodes of `graph` and of its subgraphs in place; nodes that are sorted keep their order.

    Nodes of a cycle, which nothing can run, stay in their order.
    """
    for node in graph.node:
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                sort_nodes(inner)
    writer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [sorted({writer[name] for name in _reads(node) if name in writer}) for node in graph.node]
    if all(before < index for index, needed in enumerate(needs) for before in needed):
        return
    order: dict[int, None] = {}
    entered: set[int] = set()
    stack = list(reversed(range(len(needs))))
    while stack:
        index = stack[-1]
        missing = [before for before in needs[index] if before not in entered]
        if index in entered or not missing:
            order.setdefault(stack.pop())
        else:
            stack.extend(reversed(missing))
        entered.add(index)
    nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def separate_names(graph: onnx.GraphProto) -> None:
    """Give a number to each node whose name an earlier node has, subgraphs included; the first node keeps the name."""
    nodes = list(all_nodes(graph.node))
    taken = {node.name for node in nodes}.union(*(node.output for node in nodes))
    last = dict.fromkeys((node.name for node in nodes), 0)
    seen: set[str] = set()
    for node in nodes:
        base = node.name
        if base in seen:
            while node.name in taken:
                last[base] += 1
                node.name = f"{base}_{last[base]}"
            taken.add(node.name)
        elif base:
            seen.add(base)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node or its subgraphs read; some of them may be values of the subgraphs themselves."""
    yield from node.input
    for attribute in node.attribute:
        for graph in subgraphs(attribute):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _reads(inner)
