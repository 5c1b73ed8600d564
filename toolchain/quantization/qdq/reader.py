"""Read a model that is already quantized, by any program: which nodes are int8 in the file, and which run as int8.

A node is int8 in the file in two cases:
1. It is an integer operator (``QLinearConv``, ``MatMulInteger``) or passes integers on.
2. All activations and weights that it reads come from DequantizeLinear, and its result goes to QuantizeLinear only,
   directly or through a Relu or Clip; a product may also leave its result float. In addition, onnxruntime must have a
   fused kernel for it (see the operator table). Softmax has one, although an export of this toolchain keeps it float.
The file only requests int8. The nodes that run as int8 are read from onnxruntime's optimized graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from toolchain.devices.detect import detect_host
from toolchain.formats.manifest import NodePrecision
from toolchain.graph import query
from toolchain.ops.cells import Absorbed, Float, Kernel
from toolchain.ops.cost import folded
from toolchain.ops.table import FLOAT_SOFTMAX, rule
from toolchain.quantization.qdq.fusion_audit import audit, optimized_graph
from toolchain.quantization.selection import data_inputs

_INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_BYTE_TYPES = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@dataclass(frozen=True)
class RunningGraph:
    """The graph that onnxruntime runs on this machine.

    Attributes:
        int8: number of each int8 operator.
        float_: number of each float operator.
        conversions: number of conversions between int8 and float.
        unfused: nodes that are int8 in the file and still read converted floats.
        weights: constants that are dequantized at every inference.
        foreign: True where activations are signed, as for ARM, but this machine is an x86.
    """

    int8: dict[str, int]
    float_: dict[str, int]
    conversions: int
    unfused: tuple[str, ...]
    weights: tuple[str, ...]
    foreign: bool


def is_quantized(model: ir.Model) -> bool:
    """True where any node is a conversion or an integer operator."""
    return any(node.op_type in _CONVERSIONS or _is_integer(node) for node in model.graph)


def _is_integer(node: ir.Node) -> bool:
    return node.op_type.startswith(_INTEGER_OPERATORS)


def file_precisions(model: ir.Model) -> tuple[NodePrecision, ...]:
    """Return the precision of every node in the file, without conversions and constant computations."""
    reasons: dict[ir.Node, str | None] = {}
    integers: set[ir.Value] = set()
    constant = folded(model)
    for node in model.graph:
        passes = _is_integer(node) or bool(node.inputs and node.inputs[0] in integers)
        if node.op_type == "QuantizeLinear" or (passes and node.op_type != "DequantizeLinear"):
            integers.update(node.outputs)
        if node.op_type not in _CONVERSIONS and node not in constant:
            reasons[node] = None if passes else _float_reason(node, reasons)
    return tuple(
        NodePrecision(node=query.label(n), op=query.op(n), precision="float" if reason else "int8", reason=reason)
        for n, reason in reasons.items()
    )


def _float_reason(node: ir.Node, before: dict[ir.Node, str | None]) -> str | None:
    cell = rule(node).int8
    if isinstance(cell, Float) and cell is not FLOAT_SOFTMAX:
        return cell.reason
    source = node.inputs[0] if node.inputs else None
    if isinstance(cell, Absorbed) and source is not None and source.producer() in before:
        return before[source.producer()]  # type: ignore[index]  # a key of `before` is a node
    if not all(_is_dequantized(value) for value in data_inputs(node) if query.constant(value) is None):
        return "it reads float tensors"
    if isinstance(cell, Kernel) and not _is_dequantized(node.inputs[cell.weight]):
        return "its weight is float"
    if not (isinstance(cell, Kernel) and cell.float_output) and not all(map(_ends_as_integers, node.outputs)):
        return "its result is used as float"
    return None


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _ends_as_integers(value: ir.Value) -> bool:
    """True where only QuantizeLinear reads `value`, directly or through one Relu or Clip."""
    reader = query.sole_consumer(value)
    if reader is not None and isinstance(rule(reader).int8, Absorbed):
        return _ends_as_integers(reader.outputs[0])
    readers = query.consumers(value)
    return bool(readers) and not value.is_graph_output() and all(n.op_type == "QuantizeLinear" for n in readers)


def running_graph(model: ir.Model, choices: Sequence[NodePrecision]) -> RunningGraph:
    """Load `model` in onnxruntime and analyse its optimized graph.

    Raises:
        ModelError: onnxruntime does not accept the model.
    """
    graph = optimized_graph(model)
    audited = audit(graph, {choice.node for choice in choices if choice.int8})
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    int8, float_ = Counter[str](), Counter[str]()
    for node in graph.node:
        if node.op_type not in _CONVERSIONS:
            reads_bytes = bool(node.input) and types.get(node.input[0]) in _BYTE_TYPES
            is_int8 = reads_bytes or node.op_type.startswith(_INTEGER_OPERATORS)
            (int8 if is_int8 else float_)[node.op_type] += 1
            for output in node.output if is_int8 else ():
                types.setdefault(output, onnx.TensorProto.UINT8)  # onnxruntime infers no types behind its own operators
    signed = any(n.op_type == "QuantizeLinear" and n.outputs[0].dtype == ir.DataType.INT8 for n in model.graph)
    foreign = signed and detect_host().architecture == "x86_64"
    return RunningGraph(dict(int8), dict(float_), audited.boundaries, audited.unfused, audited.weights, foreign)
