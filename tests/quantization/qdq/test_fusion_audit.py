"""The audit distinguishes integer kernels from float kernels between conversions, on handwritten graphs and ours."""

import numpy as np
import onnx
import pytest
import qdq_models
import quantize_by_hand as by_hand
import small_models

from toolchain.quantization.qdq.fusion_audit import Audit, audit, optimized_graph, original_name

SCALES = {
    "xs": np.float32(0.05), "xz": np.uint8(128), "ys": np.float32(0.1), "yz": np.uint8(100),
    "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8),
    "wq": np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1),
}  # fmt: skip
WEIGHT = "[weight] wd = DequantizeLinear<axis = 0>(wq, ws, wz)"
INPUT = "q = QuantizeLinear(x, xs, xz) d = DequantizeLinear(q, xs, xz)"
OUTPUT = "yq = QuantizeLinear(c, ys, yz) y = DequantizeLinear(yq, ys, yz)"
IMAGE = "float[1, 4, 5, 5] x"


def audited(body, planned, inputs=IMAGE, **extra):
    model = small_models.model(body, inputs, "float[1, 4, 5, 5] y", {**SCALES, **extra})
    return audit(optimized_graph(model), planned)


def test_what_fuses_is_clean():
    found = audited(f"{INPUT} {WEIGHT} [conv] c = Conv(d, wd) {OUTPUT}", {"conv"})
    assert found.clean
    assert found.boundaries == 2, "in and out"
    assert "com.microsoft::QLinearConv" in found.operators or "QLinearConv" in found.operators
    assert "Conv" not in found.operators


def test_a_convolution_whose_result_stays_float_does_not_fuse():
    found = audited(f"{INPUT} {WEIGHT} [conv] y = Conv(d, wd)", {"conv"})
    assert not found.clean
    assert found.unfused == ("conv",)
    assert found.weights == ("weight",), "dequantized again at every run"
    assert found.operators["Conv"] == 1
    assert found.boundaries == 2


def test_a_weight_on_a_path_that_is_not_constant_does_not_fuse():
    """A per-channel mask that is fed at run time would do the same."""
    body = f"{INPUT} {WEIGHT} m = Mul(wd, mask) [conv] c = Conv(d, m) {OUTPUT}"
    found = audited(body, {"conv"}, IMAGE + ", float[4, 1, 1, 1] mask")
    assert found.unfused == ("conv",)
    assert found.weights == ("weight",)


def test_an_operator_without_a_kernel_is_named():
    found = audited(f"{INPUT} [tanh] c = Tanh(d) {OUTPUT}", {"tanh"})
    assert found.unfused == ("tanh",)
    assert found.weights == ()
    assert found.boundaries == 4
    assert not found.clean


STACK = "[w_weight] wd = DequantizeLinear<axis = 1>(wq, ws, wz) [w] m = MatMul(d, wd) y = Add(m, b)"


def test_a_product_fused_with_its_sum_is_found_as_unfused():
    """onnxruntime makes a float Gemm of it where all sizes are known."""
    constants = {"wq": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "b": np.ones(4, np.float32)}
    for shape, unfused in (("1, 5, 4", ("w",)), ("N, 5, 4", ())):
        model = small_models.model(
            f"{INPUT} {STACK}", f"float[{shape}] x", f"float[{shape}] y", {**SCALES, **constants}
        )
        found = audit(optimized_graph(model), {"w"})
        assert found.unfused == unfused
        assert found.clean == (not unfused)


def test_a_product_under_another_name_is_known_by_its_weight():
    found = audited(f"{INPUT} {WEIGHT.replace('[weight]', '[conv_weight]')} [other] y = Conv(d, wd)", {"conv"})
    assert found.unfused == ("conv",)


def test_what_was_planned_float_is_no_fault():
    found = audited(f"{INPUT} [tanh] c = Tanh(d) {OUTPUT}", set())
    assert found.clean
    assert found.boundaries == 4


def test_a_float_model_has_no_boundaries():
    found = audited("[r] y = Relu(x)", set())
    assert found == Audit((), (), 0, {"Relu": 1})


def test_a_file_is_audited_like_a_model(tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    graph = optimized_graph(path)
    assert isinstance(graph, onnx.GraphProto)
    found = audit(graph, set())
    assert found.clean
    assert found.boundaries == 2
    assert not [op for op in found.operators if op in ("Conv", "Add", "Relu")]


def test_session_options_reach_the_audit(tmp_path):
    """With its QDQ fusions switched off, onnxruntime fuses nothing."""
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    found = audit(optimized_graph(path, {"session.disable_quant_qdq": "1"}), set())
    assert not [op for op in found.operators if "QLinear" in op]
    assert found.boundaries == 8, "four pairs"


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("conv", "conv"),
        ("conv_nchwc", "conv"),
        ("conv_token_12", "conv"),
        ("conv_nhwc_token_3", "conv"),
        ("conv/duplicated", "conv"),
        ("conv/fuse_relu", "conv"),
        ("matmul/MatMulAddFusion", "matmul"),
        ("matmul/MatMulAddFusion_2", "matmul"),
        ("my_token_ring", "my_token_ring"),
        ("conv_1", "conv_1"),
        ("", ""),
    ],
)
def test_suffixes_of_the_runtime_are_removed(name, original):
    assert original_name(name) == original


def test_our_own_plans_are_clean_on_unsigned_activations():
    """A network with every operator that has an int8 cell in the table."""
    body = """c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) d = Conv<group = 4>(r, k)
    p = MaxPool<kernel_shape = [2, 2]>(d) e = Conv(p, v)
    l = LeakyRelu(e) s = Sigmoid(e) m = Mul(l, s) a = Add(m, p) t = Concat<axis = 1>(a, m)
    o = AveragePool<kernel_shape = [2, 2]>(t) g = GlobalAveragePool(o) f = Flatten(g) y = Gemm(f, u)"""
    constants = small_models.weights(w=(4, 4, 3, 3), k=(4, 1, 1, 1), v=(4, 4, 1, 1), u=(8, 3))
    model = by_hand.named(body, IMAGE, "y", constants)
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 4, 5, 5)).astype(np.float32)} for i in range(3)]
    plan, written = by_hand.quantized(model, feeds)
    assert plan.int8_nodes() == {node.name for node in model.graph}
    found = audit(optimized_graph(written), plan.int8_nodes())
    assert found.clean, found
    assert found.boundaries == 1, "only the input: the last product leaves its result float"
