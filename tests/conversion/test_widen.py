"""Files that compute in 16-bit floats become float32 inside; the program around them stays as it is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from toolchain.conversion.source import convert
from toolchain.conversion.widen import widen
from toolchain.graph import check, io, query

HALF = np.float16
RNG = np.random.default_rng(0)
W, V = (RNG.standard_normal(shape).astype(HALF) / 4 for shape in ((8, 3, 3, 3), (4, 8, 3, 3)))
X = RNG.standard_normal((1, 3, 8, 8)).astype(HALF)
CONVS = "c = Conv(x, w) r = Relu(c) y = Conv(r, v)"
F16X, F16Y = "float16[1, 3, 8, 8] x", "float16[1, 4, 4, 4] y"

SOURCES = {
    "float16 throughout": (CONVS, F16X, F16Y, {"w": W, "v": V}),
    "float32 outside": (
        "h = Cast<to = 10>(x) c = Conv(h, w) r = Relu(c) z = Conv(r, v) y = Cast<to = 1>(z)",
        "float[1, 3, 8, 8] x",
        "float[1, 4, 4, 4] y",
        {"w": W, "v": V},
    ),
    "weights stored as float16": (
        "w32 = Cast<to = 1>(w) v32 = Cast<to = 1>(v) c = Conv(x, w32) r = Relu(c) y = Conv(r, v32)",
        "float[1, 3, 8, 8] x",
        "float[1, 4, 4, 4] y",
        {"w": W, "v": V},
    ),
    "a clip by float16 limits": (
        "c = Conv(x, w) r = Clip(c, lo, hi) y = Conv(r, v)",
        F16X,
        F16Y,
        {"w": W, "v": V, "lo": HALF(0), "hi": HALF(6)},
    ),
    "normalization and a float32 island": (
        "c = Conv(x, w) n = InstanceNormalization(c, s, b) f = Cast<to = 1>(n) e = Exp(f) h = Cast<to = 10>(e) "
        "y = Conv(h, v)",
        F16X,
        F16Y,
        {"w": W, "v": V, "s": np.ones(8, HALF), "b": np.zeros(8, HALF)},
    ),
    "an output read on": (
        "y = Conv(x, w) z = Relu(y)",
        F16X,
        "float16[1, 8, 6, 6] y, float16[1, 8, 6, 6] z",
        {"w": W},
    ),
    "an input that is an output": ("y = Relu(x)", F16X, f"float16[1, 3, 8, 8] y, {F16X}", {}),
    "an output listed twice": ("y = Conv(x, w)", F16X, "float16[1, 8, 6, 6] y, float16[1, 8, 6, 6] y", {"w": W}),
}


def constant_of_shape():
    """Constants as attributes: of ConstantOfShape and of Constant nodes."""
    fill = numpy_helper.from_array(np.array([2], HALF))
    model = small_models.proto("y = Mul(x, m)", F16X, "float16[1, 3, 8, 8] y", {"shape": np.array([8])})
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["f"], value=fill))
    model.graph.node.insert(1, helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(HALF(3))))
    model.graph.node.insert(2, helper.make_node("Add", ["f", "k"], ["m"]))
    return model


def branch():
    """A float16 constant and computation in the branch of an If."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(HALF(2), "two")
    branches = [
        helper.make_graph([helper.make_node(op, ["x", "two"], [out])], out, [], [value(out, 10, None)], [weight])
        for op, out in (("Mul", "t"), ("Sub", "e"))
    ]
    node = helper.make_node("If", ["b"], ["y"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", 10, [1, 3, 8, 8])],
        [value("y", 10, [1, 3, 8, 8])],
        [numpy_helper.from_array(np.array(True), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sources():
    for name, arguments in SOURCES.items():
        yield pytest.param(lambda arguments=arguments: small_models.proto(*arguments), id=name)
    yield pytest.param(constant_of_shape, id="constants as attributes")
    yield pytest.param(branch, id="a branch")


@pytest.mark.parametrize("make", sources())
def test_the_model_computes_in_float32_and_keeps_its_interface(tmp_path, make):
    source = make()
    onnx.save(source, tmp_path / "m.onnx")
    got = convert(tmp_path / "m.onnx")
    assert any("float16 became float32" in note for note in got.notes)
    assert got.parity.samples == 8
    before = ir.from_proto(source)
    for side in (io.inputs, io.outputs):
        assert [str(spec) for spec in side(got.model)] == [str(spec) for spec in side(before)]
    casts = {value for node in got.model.graph if node.op_type == "Cast" for value in node.outputs}
    for value in {*query.activations(got.model)} - casts - {*got.model.graph.inputs}:
        assert value.dtype != ir.DataType.FLOAT16, value.name
    assert not any(value.dtype == ir.DataType.FLOAT16 for value in got.model.graph.initializers.values())
    feed = {"x": X.astype(io.inputs(got.model)[0].dtype)}
    expected, found = small_models.plain(source, feed), small_models.plain(got.model, feed)
    for name, array in expected.items():  # float16 has 11 bits; a few roundings are in the source only
        np.testing.assert_allclose(found[name], array, rtol=2e-2, atol=2e-2, err_msg=name)


def test_a_widened_model_is_not_widened_again():
    model = ir.from_proto(small_models.proto(*SOURCES["float16 throughout"]))
    assert widen(model) == ("float16",)
    nodes = len(list(model.graph))
    assert widen(model) == ()
    assert len(list(model.graph)) == nodes


def test_a_float32_model_is_left_alone():
    model = small_models.model(
        CONVS, "float[1, 3, 8, 8] x", "float[1, 4, 4, 4] y", {"w": W.astype("f4"), "v": V.astype("f4")}
    )
    assert widen(model) == ()


def test_bfloat16_becomes_float32_outside_too(tmp_path):
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = helper.make_tensor(
        "w", TensorProto.BFLOAT16, [3, 4], weight.astype(ml_dtypes.bfloat16).tobytes(), raw=True
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.BFLOAT16, ["n", 3])],
        [value("y", TensorProto.BFLOAT16, ["n", 4])],
        [tensor],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    got = convert(tmp_path / "m.onnx")
    check.check(got.model)
    assert [str(spec) for spec in io.inputs(got.model)] == ["x: float32[n, 3]"]
    assert any(note.startswith("bfloat16 became float32") for note in got.notes)
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(small_models.plain(got.model, {"x": x})["y"], weight)


def test_an_old_opset_is_widened_and_upgraded(tmp_path):
    source = small_models.proto(CONVS + " s = Softmax(y)", F16X, "float16[1, 4, 4, 4] s", {"w": W, "v": V}, opset=11)
    onnx.save(source, tmp_path / "m.onnx")
    got = convert(tmp_path / "m.onnx")
    assert len(got.notes) == 2
    expected = small_models.plain(source, {"x": X})["s"]
    np.testing.assert_allclose(small_models.plain(got.model, {"x": X})["s"], expected, atol=2e-2)
