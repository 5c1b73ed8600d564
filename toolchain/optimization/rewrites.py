"""Clean-up passes of the toolchain itself: each changes a model in place, but not what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from toolchain.graph import edit, query, shapes
from toolchain.optimization import fold_affine


def drop_identities(model: ir.Model) -> None:
    """Remove ``Identity`` nodes, also in branches, except where a graph output needs a node of its own.

    An output needs one if its value is also an input, a constant or another output, or if a branch of an If or Loop
    returns a value of the graph around it. A branch may only return values that it computes itself, which onnx_ir's own
    pass ignores.
    """
    for node in list(model.graph.all_nodes()):
        source = node.inputs[0] if query.op(node) == "Identity" else None
        if source is None:
            continue
        output, producer = node.outputs[0], source.producer()
        inner = producer is not None and producer.graph is node.graph and not source.is_graph_output()
        if output.is_graph_output() and not inner:
            continue
        source.type, source.shape = source.type or output.type, source.shape or output.shape
        edit.bypass(node)


_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def drop_neutral_terms(model: ir.Model) -> None:
    """Remove ``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` where the second operand is one number and exactly that.

    A number that is only close to it stays: 1e-9 in front of a logarithm keeps silence finite. (onnxscript's rules take
    everything below 1e-8 for 0.) A constant with more axes than `x` stays too, because it adds axes to the result.
    """
    for node in list(model.graph):
        if query.op(node) not in _NEUTRAL:
            continue
        x, term = node.inputs
        if x is None or term is None or query.scalar(term) != _NEUTRAL[node.op_type]:
            continue
        axes, more = query.rank(x), query.rank(term)
        if more == 0 or (axes is not None and more is not None and more <= axes):
            x.type, x.shape = x.type or node.outputs[0].type, x.shape or node.outputs[0].shape
            edit.bypass(node)


def move_constants_second(model: ir.Model) -> None:
    """Make the constant of an ``Add`` or ``Mul`` its second input, where all later rules look for it."""
    for node in model.graph:
        if node.op_type not in ("Add", "Mul") or len(node.inputs) != 2:
            continue
        first, second = node.inputs
        if query.constant(first) is not None and query.constant(second) is None:
            edit.set_input(node, 0, second)
            edit.set_input(node, 1, first)


def read_known_sizes(model: ir.Model) -> None:
    """Replace the sizes that a ``Gather`` or ``Slice`` takes from a ``Shape`` by constants where they are known.

    Constant folding does so only if all sizes are known, so one dynamic batch would hide the width in every reshape.
    """
    for shape in [node for node in model.graph if node.op_type == "Shape" and node.inputs[0] is not None]:
        sizes = query.sizes(shape.inputs[0], dynamic=-1)
        if sizes is None:
            continue
        start, end = query.attribute(shape, "start", 0), query.attribute(shape, "end", len(sizes))
        window = np.array(sizes[start:end], np.int64)
        for reader in query.consumers(shape.outputs[0]):
            numbers = [query.constant(value) for value in reader.inputs[1:]]
            if any(number is None for number in numbers) or reader.inputs[0] is not shape.outputs[0]:
                continue
            if reader.op_type == "Gather":
                taken = window[numbers[0]]
            elif reader.op_type == "Slice" and len(numbers) < 4:
                taken = window[int(numbers[0].item()) : int(numbers[1].item())]  # type: ignore[union-attr]
            else:
                continue
            if taken.size and (taken >= 0).all() and not reader.outputs[0].is_graph_output():
                names = edit.Names(model.graph)
                known = edit.add_constant(model.graph, names.fresh(f"{reader.outputs[0].name}_known"), taken)
                reader.outputs[0].replace_all_uses_with(known)
    edit.remove_unused(model)


def spatial_mean_to_pool(model: ir.Model) -> None:
    """Replace ``ReduceMean`` over all spatial axes by ``GlobalAveragePool``, and a ``Flatten`` if it keeps no axes.

    Both compute the same; the pool has an int8 kernel, the reduction has none. A mean that is a step of a normalization
    stays, because onnxruntime recognizes a normalization by its ``ReduceMean``.
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "ReduceMean" and node.inputs else None
        rank = query.rank(source) if source is not None else None
        if source is None or rank not in (3, 4, 5) or not query.is_float(source) or _is_statistic(node, source):
            continue
        axes = query.ints(node.inputs[1]) if len(node.inputs) > 1 else query.attribute(node, "axes")
        if axes is None or sorted(a % rank for a in axes) != list(range(2, rank)):
            continue
        name = query.label(node)
        if query.attribute(node, "keepdims", 1):
            edit.replace_node(node, ir.node("GlobalAveragePool", [source], name=name))
            continue
        pool = ir.node("GlobalAveragePool", [source], name=names.fresh(f"{name}_pool"))
        pool.outputs[0].name = names.fresh(f"{node.outputs[0].name}_pool")
        pool.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        pool.outputs[0].shape = ir.Shape([*list(source.shape or ())[:2], *[1] * (rank - 2)])
        model.graph.insert_before(node, pool)
        edit.replace_node(node, ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=name))


def _is_statistic(mean: ir.Node, source: ir.Value) -> bool:
    """True for a mean of squares, and for a mean that is subtracted from the values it was taken of."""
    producer = source.producer()
    if producer is not None and query.op(producer) == "Pow" and query.scalar(producer.inputs[1]) == 2:
        return True
    if producer is not None and query.op(producer) == "Mul" and producer.inputs[0] is producer.inputs[1]:
        return True
    readers = query.consumers(mean.outputs[0])
    return any(query.op(reader) == "Sub" and source in reader.inputs for reader in readers)


def write_out_pads(model: ir.Model) -> None:
    """Replace ``auto_pad`` of convolutions and pools by the pads that it means, where the sizes are known.

    Nodes with ``ceil_mode`` are left: `auto_pad` says how many results there are, pads with `ceil_mode` say otherwise.
    """
    for node in model.graph:
        mode = query.attribute(node, "auto_pad", "NOTSET")
        if query.op(node) not in ("Conv", "MaxPool", "AveragePool", "LpPool") or query.attribute(node, "ceil_mode"):
            continue
        spatial = (query.sizes(node.inputs[0], dynamic=0) or ())[2:]
        if mode == "NOTSET" or not spatial or (mode != "VALID" and 0 in spatial):
            continue
        _, _, before, behind = query.window(node, spatial)
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", [*before, *behind])


def batchnorm_to_depthwise(model: ir.Model) -> None:
    """Replace a batch normalization that could not be folded by a depthwise 1x1 convolution.

    y = γ (x - μ) / sqrt(σ² + ε) + β is one multiplication and one addition per channel. A convolution keeps the blocked
    layout of its neighbours and has an int8 kernel; BatchNormalization has neither.
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        rank = query.rank(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        affine = fold_affine.batchnorm_factors(node) if node.op_type == "BatchNormalization" else None
        if affine is None or rank not in (3, 4, 5):
            continue
        scale, shift = affine
        name = query.label(node)
        weight = scale.reshape(-1, *[1] * (rank - 1))
        node_inputs = [
            node.inputs[0],
            edit.add_constant(model.graph, names.fresh(f"{name}_weight"), weight),
            edit.add_constant(model.graph, names.fresh(f"{name}_bias"), shift),
        ]
        conv = ir.node("Conv", node_inputs, {"group": len(scale), "kernel_shape": [1] * (rank - 2)}, name=name)
        edit.replace_node(node, conv)


def merge_clips(model: ir.Model) -> None:
    """Merge a ``Relu`` or ``Clip`` with the one before it.

    Both are monotone, so the limits of the result are those of the first, limited by the second:
    c₂(c₁(x)) = clip(x, c₂(low₁), c₂(high₁)).
    """
    names = edit.Names(model.graph)
    for node in list(model.graph):
        source = node.inputs[0] if query.op(node) in ("Relu", "Clip") else None
        first = source.producer() if source is not None and query.sole_consumer(source) is node else None
        if first is None or query.op(first) not in ("Relu", "Clip") or not query.is_float(source):
            continue
        (low, high), (lower, upper) = _limits(first), _limits(node)
        if low is None or high is None or lower is None or upper is None:
            continue
        low, high = (min(max(limit, lower), upper) for limit in (low, high))
        name = query.label(node)
        if (low, high) == (0.0, np.inf):
            edit.replace_node(node, ir.node("Relu", [first.inputs[0]], name=name))
            continue
        ends = [
            None if np.isinf(limit) else edit.add_constant(model.graph, names.fresh(f"{name}_{end}"), np.float32(limit))  # type: ignore[arg-type]
            for end, limit in (("low", low), ("high", high))
        ]
        edit.replace_node(node, ir.node("Clip", [first.inputs[0], *ends], name=name))
    edit.remove_unused(model)


def _limits(node: ir.Node) -> tuple[float | None, float | None]:
    """The limits of a Relu or Clip: infinite where there is none, None where it is computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = (query.optional_input(node, index) for index in (1, 2))
    return -np.inf if low is None else query.scalar(low), np.inf if high is None else query.scalar(high)


def move_relu_before_pool(model: ir.Model) -> None:
    """Replace ``Relu(MaxPool(x))`` by the equal ``MaxPool(Relu(x))``, so that the product before it absorbs the Relu.

    The same is done with a ``Slice``, which follows the padded convolutions of causal networks.
    """
    names = edit.Names(model.graph)
    for node in [node for node in model.graph if node.op_type == "Relu"]:
        first = node
        while (pool := _sole_pool(first)) is not None:
            first = pool
        source = first.inputs[0]
        if first is node or source is None:
            continue
        relu = ir.node("Relu", [source], name=names.fresh(f"{query.label(node)}_early"))
        relu.outputs[0].name = names.fresh(f"{source.name}_relu")
        relu.outputs[0].type, relu.outputs[0].shape = source.type, source.shape
        model.graph.insert_before(first, relu)
        first.replace_input_with(0, relu.outputs[0])
        edit.bypass(node)


def _sole_pool(node: ir.Node) -> ir.Node | None:
    """The MaxPool or Slice whose only reader is `node`."""
    value = node.inputs[0]
    pool = value.producer() if value is not None and query.sole_consumer(value) is node else None
    return pool if pool is not None and query.op(pool) in ("MaxPool", "Slice") and len(pool.outputs) == 1 else None


def infer_shapes_anew(model: ir.Model) -> None:
    """Infer the shapes of all computed values again, so that none remains from before a change."""
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    shapes.infer_shapes(model)


def name_everything(model: ir.Model) -> None:
    """Give every node and value a name that is unique in the graph; existing names are kept."""
    common.NameFixPass()(model)
    names = edit.Names(model.graph)
    seen: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or f"{node.op_type}_{node.outputs[0].name}")
        seen.add(node.name)
