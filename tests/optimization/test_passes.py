"""Every clean-up pass: the expected graph, and the same outputs in three ways of running it."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from small_models import BATCH_NORM, assert_same_results, weights

from toolchain.graph import check, io, query, run, text
from toolchain.optimization.passes import optimize

IMAGE = "float[N, 2, 6, 5] x"


@dataclass(frozen=True)
class Case:
    """A model as text, and the operators that must be left of it."""

    name: str
    body: str
    inputs: str
    outputs: str
    left: list[str]
    constants: dict = field(default_factory=dict)
    opset: int = 17

    def model(self):
        version = 8 if self.opset <= 17 else 10
        args = self.body, self.inputs, self.outputs, self.constants
        return small_models.model(*args, opset=self.opset, ir_version=version)


CASES = [
    Case(
        "terms that do nothing",
        "a = Add(zero, x) b = Mul(a, one) c = Sub(b, zero) d = Div(c, one) y = Relu(d)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Relu"],
        {"zero": np.zeros((), np.float32), "one": np.ones((1, 1), np.float32)},
    ),
    Case(
        "terms that are close to nothing",
        "s = Mul(x, x) a = Add(s, tiny) l = Log(a) y = Mul(l, near)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Mul", "Add", "Log", "Mul"],
        {"tiny": np.float32(1e-9), "near": np.float32(1 + 2**-20)},
    ),
    Case(
        "zero that adds an axis",
        "y = Add(x, zero)",
        "float[4] x",
        "float[1, 4] y",
        ["Add"],
        {"zero": np.zeros((1, 1), np.float32)},
    ),
    Case(
        "batch norm into convolution",
        """c = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, w)
        y = BatchNormalization<epsilon = 0.1>(c, gamma, beta, mu, var)""",
        IMAGE,
        "float[N, 2, 3, 5] y",
        ["Conv"],
        {**weights(w=(2, 2, 3, 3)), **BATCH_NORM},
    ),
    Case(
        "batch norm into convolution with bias, relu behind",
        "c = Conv(x, w, b) n = BatchNormalization(c, gamma, beta, mu, var) y = Relu(n)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Conv", "Relu"],
        {**weights(w=(2, 2, 1, 1), b=(2,)), **BATCH_NORM},
    ),
    Case(
        "batch norm into grouped 1-D convolution",
        "c = Conv<group = 2>(x, w) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 2, 7] x",
        "float[N, 2, 5] y",
        ["Conv"],
        {**weights(w=(2, 1, 3)), **BATCH_NORM},
    ),
    Case(
        "batch norm into transposed convolution",
        "c = ConvTranspose<strides = [2, 2]>(x, w) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 3, 4, 4] x",
        "float[N, 2, 9, 9] y",
        ["ConvTranspose"],
        {**weights(w=(3, 2, 3, 3)), **BATCH_NORM},
    ),
    Case(
        "batch norm into Gemm",
        "c = Gemm<transB = 1>(x, w, b) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 3] x",
        "float[N, 2] y",
        ["Gemm"],
        {**weights(w=(2, 3), b=(2,)), **BATCH_NORM},
    ),
    Case(
        "batch norm before a convolution becomes a depthwise one",
        "n = BatchNormalization(x, gamma, beta, mu, var) y = Conv<pads = [1, 1, 1, 1]>(n, w)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv", "Conv"],
        {**weights(w=(3, 2, 3, 3)), **BATCH_NORM},
    ),
    Case(
        "batch norm of a shared convolution stays behind it",
        "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mu, var) y = Add(c, n)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Conv", "Conv", "Add"],
        {**weights(w=(2, 2, 1, 1)), **BATCH_NORM},
    ),
    Case(
        "batch norm of rank 2 stays",
        "y = BatchNormalization(x, gamma, beta, mu, var)",
        "float[N, 2] x",
        "float[N, 2] y",
        ["BatchNormalization"],
        BATCH_NORM,
    ),
    Case(
        "mean over the image, axes as attribute",
        "y = ReduceMean<axes = [2, 3], keepdims = 1>(x)",
        IMAGE,
        "float[N, 2, 1, 1] y",
        ["GlobalAveragePool"],
    ),
    Case(
        "mean over the image without its axes",
        "m = ReduceMean<axes = [-1, -2], keepdims = 0>(x) y = Gemm(m, w)",
        IMAGE,
        "float[N, 3] y",
        ["GlobalAveragePool", "Flatten", "Gemm"],
        weights(w=(2, 3)),
        opset=13,
    ),
    Case(
        "mean over the image, axes as input",
        "y = ReduceMean<keepdims = 0>(x, axes)",
        IMAGE,
        "float[N, 2] y",
        ["GlobalAveragePool", "Flatten"],
        {"axes": np.array([-1, 2])},
        opset=18,
    ),
    Case(
        "mean over one axis of sound",
        "y = ReduceMean(x, axes)",
        "float[N, 2, 7] x",
        "float[N, 2, 1] y",
        ["GlobalAveragePool"],
        {"axes": np.array([2])},
        opset=20,
    ),
    Case(
        "mean over other axes stays",
        "a = ReduceMean<axes = [1, 2, 3]>(x) b = ReduceMean<axes = [3]>(x) y = Add(a, b)",
        IMAGE,
        "float[N, 1, 1, 1] a, float[N, 2, 6, 1] y",
        ["ReduceMean", "ReduceMean", "Add"],
    ),
    Case(
        "mean over everything stays",
        "y = ReduceMean<keepdims = 0>(x)",
        IMAGE,
        "float y",
        ["ReduceMean"],
    ),
    Case(
        "constant added to a convolution",
        "c = Conv(x, w) y = Add(c, k)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv"],
        weights(w=(3, 2, 1, 1), k=(1, 3, 1, 1)),
    ),
    Case(
        "constant added to a convolution with bias, from the left",
        "c = Conv(x, w, b) a = Add(k, c) y = Relu(a)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv", "Relu"],
        weights(w=(3, 2, 1, 1), b=(3,), k=(3, 1, 1)),
    ),
    Case(
        "constants of other shapes stay beside a convolution",
        "c = Conv(x, w) a = Add(c, row) y = Add(a, image)",
        "float[N, 2, 5, 5] x",
        "float[N, 5, 5, 5] y",
        ["Conv", "Add", "Add"],
        weights(w=(5, 2, 1, 1), row=(5,), image=(1, 1, 5, 5)),
    ),
    Case(
        "a convolution read twice keeps its bias",
        "c = Conv(x, w) a = Add(c, k) y = Mul(a, c)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv", "Add", "Mul"],
        weights(w=(3, 2, 1, 1), k=(3, 1, 1)),
    ),
    Case(
        "matrix product and constant",
        "c = MatMul(x, w) y = Add(c, b)",
        "float[N, 4] x",
        "float[N, 3] y",
        ["Gemm"],
        weights(w=(4, 3), b=(3,)),
    ),
    Case(
        "matrix product and constant from the left",
        "c = MatMul(x, w) y = Add(b, c)",
        "float[N, 4] x",
        "float[N, 3] y",
        ["Gemm"],
        weights(w=(4, 3), b=(3,)),
    ),
    Case(
        "matrix product of rank 3 is a Gemm of its rows",
        "c = MatMul(x, w) y = Add(c, b)",
        "float[N, 5, 4] x",
        "float[N, 5, 3] y",
        ["Reshape", "Gemm", "Reshape"],
        weights(w=(4, 3), b=(3,)),
    ),
    Case(
        "no-ops",
        """a = Identity(x) b, mask = Dropout(a) c = Cast<to = 1>(b) d = Transpose<perm = [0, 1, 2, 3]>(c)
        e = Add(d, zero) f = Mul(e, one) g = Div(f, one) h = Sub(g, zero)
        t = Transpose<perm = [0, 2, 3, 1]>(h) u = Transpose<perm = [0, 3, 1, 2]>(t) v = Relu(u) y = Relu(v)""",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Relu"],
        {"zero": np.float32(0), "one": np.float32(1)},
    ),
    Case(
        "constants fold",
        """s = Shape(w) half = Constant<value_float = 0.5>() u = Mul(w, half) v = Transpose<perm = [1, 0]>(u)
        y = MatMul(x, v)""",
        "float[N, 4] x",
        "float[N, 3] y",
        ["MatMul"],
        weights(w=(3, 4)),
    ),
    Case(
        "a shape computed from fixed axes folds",
        """s = Shape(x) i = Constant<value_int = 1>() c = Gather(s, i) one = Constant<value_ints = [-1]>()
        ax = Constant<value_ints = [0]>() d = Unsqueeze(c, ax) t = Concat<axis = 0>(one, d) y = Reshape(x, t)""",
        "float[4, 2, 3] x",
        "float[12, 2] y",
        ["Reshape"],
    ),
    Case(
        "relu moves before the slice behind a padded convolution",
        "c = Conv<pads = [2, 2]>(x, w) d = Slice(c, zero, end, axis) y = Relu(d)",
        "float[N, 2, 7] x",
        "float[N, 2, 7] y",
        ["Conv", "Relu", "Slice"],
        {**weights(w=(2, 2, 3)), "zero": np.array([0]), "end": np.array([7]), "axis": np.array([2])},
    ),
    Case(
        "relu moves before the pool and joins the one there",
        """c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r)
        q = Relu(p) m = MaxPool<kernel_shape = [2, 2]>(q) y = Relu(m)""",
        "float[N, 2, 8, 8] x",
        "float[N, 3, 3, 3] y",
        ["Conv", "Relu", "MaxPool", "MaxPool"],
        weights(w=(3, 2, 1, 1)),
    ),
    Case(
        "relu of a pool that is read otherwise stays",
        "p = MaxPool<kernel_shape = [2, 2]>(x) r = Relu(p) y = Add(p, r)",
        IMAGE,
        "float[N, 2, 5, 4] y",
        ["MaxPool", "Relu", "Add"],
    ),
    Case(
        "clips merge",
        "a = Clip(x, low, high) y = Clip(a, zero, high)",
        "float[N, 4] x",
        "float[N, 4] y",
        ["Clip"],
        {"low": np.float32(-1), "high": np.float32(0.5), "zero": np.float32(0)},
    ),
    Case(
        "hard swish by its parts",
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "float[N, 4] x",
        "float[N, 4] y",
        ["HardSwish"],
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    Case(
        "hard swish keeps its parts before opset 14",
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "float[N, 4] x",
        "float[N, 4] y",
        ["Add", "Clip", "Mul", "Div"],
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
        opset=13,
    ),
    Case(
        "padding joins the convolution",
        "p = Pad(x, pads) y = Conv(p, w)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv"],
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), **weights(w=(3, 2, 3, 3))},
    ),
    Case(
        "padding with another value stays",
        "p = Pad(x, pads, value) y = Conv(p, w)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Pad", "Conv"],
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.float32(1), **weights(w=(3, 2, 3, 3))},
    ),
    Case(
        "pads are written out, and padding joins them",
        """p = Pad(x, pads) c = Conv<auto_pad = "VALID", strides = [2, 2]>(p, w)
        y = MaxPool<auto_pad = "SAME_UPPER", kernel_shape = [2, 2], strides = [2, 2]>(c)""",
        IMAGE,
        "float[N, 3, 2, 2] y",
        ["Conv", "MaxPool"],
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), **weights(w=(3, 2, 3, 3))},
    ),
    Case(
        "the same computation twice is done once; dead code goes",
        "a = Sigmoid(x) b = Sigmoid(x) dead = Exp(x) y = Add(a, b)",
        "float[N, 4] x",
        "float[N, 4] y",
        ["Sigmoid", "Add"],
    ),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request):
    return request.param


def feeds(model, sizes=(1, 3)):
    for seed, size in enumerate(sizes):
        yield run.random_feed(io.inputs(model), np.random.default_rng(100 + seed), dynamic=size)


def test_what_is_left_and_what_it_computes(case):
    model = case.model()
    before = text.dump(model)
    result = optimize(model)
    assert text.dump(model) == before, "the source is left alone"
    assert small_models.ops(result.model) == case.left
    assert result.nodes_before == len(case.model().graph) - case.body.count("= Constant<")
    assert result.nodes_after == len(case.left)
    assert result.max_relative_error < 1e-5
    check.check(result.model)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    assert io.inputs(result.model) == io.inputs(model)
    for feed in feeds(model):
        assert_same_results(model, result.model, feed)


def test_a_second_time_changes_nothing(case):
    once = optimize(case.model()).model
    assert text.dump(optimize(once).model) == text.dump(once)


def test_later_stages_get_the_properties_they_rely_on(case):
    result = optimize(case.model()).model
    nodes = list(result.graph)
    assert len({node.name for node in nodes}) == len(nodes)
    assert all(node.name for node in nodes)
    for node in nodes:
        assert node.op_type != "Constant"
        assert not node.metadata_props
        for output in node.outputs:
            assert output.name
            assert output.dtype is not None
            assert query.rank(output) is not None
    used = {value.name for node in nodes for value in node.inputs if value is not None}
    assert set(result.graph.initializers) <= used


@pytest.mark.parametrize("operator", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [6, 7])
def test_auto_pad_becomes_pads_of_the_same_meaning(operator, mode, size):
    arguments = "x, w" if operator == "Conv" else "x"
    body = f'y = {operator}<auto_pad = "{mode}", kernel_shape = [4, 3], strides = [2, 2]>({arguments})'
    constants = weights(w=(2, 2, 4, 3)) if operator == "Conv" else {}
    model = small_models.model(body, f"float[N, 2, {size}, 7] x", "y", constants)
    result = optimize(model).model
    assert "auto_pad" not in next(iter(result.graph)).attributes
    for feed in feeds(model):  # onnx's reference pads a MaxPool with SAME_LOWER by other amounts
        np.testing.assert_allclose(
            small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"], rtol=1e-5, atol=1e-5
        )


def test_auto_pad_of_dynamic_sizes_and_with_ceil_mode_is_left():
    for attributes, size in (("", "H"), (", ceil_mode = 1", "7")):
        body = f'y = MaxPool<auto_pad = "SAME_UPPER", kernel_shape = [2, 2]{attributes}>(x)'
        model = small_models.model(body, f"float[1, 2, {size}, 7] x", "float[1, 2, ?, 7] y")
        assert "auto_pad" in next(iter(optimize(model).model.graph)).attributes
