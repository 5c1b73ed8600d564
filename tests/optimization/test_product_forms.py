"""Products of every form: those that become int8, those that stay, and the same results from all."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper
from small_models import weights

from toolchain.optimization.passes import optimize
from toolchain.quantization.selection import select

RANDOM = np.random.default_rng(11)


def array(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def proto(body, inputs, constants):
    """A model from text, whose output is ``y`` and whose inputs are shapes by name; names stand for dynamic axes."""
    nodes = onnx.parser.parse_graph(f"g (float x) => (float y) {{ {body} }}").node
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def cleaned(body, inputs, constants, dynamic=3):
    """The cleaned-up model, after a comparison of its results with the source's in onnxruntime."""
    before = proto(body, inputs, constants)
    result = optimize(ir.from_proto(before)).model
    feed = {name: array(*(d if isinstance(d, int) else dynamic for d in shape)) for name, shape in inputs.items()}
    expected, found = small_models.plain(before, feed)["y"], small_models.plain(result, feed)["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return result


def int8_products(model):
    return sum(choice.int8 for choice in select(model).choices if choice.op in ("Conv", "Gemm", "MatMul"))


ROWS = {"x": ["N", 6]}
W = weights(w=(6, 5), v=(5, 6), b=(5,), row=(1, 5), column=(3, 1), every=(3, 5)) | {"number": np.float32(0.7)}
GEMMS = {
    "alpha and beta": ("y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", "w b", ["Gemm"], 1),
    "alpha of a transposed weight": ("y = Gemm<alpha = 0.5, transB = 1>(x, v, b)", "v b", ["Gemm"], 1),
    "beta without bias": ("y = Gemm<beta = 3.0>(x, w)", "w", ["Gemm"], 1),
    "one number as bias": ("y = Gemm<beta = 3.0>(x, w, number)", "w number", ["Gemm"], 1),
    "a row as bias": ("y = Gemm(x, w, row)", "w row", ["Gemm"], 1),
    "a number added": ("m = MatMul(x, w) y = Add(m, number)", "w number", ["Gemm"], 1),
    "a row added from the left": ("m = MatMul(x, w) y = Add(row, m)", "w row", ["Gemm"], 1),
    "two numbers in a row": ("m = Gemm<alpha = 2.0>(x, w, number) r = Relu(m) y = MatMul(r, v)", "w v number",
                             ["Gemm", "Relu", "MatMul"], 2),
}  # fmt: skip


@pytest.mark.parametrize("case", GEMMS)
def test_factors_and_biases(case):
    body, names, left, int8 = GEMMS[case]
    result = cleaned(body, ROWS, {name: W[name] for name in names.split()})
    assert small_models.ops(result) == left
    assert int8_products(result) == int8


@pytest.mark.parametrize(
    ("body", "names", "left"),
    [
        ("y = Gemm(x, w, column)", "w column", ["Gemm"]),
        ("m = MatMul(x, w) y = Add(m, every)", "w every", ["MatMul", "Add"]),
        ("m = MatMul(x, w) y = Add(m, m)", "w", ["MatMul", "Add"]),
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(m, a)", "w b", ["MatMul", "Add", "Mul"]),
    ],
)
def test_biases_that_are_no_rows_are_left(body, names, left):
    result = cleaned(body, {"x": [3, 6]}, {name: W[name] for name in names.split()})
    assert small_models.ops(result) == left


def test_a_sum_of_a_product_and_an_activation_stays_a_sum():
    """A Gemm would take the activation as its bias, and then the product could not be int8."""
    result = cleaned("m = MatMul(x, w) y = Add(m, z)", {"x": ["N", 6], "z": ["N", 5]}, {"w": W["w"]})
    assert small_models.ops(result) == ["MatMul", "Add"]
    assert int8_products(result) == 1


def test_a_large_weight_of_two_products_is_not_copied_for_a_factor():
    body = "a = Gemm<alpha = 0.5>(x, w) b = Gemm(x, w) y = Sub(a, b)"
    large = cleaned(body, {"x": ["N", 64]}, weights(w=(64, 128)))
    assert [value.const_value.nbytes for value in large.graph.initializers.values()] == [64 * 128 * 4]


LEFT = {
    "two layers": ("a = MatMul(w, x) r = Relu(a) y = MatMul(v, r)", {"x": [5, 4]}, "w v",
                   ["Unsqueeze", "Conv", "Relu", "Conv", "Squeeze"], 2),
    "dynamic positions": ("y = MatMul(w, x)", {"x": [5, "T"]}, "w", ["Unsqueeze", "Conv", "Squeeze"], 1),
    "a batch": ("a = MatMul(w, x) r = Relu(a) y = MatMul(v, r)", {"x": ["N", 5, "T"]}, "w v",
                ["Conv", "Relu", "Conv"], 2),
    "a bias for each row": ("a = MatMul(w, x) b = Add(a, column) y = Relu(b)", {"x": [5, 4]}, "w column",
                            ["Unsqueeze", "Conv", "Relu", "Squeeze"], 1),
    "one number as bias": ("a = MatMul(w, x) y = Add(a, number)", {"x": ["N", 5, 4]}, "w number", ["Conv"], 1),
    "Gemm": ("y = Gemm<alpha = 0.5, transA = 1>(v, x, column)", {"x": [5, 4]}, "v column",
             ["Unsqueeze", "Conv", "Squeeze"], 1),
}  # fmt: skip
LEFT_CONSTANTS = weights(w=(6, 5), v=(5, 6), column=(6, 1)) | {"number": np.float32(0.7)}


@pytest.mark.parametrize("case", LEFT)
def test_a_constant_on_the_left_is_a_convolution(case):
    body, inputs, names, left, int8 = LEFT[case]
    result = cleaned(body, inputs, {name: LEFT_CONSTANTS[name] for name in names.split()})
    assert small_models.ops(result) == left
    assert int8_products(result) == int8


@pytest.mark.parametrize(
    ("body", "inputs", "names"),
    [
        ("y = MatMul(w, x)", {"x": [2, 3, 5, 4]}, {"w": (6, 5)}),
        ("y = MatMul(w, x)", {"x": [3, 5, 4]}, {"w": (3, 6, 5)}),
        ("y = MatMul(w, x)", {"x": [5]}, {"w": (6, 5)}),
        ("y = Gemm<transB = 1>(w, x)", {"x": [4, 5]}, {"w": (6, 5)}),
        ("y = Gemm(w, x, c)", {"x": [5, 4]}, {"w": (6, 5), "c": (4,)}),
    ],
)
def test_other_products_with_a_constant_on_the_left_stay_with_the_true_reason(body, inputs, names):
    result = cleaned(body, inputs, weights(**names))
    assert "Conv" not in small_models.ops(result)
    (choice,) = [choice for choice in select(result).choices if choice.op in ("MatMul", "Gemm")]
    assert "constant is on the left" in choice.reason


WITH_CONSTANT = [
    ("bid,de->bie", [2, 3, 4], (4, 5)),
    ("bid,ed->bie", [2, 3, 4], (5, 4)),
    ("de,bid->bie", [2, 3, 4], (4, 5)),
    ("bid,dhe->bhie", [2, 3, 4], (4, 2, 5)),
    ("bhid,hde->bie", [2, 2, 3, 4], (2, 4, 5)),
    ("bihd,hde->bie", ["N", "S", 2, 4], (2, 4, 5)),
    ("nctv,vw->nctw", [2, 3, 4, 5], (5, 5)),
    ("ncv,cw->nwv", [2, 3, 4], (3, 5)),
    ("...d,de->...e", ["N", 3, 4], (4, 5)),
    ("id,de->ei", [3, 4], (4, 5)),
    ("b i d , d e -> b i e", [2, 3, 4], (4, 5)),
]


@pytest.mark.parametrize(("equation", "inputs", "constant"), WITH_CONSTANT, ids=[case[0] for case in WITH_CONSTANT])
def test_an_einsum_with_a_constant_is_an_int8_product(equation, inputs, constant):
    order = "w, x" if equation.startswith("de,") else "x, w"
    result = cleaned(f'y = Einsum<equation = "{equation}">({order})', {"x": inputs}, {"w": array(*constant)})
    assert "Einsum" not in small_models.ops(result)
    assert int8_products(result) == 1


def test_an_einsum_and_its_bias_are_one_gemm():
    result = cleaned(
        'm = Einsum<equation = "bid,de->bie">(x, w) y = Add(m, b)', {"x": [2, 3, 6]}, {"w": W["w"], "b": W["b"]}
    )
    assert small_models.ops(result) == ["Reshape", "Gemm", "Reshape"]


@pytest.mark.parametrize(
    ("equation", "left", "right", "ops"),
    [
        ("bhid,bhjd->bhij", [2, 3, 4, 5], [2, 3, 6, 5], ["Transpose", "MatMul"]),
        ("bhij,bhjd->bhid", [2, 3, 4, 5], [2, 3, 5, 6], ["MatMul"]),
        ("ij,jk->ik", ["N", 4], [4, "M"], ["MatMul"]),
        ("bihd,bjhd->bhij", [2, 4, 3, 5], [2, 6, 3, 5], ["Einsum"]),
        ("ij,jk->ki", [3, 4], [4, 5], ["Einsum"]),
        ("bi,bi->b", [3, 4], [3, 4], ["Einsum"]),
        ("ij,kl->ijkl", [2, 3], [4, 5], ["Einsum"]),
        ("ijj,jk->ik", [2, 4, 4], [4, 5], ["Einsum"]),
    ],
)
def test_an_einsum_of_two_activations(equation, left, right, ops):
    result = cleaned(f'y = Einsum<equation = "{equation}">(x, z)', {"x": left, "z": right}, {}, dynamic=4)
    assert small_models.ops(result) == ops


@pytest.mark.parametrize(
    ("equation", "constant"),
    [("bid,bde->bie", (2, 4, 5)), ("bid,d->bi", (4,)), ("bid,ed->bi", (5, 4)), ("bid,id->bi", (3, 4))],
)
def test_other_einsums_with_a_constant_stay(equation, constant):
    result = cleaned(f'y = Einsum<equation = "{equation}">(x, w)', {"x": [2, 3, 4]}, {"w": array(*constant)})
    assert small_models.ops(result) == ["Einsum"]
