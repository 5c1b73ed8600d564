"""Quantizing small models in tests, and NumPy oracles for what the result must compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import small_models
from onnx.reference import ReferenceEvaluator

from toolchain.calibration.observation import ChannelStats, Observation, TensorStats
from toolchain.formats.recipe import Quantize
from toolchain.graph import query
from toolchain.quantization.plan import plan_quantization
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import select

BINS = 2048


def named(*args, **kwargs):
    """Make a model in which every node has a name: its own, or that of its first output."""
    model = small_models.model(*args, **kwargs)
    for node in model.graph:
        node.name = node.name or node.outputs[0].name
    return model


def observation(model, feeds, tensors):
    """Compute the engine's statistics by NumPy, on activations kept in memory."""
    runs = [small_models.every_value(ir.to_proto(model), feed) for feed in feeds]
    return Observation({n: _stats([r[n] for r in runs], axis) for n, axis in tensors.items()}, len(feeds), "", "")


def _stats(arrays, axis):
    flat = np.concatenate([a.ravel() for a in arrays]).astype(np.float64)
    low, high = flat.min(), flat.max()
    counts = np.zeros(BINS, np.int64)
    if high > low:
        counts += np.histogram(flat, BINS, (low, high))[0]
    else:
        counts[0] = flat.size
    channels = None
    if axis is not None:
        rows = np.concatenate([np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays], axis=1)
        wide = rows.astype(np.float64)
        channels = ChannelStats(wide.mean(axis=1), (wide**2).mean(axis=1), wide.min(axis=1), wide.max(axis=1))
    return TensorStats(float(low), float(high), flat.size, channels, counts)


def planned(model, feeds, *, keep_float=(), **recipe):
    """Plan `model`, calibrated on `feeds`."""
    selection = select(model, keep_float)
    return plan_quantization(model, selection, observation(model, feeds, selection.tensors), Quantize(**recipe))


def quantized(model, feeds, encoding="u8", **options):
    """Return the plan and the model written from it."""
    plan = planned(model, feeds, **options)
    return plan, apply_quantization(model, plan, encoding)


def reference(model, feed):
    """Run with onnx's reference implementation. It knows QDQ from opset 19 on, which changed only other types."""
    proto = ir.to_proto(model)
    proto.opset_import[0].version, proto.ir_version = 19, 9
    return small_models.reference(proto, feed)


def simulate(model, plan, feed):
    """Outputs by name in float64: the float graph node by node, rounding exactly where the plan says.

    Every int8 node reads its activations rounded to their grids and its weights as the plan's integers; what an int8
    node computes is rounded to its grid for every reader. Operators are onnx's reference implementations.
    """
    chosen = plan.int8_nodes()
    values = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feed.items()}

    def read(value, reader):
        constant = query.constant(value)
        if constant is not None:
            return constant.astype(np.float64) if constant.dtype.kind == "f" else constant
        producer = value.producer()
        rounded = reader in chosen or (producer is not None and producer.name in chosen)
        grid = plan.activations.get(value.name) if rounded else None
        return values[value.name] if grid is None else on_grid(values[value.name], grid)

    for node in model.graph:
        arrays = [None if value is None else read(value, node.name) for value in node.inputs]
        if (product := plan.products.get(node.name)) is not None:
            arrays[1] = dequantized(product.weight.values, product.weight.scales, product.weight.axis)
            if product.bias is not None:
                arrays[2:] = [product.bias * product.bias_scales.astype(np.float64)]
        for output, array in zip(node.outputs, _evaluate(node, arrays), strict=True):
            values[output.name] = array
    return {output.name: read(output, None) for output in model.graph.outputs}


def on_grid(array, grid):
    """Quantize and dequantize by ONNX's definition, in float64."""
    return (np.clip(np.rint(array / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point) * grid.scale


def dequantized(values, scales, axis):
    """Dequantize per channel, in float64."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return values.astype(np.float64) * scales.astype(np.float64).reshape(shape)


def _evaluate(node, arrays):
    proto = ir.to_proto(node)
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(arrays)]
    del proto.input[:]
    proto.input.extend(names)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), None)
            for n, a in zip(names, arrays, strict=True)
            if n
        ],
        [onnx.ValueInfoProto(name=name) for name in proto.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return ReferenceEvaluator(model).run(None, {n: a for n, a in zip(names, arrays, strict=True) if n})
