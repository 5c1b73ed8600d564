"""Selection: the nodes that become int8, and every reason why a node does not."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.quantization.selection import (
    FOLLOWS_FLOAT,
    clip_limits,
    select,
)
from toolchain.quantization.tails import BEHIND_LAST_PRODUCT, COSTS_MORE_TO_CONVERT, ONE_SCALE_FOR_FLOAT_READERS

IMAGE = "float[N, 2, 6, 6] x"


def selected(body, inputs=IMAGE, outputs="float[?, ?, ?, ?] y", constants=None, opset=17, **options):
    version = 8 if opset <= 17 else 10
    model = small_models.model(body, inputs, outputs, constants or {}, opset=opset, ir_version=version)
    return select(model, **options)


def reasons(selection):
    return {choice.node: choice.reason for choice in selection.choices if not choice.int8}


CONV = "[conv] c = Conv(x, w)"
W = weights(w=(4, 2, 1, 1))


# --- refusals ---

REFUSED = {
    "conv with a computed weight": (
        "[n] y = Conv(x, w)", IMAGE + ", float[4, 2, 1, 1] w", {}, "its weight is computed at run time",
    ),
    "product of two activations": ("[n] y = MatMul(x, x)", IMAGE, {}, "its weight is computed at run time"),
    "half precision": (
        "[n] y = Conv(x, w)", "float16[N, 2, 6, 6] x", {"w": np.ones((4, 2, 1, 1), np.float16)}, "is not float32",
    ),
    "product with a constant activation": (
        "[n] y = MatMul(k, x)", IMAGE, weights(k=(6, 6)), "its constant is on the left",
    ),
    "conv of a constant": (
        "[n] c = Conv(k, w) y = Add(c, x)", IMAGE, weights(k=(1, 2, 6, 6), w=(2, 2, 1, 1)), "its input is a constant",
    ),
    "computed bias": ("[n] y = Conv(x, w, b)", IMAGE + ", float[4] b", W, "its bias is not constant"),
    "bias of the wrong size": (
        "[n] y = Gemm(x, w, b)", "float[N, 3] x", weights(w=(3, 4), b=(1,)), "one number per output channel",
    ),
    "bias without axes": (
        "[n] y = Gemm(x, w, b)", "float[N, 3] x", weights(w=(3, 1), b=()), "one number per output channel",
    ),
    "bias along the rows": (
        "[n] y = Gemm(x, w, b)", "float[4, 3] x", weights(w=(3, 4), b=(4, 1)), "one number per output channel",
    ),
    "stack of matrices": ("[n] y = MatMul(x, w)", IMAGE, weights(w=(2, 6, 3)), "a stack of matrices"),
    "transposed activation": (
        "[n] y = Gemm<transA = 1>(x, w)", "float[3, N] x", weights(w=(3, 4)), "kernel for transA=1, alpha=1, beta=1",
    ),
    "scaled product": (
        "[n] y = Gemm<alpha = 0.5>(x, w)", "float[N, 3] x", weights(w=(3, 4)), "alpha=0.5, beta=1",
    ),
    "scaled bias": (
        "[n] y = Gemm<beta = 2.0>(x, w, b)", "float[N, 3] x", weights(w=(3, 4), b=(4,)), "alpha=1, beta=2",
    ),
    "operator without a kernel": ("[n] y = Tanh(x)", IMAGE, {}, "no fused int8 kernel"),
    "operator without a row": ("[n] y = Selu(x)", IMAGE, {}, "its operator is not in the table"),
    "relu of a graph input": ("[n] y = Relu(x)", IMAGE, {}, FOLLOWS_FLOAT),
    "relu of a float": ("t = Tanh(x) [n] y = Relu(t)", IMAGE, {}, FOLLOWS_FLOAT),
    "relu of something read twice": (
        f"{CONV} [n] r = Relu(c) y = Add(r, c)", IMAGE, W, "its input has other readers",
    ),
    "relu behind a pool": (
        f"{CONV} p = MaxPool<kernel_shape = [2, 2]>(c) [n] y = Relu(p)", IMAGE, W, "does not round to int8",
    ),
    "relu behind a relu": (
        f"{CONV} r = Relu(c) [n] y = Relu(r)", IMAGE, W, "does not round to int8",
    ),
    "clip with a computed limit": (
        f"{CONV} [n] y = Clip(c, k)", IMAGE + ", float k", W, "limits are not constants with 0 between",
    ),
    "clip above zero": (
        f"{CONV} [n] y = Clip(c, k)", IMAGE, {**W, "k": np.float32(0.5)}, "limits are not constants with 0 between",
    ),
    "addition of a constant": (
        f"{CONV} [n] y = Add(c, k)", IMAGE, {**W, "k": np.float32(3)}, "combines an activation with a constant",
    ),
    "addition of integers": ("[n] y = Add(x, x)", "int64[N, 2] x", {}, "is not float32"),
    "glue among float operators": ("t = Tanh(x) [n] y = Add(t, x)", IMAGE, {}, "it reads mostly float tensors, and"),
    "half of it float": (f"{CONV} t = Tanh(c) [n] y = Add(c, t)", IMAGE, W, "it reads mostly float tensors"),
    "interpolation": (
        f'{CONV} [n] y = Resize<mode = "linear">(c, , s)', IMAGE, {**W, "s": np.array([1, 1, 2, 2], np.float32)},
        "interpolates between values",
    ),
    "padded average": (
        f"{CONV} [n] y = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(c)", IMAGE, W, "at the borders",
    ),
    "average padded by its mode": (
        f'{CONV} [n] y = AveragePool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(c)', IMAGE, W, "at the borders",
    ),
    "overhanging average": (
        f"{CONV} [n] y = AveragePool<kernel_shape = [4, 4], strides = [4, 4], ceil_mode = 1>(c)", IMAGE, W, "borders",
    ),
    "pool with indices": (f"{CONV} [n] y, i = MaxPool<kernel_shape = [2, 2]>(c)", IMAGE, W, "returns indices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_carry_their_reason(name):
    body, inputs, constants, reason = REFUSED[name]
    found = reasons(selected(body, inputs, "y", constants))
    assert reason in found["n"]


def test_the_recipe_can_keep_nodes_and_operators_float():
    body = "[one] a = Conv(x, w) [two] b = Conv(a, v) [three] c = Add(a, b) [last] y = Conv(c, v)"
    constants = weights(w=(4, 2, 1, 1), v=(4, 4, 1, 1))
    assert reasons(selected(body, constants=constants)) == {}
    kept = reasons(selected(body, constants=constants, keep_float=["two"]))
    assert kept["two"] == "the recipe keeps it float"
    kept = reasons(selected(body, constants=constants, keep_float=["Conv"]))
    assert {"one", "two", "three", "last"} == set(kept), "and the glue follows"


def test_a_reason_found_elsewhere_is_reported_as_it_is():
    found = reasons(selected(f"{CONV} [r] y = Relu(c)", constants=W, reasons={"conv": "measured slower"}))
    assert found == {"conv": "measured slower", "r": FOLLOWS_FLOAT}


# --- glue ---


def test_connecting_operators_are_int8_where_most_of_their_input_is_int8():
    body = f"{CONV} t = Tanh(x) u = Concat<axis = 1>(c, t) y = Conv(u, v)"
    selection = selected(body, constants={**W, **weights(v=(3, 6, 1, 1))})
    chosen = {choice.op: choice.int8 for choice in selection.choices}
    assert chosen == {"Conv": True, "Tanh": False, "Concat": True}, "four channels are int8, two are float"
    assert set(selection.tensors) == {"x", "c", "t", "u", "y"}
    body = f"{CONV} t = Tanh(big) u = Concat<axis = 1>(c, t) y = Conv(u, v)"
    inputs = IMAGE + ", float[N, 9, 6, 6] big"
    chosen = {c.op: c.int8 for c in selected(body, inputs, constants={**W, **weights(v=(3, 13, 1, 1))}).choices}
    assert chosen["Concat"] is False, "nine of thirteen channels are float"


def test_a_graph_without_products_stays_float():
    selection = selected("a = Relu(x) b = MaxPool<kernel_shape = [2, 2]>(a) y = Add(b, b)")
    assert selection.int8_nodes() == set()
    assert selection.tensors == {}
    assert selection.same == {}


# --- absorption and scales ---


@pytest.mark.parametrize("follower", ["Relu(c)", "Clip(c, low, high)"])
def test_an_absorbed_activation_gives_the_point_of_requantization(follower):
    constants = {**W, "low": np.float32(0), "high": np.float32(6)}
    selection = selected(f"{CONV} [act] y = {follower}", constants=constants)
    assert selection.int8_nodes() == {"conv", "act"}
    assert selection.tensors == {"x": 1, "y": None}, "nothing is known of c, and nothing needs to be"


def test_scales_pass_through_what_moves_integers():
    body = f"""{CONV} p = MaxPool<kernel_shape = [2, 2]>(c) t = Transpose<perm = [0, 2, 3, 1]>(p)
    f = Flatten(t) y = Gemm(f, v)"""
    selection = selected(body, outputs="float[N, 3] y", constants={**W, **weights(v=(100, 3))})
    assert selection.same == {"p": "c", "t": "p", "f": "t"}
    assert selection.tensors == {"x": 1, "c": None, "p": None, "t": None, "f": 1}
    assert "y" not in selection.tensors, "a product may leave its result float"


def test_every_output_of_a_split_has_the_scale_of_its_input():
    body = f"{CONV} a, b = Split<axis = 1>(c, parts) [cat] d = Concat<axis = 1>(b, a) y = Conv(d, v)"
    selection = selected(body, constants={**W, **weights(v=(4, 4, 1, 1)), "parts": np.array([1, 3])})
    assert selection.same == {"a": "c", "b": "c"}
    assert set(selection.tensors) == {"x", "c", "a", "b", "d", "y"}


def test_what_only_float_nodes_read_of_a_product_stays_float():
    body = "[gemm] g = Gemm(x, w) [r] r = Relu(g) [s] s = Reshape(r, shape) y = Softmax(s)"
    constants = {**weights(w=(3, 4)), "shape": np.array([0, 4])}
    selection = selected(body, "float[N, 3] x", "float[N, 4] y", constants)
    assert selection.int8_nodes() == {"gemm"}
    assert selection.tensors == {"x": 1}
    for name in ("r", "s"):
        assert reasons(selection)[name] == BEHIND_LAST_PRODUCT
    body = "[gemm] g = Gemm(x, w) [r] r = Relu(g) [s] s = Softmax(r) [last] y = Gemm(s, v)"
    selection = selected(body, "float[N, 3] x", "float[N, 4] y", weights(w=(3, 4), v=(4, 4)))
    assert reasons(selection)["r"] == "the result before it and all its readers are float"
    body = "[gemm] g = Gemm(x, w) [r] r = Relu(g) [second] h = Gemm(r, v) y = Softmax(h)"
    selection = selected(body, "float[N, 3] x", "float[N, 4] y", weights(w=(3, 4), v=(4, 4)))
    assert selection.int8_nodes() == {"gemm", "r", "second"}
    assert selection.tensors == {"x": 1, "r": 1}


# --- behind the last product ---

TAILS = {
    # what stays float behind the last products, and the tensors at which int8 ends
    "a sum and what follows": (
        f"{CONV} d = Conv(x, w) [add] s = Add(c, d) [r] r = Relu(s) [p] y = MaxPool<kernel_shape = [2, 2]>(r)",
        {"add", "r", "p"}, {"c", "d"},
    ),
    "all but the Relu that is merged": (f"{CONV} [r] r = Relu(c) [g] y = GlobalAveragePool(r)", {"g"}, {"r"}),
    "a sigmoid behind a matrix product": ("[g] g = MatMul(x, m) [s] y = Sigmoid(g)", {"s"}, set()),
    "each of two paths": (
        f"""{CONV} [p] p = MaxPool<kernel_shape = [2, 2]>(c) [q] q = MaxPool<kernel_shape = [2, 2]>(c)
        d = Conv(p, v) [join] y = Concat<axis = 2>(d, q)""",
        {"q", "join"}, {"d"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_nothing_behind_the_last_product_is_int8(name):
    body, floats, results = TAILS[name]
    selection = selected(body, outputs="y", constants={**W, **weights(m=(6, 6), v=(4, 4, 1, 1))})
    assert reasons(selection) == dict.fromkeys(floats, BEHIND_LAST_PRODUCT)
    assert selection.results == results


def test_operators_in_front_of_a_later_product_stay_int8_whatever_is_between():
    body = f"{CONV} [p] p = MaxPool<kernel_shape = [2, 2]>(c) t = Tanh(p) y = Conv(t, v)"
    selection = selected(body, constants={**W, **weights(v=(4, 4, 1, 1))})
    assert {"conv", "p"} <= selection.int8_nodes()
    assert selection.results == {"y"}


DISTANCES = f"{CONV} [d] d = Softmax<axis = 1>(c) [mean] m = Conv(d, v) y = Mul(m, m)"
"""The mean of a distribution over distances, as in the boxes of detectors."""


def test_a_last_product_that_computes_little_from_a_float_tensor_stays_float():
    few = selected(DISTANCES, constants={**W, **weights(v=(3, 4, 1, 1))})
    assert few.int8_nodes() == {"conv"}
    assert reasons(few)["mean"] == COSTS_MORE_TO_CONVERT
    enough = selected(DISTANCES, constants={**W, **weights(v=(4, 4, 1, 1))})
    assert enough.int8_nodes() == {"conv", "mean"}
    behind_int8 = selected(f"{CONV} [second] y = Conv(c, v)", constants={**W, **weights(v=(1, 4, 1, 1))})
    assert behind_int8.int8_nodes() == {"conv", "second"}
    followed = selected(
        f"{DISTANCES.removesuffix(' y = Mul(m, m)')} [last] y = Conv(m, u)",
        constants={**W, **weights(v=(3, 4, 1, 1), u=(9, 3, 1, 1))},
    )
    assert followed.int8_nodes() == {"conv", "mean", "last"}


def test_a_concat_that_only_float_operators_read_keeps_the_scales_of_its_operands_apart():
    body = f"{CONV} d = Conv(x, w) [join] j = Concat<axis = 1>(c, d) [f] f = Flatten(j) t = Tanh(f) y = Gemm(t, v)"
    selection = selected(body, "float[2, 2, 6, 6] x", "y", {**W, **weights(v=(288, 4))})
    for name in ("join", "f"):
        assert reasons(selection)[name] == ONE_SCALE_FOR_FLOAT_READERS
    assert {"c", "d"} <= set(selection.tensors)
    assert "j" not in selection.tensors


@pytest.mark.parametrize(
    ("body", "inputs", "constants", "axis"),
    [
        ("y = Conv(x, w)", "float[N, 2, 9] x", weights(w=(4, 2, 3)), 1),
        ("y = MatMul(x, w)", "float[N, 7, 3] x", weights(w=(3, 4)), 2),
        ("y = Gemm<transB = 1>(x, w)", "float[N, 3] x", weights(w=(4, 3)), 1),
    ],
)
def test_means_are_requested_along_the_contracted_axis(body, inputs, constants, axis):
    assert selected(body, inputs, "y", constants).tensors["x"] == axis


def test_limits_of_clips():
    body = """a = Relu(x) b = Clip(x) c = Clip(x, low) d = Clip(x, , high) e = Clip(x, low, high) y = Clip(x, z)"""
    model = small_models.model(
        body, IMAGE + ", float z", "y", {"low": np.float32(-1), "high": np.array([6], np.float32).reshape(())}
    )
    inf = float("inf")
    expected = [(0, inf), (-inf, inf), (-1, inf), (-inf, 6), (-1, 6), (None, inf)]
    assert [clip_limits(node) for node in model.graph] == expected
