"""Files that onnxruntime's own optimizer wrote: its operators become standard ones, with the same results."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_models
from decomposed import WIDTH, Parts, kernels
from onnx import TensorProto, helper, numpy_helper

from toolchain.conversion.expand_fused import expand_fused
from toolchain.conversion.source import convert
from toolchain.optimization.passes import optimize
from toolchain.quantization.selection import select

RNG = np.random.default_rng(3)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def fused(op, inputs, shape, opset=17, domain="com.microsoft", outputs=1, **attributes):
    """A model of one operator that reads ``x`` of this shape and constants; a None is an input that is left off."""
    constants = {f"k{i}": value for i, value in enumerate(inputs) if value is not None}
    read = ["x", *(f"k{i}" if value is not None else "" for i, value in enumerate(inputs))]
    names = ["y", "", "", "total"][:outputs]
    node = helper.make_node(op, read, names, "fused", domain=domain, **attributes)
    tail = helper.make_node("Neg", ["y"], ["z"], "tail")
    info = helper.make_tensor_value_info
    ends = [info("z", TensorProto.FLOAT, None), *(info(n, TensorProto.FLOAT, None) for n in names[1:] if n)]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node, tail], "fused", [info("x", TensorProto.FLOAT, shape)], ends, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


IMAGE, ROWS = [2, 3, 6, 6], [2, 5, 4]
CONV = [array(4, 3, 3, 3), array(4)]
OPERATORS = {
    "conv": fused("FusedConv", CONV, IMAGE, activation="Relu", pads=[1, 0, 1, 0], kernel_shape=[3, 3]),
    "conv without activation": fused("FusedConv", CONV[:1], IMAGE, strides=[2, 2]),
    "conv and sum": fused("FusedConv", [*CONV, array(2, 4, 4, 4)], IMAGE, activation="Relu"),
    "sum without bias": fused("FusedConv", [CONV[0], None, array(2, 4, 4, 4)], IMAGE, activation="Tanh"),
    "conv and leaky relu": fused("FusedConv", CONV, IMAGE, activation="LeakyRelu", activation_params=[0.2]),
    "conv and clip": fused("FusedConv", CONV, IMAGE, activation="Clip", activation_params=[0.0, 0.5]),
    "conv and hard sigmoid": fused("FusedConv", CONV, IMAGE, activation="HardSigmoid", activation_params=[0.3, 0.4]),
    "gemm": fused("FusedGemm", [array(4, 3), array(3)], [5, 4], activation="Relu", alpha=0.5),
    "gemm and leaky relu": fused(
        "FusedGemm", [array(3, 4), array(3)], [5, 4], activation="LeakyRelu", activation_alpha=0.1, transB=1
    ),
    "matmul": fused("FusedMatMul", [array(3, 4)], ROWS, transB=1, alpha=0.25),
    "matmul, first operand transposed": fused("FusedMatMul", [array(2, 5, 3)], ROWS, transA=1),
    "bias gelu": fused("BiasGelu", [array(4)], ROWS),
    "gelu": fused("Gelu", [], ROWS),
    "fast gelu": fused("FastGelu", [array(4)], ROWS),
    "fast gelu without bias": fused("FastGelu", [], ROWS),
    "quick gelu": fused("QuickGelu", [], ROWS),
    "silu": fused("QuickGelu", [], ROWS, alpha=1.0),
    "skip": fused("SkipLayerNormalization", [array(2, 5, 4), array(4), array(4), array(4)], ROWS, epsilon=0.1),
    "skip, the sum is read": fused("SkipLayerNormalization", [array(2, 5, 4), array(4)], ROWS, outputs=4, epsilon=0.1),
    "simplified skip": fused("SkipSimplifiedLayerNormalization", [array(2, 5, 4), array(4), array(4)], ROWS),
    "simplified": fused("SimplifiedLayerNormalization", [array(4)], ROWS, domain="", axis=-1, epsilon=0.1),
    "normalization of an old file": fused(
        "LayerNormalization", [array(4), array(4)], ROWS, opset=13, domain="", axis=2, epsilon=0.1
    ),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_an_operator_becomes_standard_ones_with_the_same_results(case):
    before = OPERATORS[case]
    after = ir.from_proto(before)
    assert expand_fused(after) == 1
    assert not any(node.domain for node in after.graph)
    onnx.checker.check_model(ir.to_proto(after))
    shape = [dim.dim_value for dim in before.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": array(*shape)}
    expected, found = small_models.plain(before, feed), small_models.plain(after, feed)
    assert list(found) == list(expected)
    for name, value in expected.items():
        # onnxruntime's Gelu operators use approximations of erf and tanh with errors near 1e-6.
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        fused("FusedMatMul", [array(5, 2, 3)], ROWS, transBatchA=1),
        fused("LayerNormalization", [array(4)], ROWS, domain=""),
    ],
    ids=["batch axes exchanged", "a standard operator"],
)
def test_other_operators_are_left(model):
    after = ir.from_proto(model)
    before = small_models.ops(after)
    assert expand_fused(after) == 0
    assert small_models.ops(after) == before


def written_by_onnxruntime(proto, path):
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(path)
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    ("norm", "activation", "form", "operator"),
    [
        ("layer_norm", "gelu", "block_normalized_last", "SkipLayerNormalization"),
        ("rms_norm", "silu", "block", "SimplifiedLayerNormalization"),
        ("layer_norm", "gelu_by_tanh", "block", "FastGelu"),
    ],
)
def test_a_transformer_that_onnxruntime_saved_gets_int8_products(norm, activation, form, operator, opset, tmp_path):
    parts = Parts(opset)
    value = getattr(parts, form)("x", getattr(parts, norm), getattr(parts, activation))
    path = tmp_path / "saved.onnx"
    assert operator in written_by_onnxruntime(parts.model(value, ["N", "S", WIDTH]), path)
    converted = convert(path)
    assert any("only onnxruntime has" in note for note in converted.notes)
    model = optimize(converted.model).model
    chosen = select(model).choices
    assert sum(choice.int8 for choice in chosen if choice.op in ("MatMul", "Gemm")) == 6
    assert len(kernels(model)) <= len(kernels(path))
    feed = {"x": array(2, 5, WIDTH)}
    expected = small_models.plain(onnx.load(path), feed)["y"]
    np.testing.assert_allclose(small_models.plain(model, feed)["y"], expected, rtol=1e-4, atol=1e-4)
