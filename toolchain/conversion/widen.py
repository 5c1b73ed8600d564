"""Float16 and bfloat16 models as float32 ones: only float32 operators become int8.

Every float16 constant, type and attribute becomes float32. The program around the model stays as it is: inputs and
outputs of float16 keep their type, with a Cast behind or in front of them. Those of bfloat16 become float32, since
NumPy has no bfloat16. Weights can be stored as float16 again, by ``fp16_weights`` of a recipe.

float32 holds every value of both types, so that the model computes the same, but for the roundings that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph import edit, query

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision", "stash_type"})
"""Attributes that hold an element type: of Cast, RandomNormal, DequantizeLinear, Attention, LayerNormalization."""


def widen(model: ir.Model) -> tuple[str, ...]:
    """Make a model float32 in place; return the names of the types that it had.

    A model is left as it is, and the result is empty, if it has 16-bit floats nowhere but at inputs and outputs of
    float16 that are cast at once, as in a model that was written here.
    """
    if not _computes_in_half(model):
        return ()
    ports = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype == ir.DataType.FLOAT16]
    found: set[ir.DataType] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            found |= _widen_constant(value)
        for value in graph.inputs:
            found |= _widen_type(value)
    for node in query.all_nodes(model):
        found |= _widen_attributes(node)
        for value in node.outputs:
            found |= _widen_type(value)
    if ports:
        _keep_ports(model.graph, ports)
    return tuple(sorted(kind.name.lower() for kind in found))


def _computes_in_half(model: ir.Model) -> bool:
    constants = [value for graph in model.graphs() for value in graph.initializers.values()]
    inner = [value for graph in model.graphs() if graph is not model.graph for value in graph.inputs]
    results = [value for node in query.all_nodes(model) for value in node.outputs if not _is_cast_output(node)]
    casts = [node for node in query.all_nodes(model) if query.op(node) == "Cast" and not _is_cast_output(node)]
    fed = [
        value
        for value in model.graph.inputs
        if value.dtype == ir.DataType.BFLOAT16 or any(query.op(node) != "Cast" for node in query.consumers(value))
    ]
    return any(value.dtype in HALVES for value in (*constants, *inner, *results, *fed)) or any(
        query.attribute(node, "to") in HALVES for node in casts
    )


def _is_cast_output(node: ir.Node) -> bool:
    """True for a Cast to float16 that makes an output of the model, and nothing else."""
    output = node.outputs[0]
    is_cast = query.op(node) == "Cast" and query.attribute(node, "to") == ir.DataType.FLOAT16
    return is_cast and output.is_graph_output() and not output.uses()


def widened_note(kinds: Sequence[str]) -> str:
    """Say what :func:`widen` did."""
    return (
        f"{' and '.join(kinds)} became float32, which int8 needs; inputs and outputs keep float16, "
        "and the recipe's fp16_weights stores weights as float16 again"
    )


def _widen_type(value: ir.Value) -> set[ir.DataType]:
    """Change the element type of a tensor, or of the tensors in a list."""
    kind = value.dtype
    if kind not in HALVES:
        return set()
    value.dtype = ir.DataType.FLOAT
    return {kind}


def _widen_constant(value: ir.Value) -> set[ir.DataType]:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in HALVES:
        return _widen_type(value)
    value.const_value = _widened(tensor)
    _widen_type(value)
    return {tensor.dtype}


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)


def _widen_attributes(node: ir.Node) -> set[ir.DataType]:
    found = set()
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            found.add(attribute.as_tensor().dtype)
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        elif attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and attribute.as_int() in HALVES:
            found.add(ir.DataType(attribute.as_int()))
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    return found


def _keep_ports(graph: ir.Graph, ports: list[ir.Value]) -> None:
    """Give inputs and outputs float16 again, with casts between them and the float32 graph."""
    names = edit.Names(graph)
    for value in dict.fromkeys(ports):
        if value.is_graph_input():
            readers = query.consumers(value)
            value.dtype = ir.DataType.FLOAT16
            cast = _cast(value, ir.DataType.FLOAT, names)
            cast.outputs[0].name = names.fresh(f"{value.name}_float32")
            if readers:
                graph.insert_before(next(iter(graph)), cast)
                edit.redirect(value, cast.outputs[0], readers)
        else:
            cast = _cast(value, ir.DataType.FLOAT16, names)
            graph.append(cast)
            name, value.name = value.name, names.fresh(f"{value.name}_float32")
            cast.outputs[0].name = name
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, kind: ir.DataType, names: edit.Names) -> ir.Node:
    node = ir.node("Cast", [value], {"to": kind}, name=names.fresh(f"{value.name}_cast"))
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
    return node
