"""Every constant is stored once: equal ones are shared, and folding makes no second copy of one that stays in use.

A file that folds ``Transpose(E)`` although another node still reads E holds E twice. Such a node stays, and a matrix
product behind it reads E itself by ``transB``.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from toolchain.graph import edit, query

SMALL_BYTES = 16_384
"""Constants up to this size may be stored more than once."""


def copies(model: ir.Model) -> set[ir.Node]:
    """Nodes that would fold into a second copy of a constant: one larger than :data:`SMALL_BYTES` that stays in use."""
    folding = _constant_nodes(model)
    kept = {
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if _is_large(value) and not all(use.node in folding for use in value.uses())
    }
    return {node for node in folding if any(value in kept for value in node.inputs)}


def _constant_nodes(model: ir.Model) -> set[ir.Node]:
    """Nodes whose inputs are all constants or computed by such nodes."""
    found: set[ir.Node] = set()
    for node in model.graph.all_nodes():
        sources = [value for value in node.inputs if value is not None]
        has_branches = any(True for _ in query.subgraphs(node))
        if sources and not has_branches and all(_is_constant(value, found) for value in sources):
            found.add(node)
    return found


def _is_constant(value: ir.Value, folding: Collection[ir.Node]) -> bool:
    return query.constant(value) is not None or value.producer() in folding


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > SMALL_BYTES


def share_initializers(model: ir.Model) -> None:
    """Store equal constants once, in the main graph if another graph reads them, too.

    Branches and loop bodies may read values of the graph around them. Constants that are an input or an output stay.
    """
    groups: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is None or value.dtype in (None, ir.DataType.STRING):
                continue
            if not value.is_graph_input() and not value.is_graph_output():
                key = value.const_value.dtype, tuple(value.const_value.shape.numpy())
                groups.setdefault(key, []).append(value)
    for group in groups.values():
        first: dict[bytes, ir.Value] = {}
        for value in group if len(group) > 1 else ():
            same = first.setdefault(value.const_value.tobytes(), value)  # type: ignore[union-attr]
            if same is not value:
                _replace(model, value, same)


def _replace(model: ir.Model, value: ir.Value, same: ir.Value) -> None:
    """Make all readers of the constant `value` read the equal `same`."""
    if same.graph is not value.graph and same.graph is not model.graph:
        _move_to_main_graph(model, same)
    value.replace_all_uses_with(same)
    if value.graph is not None:
        del value.graph.initializers[str(value.name)]


def _move_to_main_graph(model: ir.Model, value: ir.Value) -> None:
    if value.graph is not None:
        del value.graph.initializers[str(value.name)]
    value.name = edit.Names(model.graph).fresh(str(value.name))
    model.graph.register_initializer(value)


def read_transposed_constants(model: ir.Model) -> None:
    """Replace a product with ``Transpose(E)``, which was not folded, by a ``Gemm`` that reads E by ``transB``.

    A product over more than two axes works on a matrix of its rows, and a bias behind it is taken in.
    """
    names = edit.Names(model.graph)
    for node in [node for node in model.graph if query.op(node) == "Gemm"]:
        table = _transposed_constant(node.inputs[1])
        if table is not None:
            node.replace_input_with(1, table)
            node.attributes["transB"] = ir.AttrInt64("transB", 1 - query.attribute(node, "transB", 0))
    for node in [node for node in model.graph if query.op(node) == "MatMul"]:
        source, table = node.inputs[0], _transposed_constant(node.inputs[1])
        rank = query.rank(source) if source is not None else None
        if source is None or table is None or rank is None or rank < 2 or not query.is_float(source):
            continue
        bias_node, bias = _bias_behind(node, table)
        last = bias_node or node
        rows = source if rank == 2 else _reshaped(model, names, source, _rows_of(model, names, table), node)
        inputs = [rows, table, *([] if bias is None else [bias])]
        gemm = ir.node("Gemm", inputs, {"transB": 1}, name=names.fresh(f"{query.label(node)}_gemm"))
        gemm.outputs[0].name = names.fresh(f"{last.outputs[0].name}_rows")
        gemm.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        if rank == 2:
            edit.replace_node(last, gemm)
            continue
        model.graph.insert_before(last, gemm)
        sizes = _sizes_of_result(model, names, source, table, last)
        reshape = ir.node("Reshape", [gemm.outputs[0], sizes], name=names.fresh(f"{query.label(node)}_shape"))
        edit.replace_node(last, reshape)
    edit.remove_unused(model)


def _transposed_constant(value: ir.Value | None) -> ir.Value | None:
    """The constant matrix whose transpose `value` is; None if it is none."""
    node = value.producer() if value is not None else None
    source = node.inputs[0] if node is not None and query.op(node) == "Transpose" else None
    matrix = query.float_array(source)
    return source if matrix is not None and matrix.ndim == 2 else None


def _bias_behind(product: ir.Node, table: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The sum that is the only reader of a product, and its constant of one number for each column."""
    node = query.sole_consumer(product.outputs[0])
    if node is None or query.op(node) != "Add":
        return None, None
    bias = node.inputs[1] if node.inputs[0] is product.outputs[0] else node.inputs[0]
    array, columns = query.float_array(bias), (query.sizes(table) or (0,))[0]
    return (node, bias) if array is not None and array.shape == (columns,) else (None, None)


def _rows_of(model: ir.Model, names: edit.Names, table: ir.Value) -> ir.Value:
    width = (query.sizes(table) or (0, 0))[1]
    return edit.add_constant(model.graph, names.fresh(f"{table.name}_rows"), np.array([-1, width], np.int64))


def _reshaped(model: ir.Model, names: edit.Names, source: ir.Value, sizes: ir.Value, before: ir.Node) -> ir.Value:
    return _placed(model, names, before, ir.node("Reshape", [source, sizes]), f"{source.name}_matrix")


def _sizes_of_result(
    model: ir.Model, names: edit.Names, source: ir.Value, table: ir.Value, before: ir.Node
) -> ir.Value:
    """The sizes of a product: those of `source`, but for the last, which is the number of rows of `table`."""
    known = list((query.sizes(source, dynamic=-1) or ())[:-1])
    columns = np.array([(query.sizes(table) or (0,))[0]], np.int64)
    if known.count(-1) <= 1 and 0 not in known:
        array = np.array([*known, *columns], np.int64)
        return edit.add_constant(model.graph, names.fresh(f"{table.name}_sizes"), array)
    front = ir.node("Shape", [source], {"end": -1})
    width = edit.add_constant(model.graph, names.fresh(f"{table.name}_columns"), columns)
    joined = ir.node("Concat", [_placed(model, names, before, front, f"{source.name}_front"), width], {"axis": 0})
    return _placed(model, names, before, joined, f"{table.name}_sizes")


def _placed(model: ir.Model, names: edit.Names, before: ir.Node, node: ir.Node, name: str) -> ir.Value:
    """Insert a node with one output in front of `before`, and return the output."""
    node.name = names.fresh(name)
    node.outputs[0].name = names.fresh(f"{name}_out")
    model.graph.insert_before(before, node)
    return node.outputs[0]
