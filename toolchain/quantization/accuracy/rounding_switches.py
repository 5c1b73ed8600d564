"""Rounding switches: one model in which the rounding of every tensor can be switched on alone, with any grid.

After each tensor, ``If(on) { DequantizeLinear(QuantizeLinear(x)) } else { x }`` is inserted; the switch, the scale and
the zero point are inputs of the model. In another model, the weights are inputs. So two sessions, instead of hundreds,
measure the effect of every rounding on the outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Feed
from toolchain.graph import check, edit, query
from toolchain.quantization.plan import constant_weight
from toolchain.quantization.ranges import Affine
from toolchain.quantization.weights import WeightQuant


def add_rounding_switches(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Clone the float model and insert a switch after each of the tensors `names`.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    graph = result.graph
    values = {str(value.name): value for value in query.activations(result)}
    taken = edit.Names(graph)
    for number, name in enumerate(names):
        value = values[name]
        readers = query.consumers(value)
        node = _switch(graph, value, number, taken)
        producer = value.producer()
        if producer is None:
            graph.insert_before(next(iter(graph)), [node])
        else:
            graph.insert_after(producer, [node])
        edit.redirect(value, node.outputs[0], readers)
        if value.is_graph_output() and producer is not None:
            edit.take_over_output(graph, value, node.outputs[0], taken.fresh(f"{name}_unrounded"))
    check.check(result)
    return result


def switch_feed(names: Sequence[str], on: Mapping[str, Affine]) -> Feed:
    """Make the inputs that switch rounding on for the tensors in `on`, with their grids, and off for all others."""
    feed: Feed = {}
    for number, name in enumerate(names):
        grid = on.get(name, Affine(1.0, 0))
        feed[_input_name("on", number)] = np.array(name in on)
        feed[_input_name("scale", number)] = np.array(grid.scale, np.float32)
        feed[_input_name("zero_point", number)] = np.array(grid.zero_point, np.uint8)
    return feed


def make_weights_inputs(model: ir.Model, products: Collection[str]) -> ir.Model:
    """Clone the float model and make the weights of the named products inputs of the model.

    Raises:
        ModelError: the result is not a well-formed graph.
    """
    result = model.clone()
    for node in result.graph:
        name, weight = query.label(node), node.inputs[1] if len(node.inputs) > 1 else None
        if name in products and weight is not None:
            entering = ir.Value(name=_weight_name(name), type=weight.type, shape=weight.shape)
            result.graph.inputs.append(entering)
            edit.set_input(node, 1, entering)
    edit.remove_unused(result)
    check.check(result)
    return result


def weight_feed(model: ir.Model, rounded: Mapping[str, WeightQuant | None]) -> Feed:
    """Make the inputs of :func:`make_weights_inputs`: rounded weights by product, None for those of the float model."""
    return {
        _weight_name(name): constant_weight(node) if quant is None else quant.dequantized()
        for node in model.graph
        if (name := query.label(node)) in rounded
        for quant in [rounded[name]]
    }


def _weight_name(product: str) -> str:
    return f"{product}_weight_input"


def _input_name(role: str, number: int) -> str:
    return f"switch_{number}_{role}"


def _switch(graph: ir.Graph, value: ir.Value, number: int, taken: edit.Names) -> ir.Node:
    dtypes = {"on": ir.DataType.BOOL, "scale": ir.DataType.FLOAT, "zero_point": ir.DataType.UINT8}
    on, scale, zero = inputs = [
        ir.Value(name=_input_name(role, number), type=ir.TensorType(dtype), shape=ir.Shape([]))
        for role, dtype in dtypes.items()
    ]
    graph.inputs.extend(inputs)
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=taken.fresh(f"switch_{number}_quantize"))
    quantize.outputs[0].name = taken.fresh(f"switch_{number}_integers")
    rounded = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero], name=taken.fresh(f"switch_{number}_dequantize")
    )
    same = ir.node("Identity", [value], name=taken.fresh(f"switch_{number}_identity"))
    for node, name in ((rounded, "rounded"), (same, "same")):
        node.outputs[0].name = taken.fresh(f"switch_{number}_{name}")
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    branches = {
        "then_branch": ir.Graph([], rounded.outputs, nodes=[quantize, rounded], name=f"switch_{number}_then"),
        "else_branch": ir.Graph([], same.outputs, nodes=[same], name=f"switch_{number}_else"),
    }
    node = ir.node("If", [on], branches, name=taken.fresh(f"switch_{number}"))
    node.outputs[0].name = taken.fresh(f"switch_{number}_out")
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node
