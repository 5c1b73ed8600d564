"""Other forms of a finished file: types, places of weights, order of nodes, what other programs write."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from zoo.net import session


def without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Outputs are declared without a shape."""
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def declared(*shape: str | int):
    """The first output is declared with this shape."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        first = model.graph.output[0]
        kind = first.type.tensor_type.elem_type
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(first.name, kind, shape))
        return model

    return change


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in half precision, inputs and outputs too."""
    return convert_float_to_float16(model, keep_io_types=False)


def to_float16_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision between a Cast at every input and output."""
    return convert_float_to_float16(model, keep_io_types=True)


def to_mixed_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Products in half precision, everything else in single."""
    others = sorted({node.op_type for node in model.graph.node} - {"Conv", "Gemm", "MatMul"})
    return convert_float_to_float16(model, keep_io_types=True, op_block_list=others)


def to_bfloat16_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights stored as bfloat16 and cast to single precision where they are read."""
    casts = []
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            array, name = numpy_helper.to_array(initializer), initializer.name
            initializer.CopyFrom(numpy_helper.from_array(array.astype(ml_dtypes.bfloat16), f"{name}_16"))
            casts.append(helper.make_node("Cast", [f"{name}_16"], [name], to=TensorProto.FLOAT))
    return _with_nodes(model, [*casts, *model.graph.node])


def weights_as_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer becomes a Constant node."""
    nodes = [helper.make_node("Constant", [], [i.name], value=i) for i in model.graph.initializer]
    del model.graph.initializer[:]
    return _with_nodes(model, [*nodes, *model.graph.node])


def weights_behind_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is read through an Identity node."""
    nodes = []
    for initializer in model.graph.initializer:
        nodes.append(helper.make_node("Identity", [f"{initializer.name}_kept"], [initializer.name]))
        initializer.name += "_kept"
    return _with_nodes(model, [*nodes, *model.graph.node])


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is listed as an input too, which could replace it."""
    model.graph.input.extend(
        helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer
    )
    return model


def unsorted_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes in reverse order."""
    return _with_nodes(model, list(model.graph.node)[::-1])


def sparse_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices become sparse initializers of their larger half."""
    dense = []
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.ndim != 2:
            dense.append(initializer)
            continue
        flat = np.where(np.abs(array) >= np.median(np.abs(array)), array, 0).ravel()
        places = np.flatnonzero(flat)
        values = numpy_helper.from_array(flat[places], initializer.name)
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), array.shape)
        model.graph.sparse_initializer.append(sparse)
    del model.graph.initializer[:]
    model.graph.initializer.extend(dense)
    return model


def without_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes and graph without names, no opset beside the standard one, no producer."""
    for node in model.graph.node:
        node.ClearField("name")
    model.graph.ClearField("name")
    model.ClearField("producer_name")
    return model


def names_with_odd_letters(model: onnx.ModelProto) -> onnx.ModelProto:
    """Values are called as some exporters do: with slashes, colons, spaces and letters that are not ASCII."""
    inner = {name for node in model.graph.node for name in node.output} - {o.name for o in model.graph.output}
    new = {name: f"größe/{name}:0 (x)" for name in inner}
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        node.name = f"/net/{node.op_type}:{node.output[0]}"
    return model


def first_output_twice(model: onnx.ModelProto) -> onnx.ModelProto:
    """The first output is listed a second time."""
    model.graph.output.append(model.graph.output[0])
    return model


def optimized_by_onnxruntime(level: ort.GraphOptimizationLevel):
    """Make the file that onnxruntime saves after its own optimizations."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path, settings = Path(folder) / "saved.onnx", ort.SessionOptions()
            settings.graph_optimization_level, settings.log_severity_level = level, 4
            settings.optimized_model_filepath = str(path)
            ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
            return onnx.load(path)

    return change


basic = optimized_by_onnxruntime(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
extended = optimized_by_onnxruntime(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


class _Random(CalibrationDataReader):
    """Four normal samples for every input."""

    def __init__(self, model: onnx.ModelProto) -> None:
        rng, inputs = np.random.default_rng(0), session(model).get_inputs()
        self.feeds = iter([{i.name: rng.standard_normal(i.shape).astype(np.float32) for i in inputs} for _ in range(4)])

    def get_next(self):
        return next(self.feeds, None)


def quantized(kind: QuantFormat):
    """Quantize the file with onnxruntime's own tool."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            source, path = Path(folder) / "source.onnx", Path(folder) / "quantized.onnx"
            onnx.save(model, source)
            quantize_static(source, path, _Random(model), quant_format=kind)
            return onnx.load(path)

    return change


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
