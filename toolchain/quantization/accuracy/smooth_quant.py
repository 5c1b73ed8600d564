"""SmoothQuant: equalization where no producer can include the factor 1/s, by inserting a multiplication.

In transformers, products read the results of LayerNormalization and Gelu, where some channels are ten times as large as
the others in every sample. A factor cannot pass through either operator. So the tensor is multiplied by 1/s in front of
the products, and their weights by s:

    z = V y    is    z = V' (y / s),   V'_:c = V_:c s_c

(Xiao et al., 2022, "SmoothQuant", arXiv:2211.10438; s is chosen as in `cross_layer_equalization`.) A LayerNormalization
that only such products read includes 1/s in its own scale and bias, and nothing is inserted. Only tensors that float
operators compute are changed: between int8 operators a float multiplication would cost more than it gains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.graph import check, edit, query
from toolchain.quantization.accuracy.cross_layer_equalization import rescale, scale_consumers
from toolchain.quantization.accuracy.scale_groups import ScaleGroup, read_alike, scalable_product

MIN_NORMALIZED_SHARE = 1 / 32
"""Smallest range that is assumed for a channel, as a share of its tensor's range. It is lower than for other tensors,
because in a normalization the same channels are large in every sample, and their sizes are well known."""


def smooth_quant_groups(model: ir.Model, int8_nodes: Collection[str]) -> list[ScaleGroup]:
    """Make one group for each float tensor that int8 matrix products read.

    Args:
        model: the float model.
        int8_nodes: names of the nodes that compute in int8.
    """
    groups = []
    for node in model.graph:
        if query.label(node) in int8_nodes:
            continue
        for value in node.outputs:
            readers = [n for n in query.consumers(value) if query.label(n) in int8_nodes]
            matrices = [n for n in readers if n.op_type in ("Gemm", "MatMul") and scalable_product(n)]
            shape = query.sizes(value, dynamic=0)
            if not matrices or len(matrices) < len(readers) or not shape or shape[-1] == 0:
                continue
            if not all(read_alike(n, matrices) for n in matrices):
                continue
            names = tuple(sorted(query.label(n) for n in matrices))
            axis, channels = len(shape) - 1, shape[-1]
            members = {str(value.name): np.arange(channels)}
            groups.append(ScaleGroup(members, axis, channels, (), names, min_share=MIN_NORMALIZED_SHARE))
    return groups


def apply_smooth_quant(model: ir.Model, scales: Mapping[ScaleGroup, F64]) -> ir.Model:
    """Clone the float model, divide the tensors by their scales, and multiply the weights that read them by the scales.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    values = {str(value.name): value for value in query.activations(result)}
    nodes = {query.label(node): node for node in result.graph}
    names = edit.Names(result.graph)
    for group, s in scales.items():
        value = values[group.tensors[0]]
        readers = [nodes[name] for name in group.consumers]
        scale_consumers(readers, group, s, names)
        if not _into_normalization(value, readers, s, names):
            _insert_division(value, readers, s, names)
    edit.remove_unused(result)
    check.check(result)
    return result


def _into_normalization(value: ir.Value, readers: Collection[ir.Node], s: F64, names: edit.Names) -> bool:
    """Divide the scale and bias of the LayerNormalization that computes `value`; False where that is not possible."""
    node = value.producer()
    if node is None or node.op_type != "LayerNormalization" or value.is_graph_output():
        return False
    if set(query.consumers(value)) != set(readers) or len([v for v in node.outputs if v.name and v.uses()]) > 1:
        return False
    parameters = [index for index in (1, 2) if len(node.inputs) > index and node.inputs[index] is not None]
    if any((array := query.float_array(node.inputs[i])) is None or array.shape != s.shape for i in parameters):
        return False
    for index in parameters:
        rescale(node, index, 1 / s, names)
    return True


def _insert_division(value: ir.Value, readers: Collection[ir.Node], s: F64, names: edit.Names) -> None:
    producer = value.producer()
    if producer is None or producer.graph is None:
        raise ValueError(f"{value.name} is not computed")
    name = names.fresh(f"{value.name}_migrated")
    factors = edit.add_constant(producer.graph, names.fresh(f"{name}_factors"), (1 / s).astype(np.float32))
    node = ir.node("Mul", [value, factors], name=name)
    divided = node.outputs[0]
    divided.name, divided.type, divided.shape = names.fresh(f"{name}_out"), value.type, value.shape
    producer.graph.insert_after(producer, [node])
    edit.redirect(value, divided, readers)
