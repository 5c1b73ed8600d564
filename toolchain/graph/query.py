"""Queries about a graph. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.data.tensors import Array


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer or a Constant node; None for values that are computed or fed."""
    if value is None:
        return None
    if value.is_initializer() and not value.is_graph_input():
        return None if value.const_value is None else value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element as a float; None for other values."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def ints(value: ir.Value | None) -> list[int] | None:
    """A constant integer tensor as a flat list; None for other values."""
    array = constant(value)
    return None if array is None else [int(x) for x in array.reshape(-1)]


def shape_numbers(value: ir.Value | None) -> list[int | None] | None:
    """The numbers of a shape tensor; None for each number that is computed when the model runs.

    The tensor is a constant, or a Concat of constants and single computed numbers. The result is None for others.
    """
    known = ints(value)
    if known is not None:
        return list(known)
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Concat":
        return None
    numbers: list[int | None] = []
    for part in node.inputs:
        known = ints(part)
        if known is None and sizes(part, dynamic=-1) != (1,):
            return None
        numbers += known if known is not None else [None]
    return numbers


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute; sequences are lists, strings are str."""
    attr = node.attributes.get(name)
    if attr is None or attr.value is None:
        return default
    return list(attr.value) if isinstance(attr.value, tuple | list) else attr.value


def op(node: ir.Node) -> str:
    """The key of a node in the operator table: ``Conv`` for the standard domain, else ``domain::Op``."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def label(node: ir.Node) -> str:
    """The name of a node in reports: its own, else that of its first output."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None if it is left off."""
    return node.inputs[index] if len(node.inputs) > index else None


def computed_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are fed or computed, in their order; a value that is read twice occurs twice."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


def consumers(value: ir.Value) -> list[ir.Node]:
    """The distinct nodes that read `value`, in no fixed order."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`; None if several or none do, or if it is a graph output."""
    nodes = consumers(value)
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def is_float(value: ir.Value | None) -> bool:
    """True if `value` is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def rank(value: ir.Value) -> int | None:
    """Number of axes; None if unknown."""
    return None if value.shape is None else len(value.shape)


def sizes(value: ir.Value | None, dynamic: int = 1) -> tuple[int, ...] | None:
    """The shape, with `dynamic` for every dynamic axis; None if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) and d >= 0 else dynamic for d in value.shape)


def symbols(dim: int | ir.SymbolicDim) -> frozenset[str]:
    """Names in the expression of a dynamic size, such as ``batch`` in ``32*batch``; none for a fixed size."""
    try:
        return dim.free_symbols() if isinstance(dim, ir.SymbolicDim) else frozenset()
    except ValueError:  # a name that is not an expression, such as "?"
        return frozenset()


def elements(value: ir.Value | None) -> int | None:
    """Number of elements, with 1 for every dynamic axis; None if the rank is unknown."""
    shape = sizes(value)
    return None if shape is None else int(np.prod(shape, dtype=np.int64))


def activations(model: ir.Model) -> Iterator[ir.Value]:
    """All values that are fed or computed, in graph order, without those of subgraphs."""
    for value in model.graph.inputs:
        if not value.is_initializer():
            yield value
    for node in model.graph:
        yield from (output for output in node.outputs if output.name)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The branches of an If, or the body of a Loop or Scan, without the graphs inside these; none for other nodes."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            yield attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS:
            yield from attr.as_graphs()


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes in the subgraphs of a node, at every depth."""
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of a model, with those of subgraphs and functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def window(node: ir.Node, spatial: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads before and pads behind of a Conv or pool over these spatial sizes (ONNX, Conv)."""
    rank = len(spatial)
    kernel = attribute(node, "kernel_shape") or (sizes(node.inputs[1]) or ())[2:]
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = attribute(node, "pads", [0] * 2 * rank)
    before, behind = pads[:rank], pads[rank:]
    mode = attribute(node, "auto_pad", "NOTSET")  # where it is another mode, pads have no meaning
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(spatial, strides, reach, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, behind = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        before = behind = [0] * rank
    return strides, dilations, before, behind


def may_pad(node: ir.Node) -> bool:
    """True if a Conv or pool reads beyond the border of its input, or may do so for some size of a dynamic axis."""
    spatial = (sizes(node.inputs[0], dynamic=0) or ())[2:]
    if attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER") and (not spatial or 0 in spatial):
        return True
    _, _, before, behind = window(node, spatial or attribute(node, "kernel_shape", ()))
    return any((*before, *behind))


def opset(model: ir.Model) -> int:
    """Version of the standard operator set."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def float_array(value: ir.Value | None) -> F32 | None:
    """The array of a float32 constant; None for other values."""
    array = constant(value)
    return array.astype(np.float32, copy=False) if array is not None and array.dtype == np.float32 else None
