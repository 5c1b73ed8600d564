"""Rounding switches: one model in which the rounding of every tensor can be switched on alone, with any grid.

Behind each tensor stands ``If(on) { DequantizeLinear(QuantizeLinear(x)) } else { x }``; the switch, the scale and the
zero point are inputs. So one session measures the effect of every tensor's rounding on the outputs, instead of
hundreds of sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.data.tensors import Feed
from toolchain.graph import check, edit, query
from toolchain.quantization.ranges import Affine


def add_rounding_switches(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Clone the float model and insert a switch behind each of the tensors `names`.

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
    check.check(result)
    return result


def switch_feed(names: Sequence[str], on: Mapping[str, Affine]) -> Feed:
    """Make the inputs that switch rounding on for the tensors in `on`, with their grids, and off for all others."""
    feed: Feed = {}
    for number, name in enumerate(names):
        grid = on.get(name, Affine(1.0, 0))
        feed[_port("on", number)] = np.array(name in on)
        feed[_port("scale", number)] = np.array(grid.scale, np.float32)
        feed[_port("zero_point", number)] = np.array(grid.zero_point, np.uint8)
    return feed


def _port(what: str, number: int) -> str:
    return f"switch_{number}_{what}"


def _switch(graph: ir.Graph, value: ir.Value, number: int, taken: edit.Names) -> ir.Node:
    kinds = {"on": ir.DataType.BOOL, "scale": ir.DataType.FLOAT, "zero_point": ir.DataType.UINT8}
    ports = [
        ir.Value(name=_port(what, number), type=ir.TensorType(dtype), shape=ir.Shape([]))
        for what, dtype in kinds.items()
    ]
    graph.inputs.extend(ports)
    on, scale, zero = ports
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
