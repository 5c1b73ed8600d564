"""``Upsample`` (opsets 7 to 9) and ``Resize`` of opset 10 as the ``Resize`` of opset 11 that computes the same.

Before opset 11 an output at position i lies at i / scale in the input. Nearest neighbour takes the element before that
position, in onnxruntime the one behind it on an axis that becomes smaller. From opset 11 on, attributes say so, and
their defaults are others: half_pixel and round_prefer_floor. onnx's converter leaves the attributes out
(onnx#3326).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph import edit, query

SCALES = 2
"""Position of the scales among the inputs of Resize since opset 11."""


def restore_meaning(model: ir.Model) -> None:
    """Give every Resize of a model that was upgraded from below opset 11 the attributes of its old meaning."""
    for graph in model.graphs():
        names = edit.Names(graph)
        for node in [node for node in graph if query.op(node) == "Resize"]:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            if query.attribute(node, "mode", "nearest") == "nearest":
                _round_as_before(graph, names, node)


def _round_as_before(graph: ir.Graph, names: edit.Names, node: ir.Node) -> None:
    """Set the rounding; where some axes grow and others shrink, a second Resize in front does the shrinking."""
    scales = query.float_array(query.optional_input(node, SCALES))
    shrinks = scales is not None and bool((scales < 1).any())
    grows = scales is None or bool((scales > 1).any())
    if scales is not None and shrinks and grows:
        smaller = ir.node("Resize", [node.inputs[0], None, None], dict(node.attributes.items()))
        graph.insert_before(node, smaller)
        smaller.outputs[0].name = names.fresh(f"{query.label(node)}_smaller")
        smaller.outputs[0].type = node.outputs[0].type
        edit.set_constant(graph, names, smaller, SCALES, f"{query.label(node)}_shrink", np.minimum(scales, 1))
        edit.set_constant(graph, names, node, SCALES, f"{query.label(node)}_grow", np.maximum(scales, 1))
        edit.set_input(node, 0, smaller.outputs[0])
        smaller.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil")
        shrinks = False
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")
