"""Every clean-up pass: the graph it should leave, and the same numbers by three ways of running it."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from small_models import ops, weights

from toolchain import optimize as module
from toolchain.errors import GateError, ModelError
from toolchain.graph import check, io, query, run, text
from toolchain.optimize import optimize

BN = {
    "gamma": np.array([1.5, -2.0], np.float32),
    "beta": np.array([0.5, -1.0], np.float32),
    "mu": np.array([0.25, 3.0], np.float32),
    "var": np.array([0.5, 4.0], np.float32),
}
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
        "batch norm into convolution",
        """c = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, w)
        y = BatchNormalization<epsilon = 0.1>(c, gamma, beta, mu, var)""",
        IMAGE,
        "float[N, 2, 3, 5] y",
        ["Conv"],
        {**weights(w=(2, 2, 3, 3)), **BN},
    ),
    Case(
        "batch norm into convolution with bias, relu behind",
        "c = Conv(x, w, b) n = BatchNormalization(c, gamma, beta, mu, var) y = Relu(n)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Conv", "Relu"],
        {**weights(w=(2, 2, 1, 1), b=(2,)), **BN},
    ),
    Case(
        "batch norm into grouped 1-D convolution",
        "c = Conv<group = 2>(x, w) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 2, 7] x",
        "float[N, 2, 5] y",
        ["Conv"],
        {**weights(w=(2, 1, 3)), **BN},
    ),
    Case(
        "batch norm into transposed convolution",
        "c = ConvTranspose<strides = [2, 2]>(x, w) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 3, 4, 4] x",
        "float[N, 2, 9, 9] y",
        ["ConvTranspose"],
        {**weights(w=(3, 2, 3, 3)), **BN},
    ),
    Case(
        "batch norm into Gemm",
        "c = Gemm<transB = 1>(x, w, b) y = BatchNormalization(c, gamma, beta, mu, var)",
        "float[N, 3] x",
        "float[N, 2] y",
        ["Gemm"],
        {**weights(w=(2, 3), b=(2,)), **BN},
    ),
    Case(
        "batch norm before a convolution becomes a depthwise one",
        "n = BatchNormalization(x, gamma, beta, mu, var) y = Conv<pads = [1, 1, 1, 1]>(n, w)",
        IMAGE,
        "float[N, 3, 6, 5] y",
        ["Conv", "Conv"],
        {**weights(w=(3, 2, 3, 3)), **BN},
    ),
    Case(
        "batch norm of a shared convolution stays behind it",
        "c = Conv(x, w) n = BatchNormalization(c, gamma, beta, mu, var) y = Add(c, n)",
        IMAGE,
        "float[N, 2, 6, 5] y",
        ["Conv", "Conv", "Add"],
        {**weights(w=(2, 2, 1, 1)), **BN},
    ),
    Case(
        "batch norm of rank 2 stays",
        "y = BatchNormalization(x, gamma, beta, mu, var)",
        "float[N, 2] x",
        "float[N, 2] y",
        ["BatchNormalization"],
        BN,
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


def assert_same_results(before, after, feed):
    for how in (small_models.plain, small_models.reference):
        expected, found = how(before, feed), how(after, feed)
        assert list(found) == list(expected), "output names and their order"
        for name, array in expected.items():
            # Folding reorders sums of at most a few dozen float32 terms of size about 1.
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name} by {how.__name__}")


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


def test_later_stages_find_what_they_rely_on(case):
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


def test_a_branch_that_hands_on_an_outer_value_keeps_its_identity():
    """What torch writes for ``x if condition else f(x)``; onnx_ir's own pass leaves a branch without its output."""
    model = small_models.model(
        """r = Relu(x) s = ReduceSum<keepdims = 0>(r) b = Greater(s, limit)
        i = If(b) <
            then_branch = one () => (float[4] t) { a = Identity(r) h = Mul(a, half) t = Identity(h) },
            else_branch = two () => (float[4] e) { e = Identity(r) }
        >
        y = Identity(i)""",
        "float[4] x",
        "float[4] y",
        {"limit": np.float32(2), "half": np.float32(0.5)},
    )
    result = optimize(model).model
    branches = {g.name: [node.op_type for node in g] for g in result.graphs() if g is not result.graph}
    assert branches == {"one": ["Mul"], "two": ["Identity"]}
    assert ops(result) == ["Relu", "ReduceSum", "Greater", "If"]
    for value in (1.0, 0.1):
        feed = {"x": np.full(4, value, np.float32)}
        np.testing.assert_array_equal(small_models.plain(result, feed)["y"], small_models.plain(model, feed)["y"])


# --- whole models ---


def net(batch="N", side="H"):
    """Convolutions with everything around them that exporters leave, both image axes open."""
    constants = {**weights(w=(2, 3, 3, 3), v=(2, 2, 1, 1), fc=(2, 4), b=(4,)), **BN, "half": np.float32(0.5)}
    body = """
        c = Conv<pads = [1, 1, 1, 1]>(x, w) n = BatchNormalization(c, gamma, beta, mu, var) r = Relu(n)
        d = Conv(r, v) m = BatchNormalization(d, gamma, beta, mu, var) s = Add(r, m) t = Identity(s)
        p = ReduceMean<axes = [2, 3], keepdims = 0>(t) z = MatMul(p, fc) l = Add(z, b)
        factor = Identity(half) y = Mul(l, factor)
    """
    return small_models.model(body, f"float[{batch}, 3, {side}, {side}] x", f"float[{batch}, 4] y", constants)


def test_open_axes_stay_open():
    model = net()
    result = optimize(model).model
    assert [str(d) for d in result.graph.inputs[0].shape] == ["N", "3", "H", "H"]
    assert [str(d) for d in result.graph.outputs[0].shape] == ["N", "4"]
    assert small_models.ops(result) == [
        "Conv",
        "Relu",
        "Conv",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    for batch, side in ((1, 4), (5, 9)):
        rng = np.random.default_rng(batch)
        feed = {"x": rng.standard_normal((batch, 3, side, side)).astype(np.float32)}
        assert_same_results(model, result, feed)


def test_given_node_names_are_kept_and_others_are_made_unique():
    body = "[mine] a = Relu(x) [mine] b = Neg(a) c = Abs(b) y = Sigmoid(c)"
    source = small_models.model(body, "float[2] x", "float[2] y")
    result = optimize(source, verify=False).model  # onnxruntime refuses two nodes of one name
    names = [node.name for node in result.graph]
    assert names[0] == "mine"
    assert len(set(names)) == 4


def test_default_values_of_inputs_become_constants():
    model = small_models.model("y = Add(x, k)", "float[2] x, float[2] k", "float[2] y", weights(k=(2,)))
    result = optimize(model).model
    assert [value.name for value in result.graph.inputs] == ["x"]


def test_scalar_constants_stay_scalars():
    body = "k = Constant<value_float = 0.5>() y = Mul(x, k)"
    result = optimize(small_models.model(body, "float[2] x", "float[2] y")).model
    [value] = result.graph.initializers.values()
    assert value.const_value.numpy().shape == ()


def test_functions_are_inlined():
    source = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (float[2] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 17]> twice (a) => (b) { c = Add(a, a) b = Relu(c) }""")
    result = optimize(ir.from_proto(source)).model
    assert small_models.ops(result) == ["Add", "Relu"]
    assert not result.functions
    assert set(result.opset_imports) == {""}


def test_a_branch_keeps_what_it_reads():
    body = """a = Add(x, k)
    y = If (c) <then_branch = yes () => (float[2] t) { t = Mul(a, k) },
                else_branch = no () => (float[2] e) { e = Neg(a) }>"""
    model = small_models.model(body, "bool c, float[2] x", "float[2] y", weights(k=(2,)))
    result = optimize(model).model
    for condition in (True, False):
        feed = {"c": np.array(condition), "x": np.array([1, -2], np.float32)}
        assert_same_results(model, result, feed)


def test_stale_shapes_are_forgotten():
    model = small_models.model("a = Relu(x) y = Neg(a)", "float[2, 3] x", "float[2, 3] y")
    model.graph[0].outputs[0].shape = ir.Shape([7, 7, 7])
    result = optimize(model, verify=False).model
    assert list(result.graph[0].outputs[0].shape) == [2, 3]


# --- the equivalence check ---


def breaking(change):
    """PASSES with one more, which edits the first initializer's array."""

    def wrong(model):
        value = next(iter(model.graph.initializers.values()))
        value.const_value = ir.tensor(change(value.const_value.numpy()), name=value.name)

    return (*module.PASSES, wrong)


def test_a_pass_that_changes_numbers_is_caught(monkeypatch):
    monkeypatch.setattr(module, "PASSES", breaking(lambda array: array * np.float32(1.01)))
    with pytest.raises(GateError, match=r"output 'y': clean-up changed it by \d\.\de-\d\d relative") as caught:
        optimize(net())
    assert caught.value.exit_code == 1
    assert optimize(net(), verify=False).max_relative_error is None


def test_a_pass_that_makes_numbers_nan_is_caught(monkeypatch):
    monkeypatch.setattr(module, "PASSES", breaking(lambda array: array * np.float32("nan")))
    with pytest.raises(GateError):
        optimize(net())


def test_a_pass_that_only_matters_for_bigger_batches_is_caught(monkeypatch):
    def wrong(model):
        source = model.graph.outputs[0].producer()
        first = ir.node("ReduceMax", [source.inputs[0]], {"axes": [0], "keepdims": 1}, name="wrong")
        first.outputs[0].name, first.outputs[0].type = "wrong_out", ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(source, first)
        source.replace_input_with(0, first.outputs[0])

    source = small_models.model("y = Relu(x)", "float[N, 3] x", "float[N, 3] y")
    monkeypatch.setattr(module, "PASSES", (*module.PASSES, wrong))
    with pytest.raises(GateError):
        optimize(source)


def test_a_pass_that_leaves_a_graph_that_cannot_run_is_caught(monkeypatch):
    def wrong(model):
        target = next(v for v in model.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT64)
        target.const_value = ir.tensor(np.array([7, 7, -1]), name=target.name)

    source = small_models.model("y = Reshape(x, s)", "float[N, 4] x", "float[A, B, C] y", {"s": np.array([1, 2, -1])})
    monkeypatch.setattr(module, "PASSES", (*module.PASSES, wrong))
    with pytest.raises(GateError, match="cleaned up, it does not run where it did before") as caught:
        optimize(source)
    assert "\n" not in str(caught.value)


def test_a_pass_that_leaves_no_valid_graph_is_caught(monkeypatch):
    def wrong(model):
        model.graph[1].outputs[0].name = model.graph[0].outputs[0].name

    monkeypatch.setattr(module, "PASSES", (*module.PASSES, wrong))
    with pytest.raises(ModelError, match="a second time"):
        optimize(net(), verify=False)


def test_an_open_axis_that_needs_more_than_two_is_still_verified(monkeypatch):
    """Sound models whose first convolution is longer than two samples run on neither 1 nor 2."""
    args = "y = Conv<strides = [4]>(x, w)", "float[1, 1, T] x", "float[1, 2, U] y", weights(w=(2, 1, 16))
    assert small_models.ops(optimize(small_models.model(*args)).model) == ["Conv"]
    monkeypatch.setattr(module, "PASSES", breaking(lambda array: array * np.float32(2)))
    with pytest.raises(GateError):
        optimize(small_models.model(*args))


def test_what_could_not_be_compared_is_not_called_equal():
    """No random feed is as long as the convolution."""
    model = small_models.model("y = Conv(x, w)", "float[1, 1, T] x", "float[1, 2, U] y", weights(w=(2, 1, 600)))
    assert optimize(model).max_relative_error is None
