"""Small float models written as ONNX text, and ways to run them that share nothing with the package."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

BATCH_NORM = {
    "gamma": np.array([1.5, -2.0], np.float32),
    "beta": np.array([0.5, -1.0], np.float32),
    "mu": np.array([0.25, 3.0], np.float32),
    "var": np.array([0.5, 4.0], np.float32),
}
"""Parameters of a BatchNormalization with two channels."""


def proto(body, inputs, outputs, constants=None, *, opset=17, ir_version=8):
    """An onnx model: `body` is nodes as text, `constants` become initializers."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(f"{head} tiny ({inputs}) => ({outputs}) {{ {body} }}")
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def model(*args, **kwargs):
    """The model of :func:`proto` as an ``onnx_ir`` model, with every shape inferred."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto(*args, **kwargs), strict_mode=True))


def weights(seed=0, **shapes):
    """Normal float32 constants by name and shape."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def plain(model, feed, *, fused=False):
    """Outputs by name, as onnxruntime computes them node by node (or with its fusions)."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    engine = ort.InferenceSession(_bytes(model), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(None, feed), strict=True))


def reference(model, feed):
    """Outputs by name, as onnx's own reference implementation in NumPy computes them."""
    model = onnx.load_model_from_string(_bytes(model))
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, feed), strict=True))


def every_value(source, feed):
    """The array of every fed and computed value by name, as onnxruntime computes them node by node."""
    copy = onnx.load_model_from_string(_bytes(source))
    computed = [name for node in copy.graph.node for name in node.output if name]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    return {**feed, **plain(copy, feed)}


def ops(model):
    """Operator types in graph order."""
    return [node.op_type for node in model.graph]


def assert_same_results(before, after, feed):
    """Compare two models in onnxruntime and in onnx's reference."""
    for how in (plain, reference):
        expected, found = how(before, feed), how(after, feed)
        assert list(found) == list(expected), "output names and their order"
        for name, array in expected.items():
            # Changes to a graph reorder sums of at most a few dozen float32 terms of size about 1.
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name} by {how.__name__}")


def _bytes(model):
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    return model if isinstance(model, bytes) else model.SerializeToString()
