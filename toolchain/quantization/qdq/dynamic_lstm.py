"""Dynamic int8 for recurrent layers: ``LSTM`` becomes onnxruntime's own ``com.microsoft::DynamicQuantizeLSTM``.

An LSTM's products run step by step inside one operator, so no QuantizeLinear can stand between them. The operator
rounds the input (all steps at once) and the hidden state (at every step) to u8 over their range at that time,
multiplies by s8 weights with one scale per gate row using the GEMM of static int8, and computes the gates in float
(``dynamic_quantize_lstm.cc``, ``rnn_helpers.cc``). This has two consequences:
    weights    They are symmetric, with zero point 0 and shape [directions, K, gates · H]. Pairs along K must be
               overflow-free, as in every product.
    input      It has one scale for all samples of a batch, so a result may depend on the other samples in the batch.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Array
from toolchain.graph import edit, query
from toolchain.ops.cells import Dynamic
from toolchain.ops.table import rule
from toolchain.quantization.weights import WeightQuant, quantize_weight

DOMAIN = "com.microsoft"
DYNAMIC_REASON = "its weights are int8; its activations are quantized at run time, with the range of each step"
FLOAT_INPUTS = 8
"""Inputs of the float operator: X, W, R, B, sequence_lens, initial_h, initial_c, P. Scales and zero points follow."""


def refusal(node: ir.Node, cell: Dynamic) -> str | None:
    """Return the reason why `node` cannot be dynamic int8, or None."""
    arrays = [query.constant(node.inputs[index]) for index in cell.weights]
    if any(array is None for array in arrays):
        return "its weights are not constant"
    if any(not query.is_float(node.inputs[index]) for index in (0, *cell.weights)):
        return "its input or weights are not float32"
    if query.attribute(node, "layout", 0):
        return "its batch axis comes first, which the dynamic int8 operator does not support"
    return None


def quantize_weights(model: ir.Model, names: Collection[str], *, exact: bool) -> dict[str, tuple[WeightQuant, ...]]:
    """Quantize the weights of each of the named nodes, in the order of ``Dynamic.weights``.

    Each weight is [directions · gates · H, K] with one scale for each row.
    """
    result: dict[str, tuple[WeightQuant, ...]] = {}
    for node in model.graph:
        cell = rule(node).int8
        if query.label(node) not in names or not isinstance(cell, Dynamic):
            continue
        arrays = [query.float_array(node.inputs[index]) for index in cell.weights]
        result[query.label(node)] = tuple(
            quantize_weight(array.reshape(-1, array.shape[-1]), 0, exact=exact) for array in arrays if array is not None
        )
    return result


def write_dynamic_lstm(node: ir.Node, quants: tuple[WeightQuant, ...], names: edit.Names) -> None:
    """Replace a float LSTM by the dynamic operator; outputs keep their names. The model must import :data:`DOMAIN`."""
    cell, graph, label = rule(node).int8, node.graph, query.label(node)
    if not isinstance(cell, Dynamic) or graph is None:
        raise ValueError(f"{label} has no dynamic operator")

    def constant(role: str, array: Array) -> ir.Value:
        return edit.add_constant(graph, names.fresh(f"{label}_{role}"), array)

    inputs = [*node.inputs, *[None] * (FLOAT_INPUTS - len(node.inputs))]
    directions = 2 if query.attribute(node, "direction", "forward") == "bidirectional" else 1
    for index, quant in zip(cell.weights, quants, strict=True):
        stacked = quant.values.reshape(directions, -1, quant.values.shape[-1]).transpose(0, 2, 1)
        scales = quant.scales.reshape(directions, -1)
        inputs[index] = constant(f"quantized_{index}", stacked)
        inputs.append(constant(f"scale_{index}", scales))
        inputs.append(constant(f"zero_point_{index}", np.zeros(scales.shape, np.int8)))
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]
    new = ir.Node(DOMAIN, cell.op, inputs, attributes, name=label, num_outputs=len(node.outputs))
    edit.replace_node(node, new)
