"""Clean-up of whole models, and the check that their outputs stay the same."""

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st
from small_models import BATCH_NORM, assert_same_results, ops, weights

from toolchain.core.errors import GateError, ModelError
from toolchain.optimization import equivalence, passes
from toolchain.optimization.passes import optimize

# --- whole models ---


def net(batch="N", side="H"):
    """Convolutions with everything that exporters leave around them; both image axes are dynamic."""
    constants = {**weights(w=(2, 3, 3, 3), v=(2, 2, 1, 1), fc=(2, 4), b=(4,)), **BATCH_NORM, "half": np.float32(0.5)}
    body = """
        c = Conv<pads = [1, 1, 1, 1]>(x, w) n = BatchNormalization(c, gamma, beta, mu, var) r = Relu(n)
        d = Conv(r, v) m = BatchNormalization(d, gamma, beta, mu, var) s = Add(r, m) t = Identity(s)
        p = ReduceMean<axes = [2, 3], keepdims = 0>(t) z = MatMul(p, fc) l = Add(z, b)
        factor = Identity(half) y = Mul(l, factor)
    """
    return small_models.model(body, f"float[{batch}, 3, {side}, {side}] x", f"float[{batch}, 4] y", constants)


def test_dynamic_axes_stay_dynamic():
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


def test_a_branch_that_returns_an_outer_value_keeps_its_identity():
    """Torch's export of ``x if condition else f(x)``; onnx_ir's own pass leaves a branch without its output."""
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


def test_stale_shapes_are_inferred_again():
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

    return (*passes.PASSES, wrong)


def scaling_weights(name):
    """A pass of this name that makes the weights of all convolutions half as large again."""

    def wrong(model):
        for node in model.graph:
            if node.op_type == "Conv":
                value = node.inputs[1]
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5), name=value.name)

    wrong.__name__ = name
    return wrong


def test_a_pass_that_changes_numbers_is_caught(monkeypatch):
    monkeypatch.setattr(passes, "PASSES", breaking(lambda array: array * np.float32(1.01)))
    with pytest.raises(
        GateError, match=r"output 'y': clean-up pass `wrong` changed it by \d\.\de-\d\d relative"
    ) as caught:
        optimize(net())
    assert caught.value.exit_code == 1
    assert optimize(net(), verify=False).max_relative_error is None


@pytest.mark.parametrize("place", [0, 1, 7, 12, 20, 30, -6, -1])
def test_the_failing_pass_is_named(place, monkeypatch):
    """At any place in the list, also before passes that change the graph but not its outputs."""
    wrong = scaling_weights("scale_weights_wrongly")
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES[:place], wrong, *passes.PASSES[place:]))
    with pytest.raises(GateError, match=r"output 'y': clean-up pass `scale_weights_wrongly` changed it by"):
        optimize(net())


def test_the_first_of_two_wrong_passes_is_named(monkeypatch):
    first, second = scaling_weights("first"), scaling_weights("second")
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES[:9], first, *passes.PASSES[9:], second))
    with pytest.raises(GateError, match="clean-up pass `first` changed it"):
        optimize(net())


@given(st.data())
def test_bisection_finds_the_first_wrong_step(data):
    count = data.draw(st.integers(1, 60))
    first = data.draw(st.integers(0, count - 1))
    asked = []

    def is_right(steps):
        asked.append(steps)
        return steps <= first

    assert equivalence.first_wrong(count, is_right) == first
    assert len(asked) <= count.bit_length()


def test_every_pass_has_a_name_for_the_error():
    assert all(passes._name(one).isidentifier() for one in passes.PASSES)
    assert "apply" not in {passes._name(one) for one in passes.PASSES}


def test_the_effect_of_each_pass_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="toolchain"):
        result = optimize(net())
    assert f"clean-up: {result.nodes_before} nodes became {result.nodes_after}, largest relative" in caplog.text
    assert "clean-up pass fold_batchnorm: " in caplog.text


def test_a_pass_that_makes_numbers_nan_is_caught(monkeypatch):
    monkeypatch.setattr(passes, "PASSES", breaking(lambda array: array * np.float32("nan")))
    with pytest.raises(GateError):
        optimize(net())


def test_a_pass_that_is_wrong_for_larger_batches_only_is_caught(monkeypatch):
    def wrong(model):
        source = model.graph.outputs[0].producer()
        first = ir.node("ReduceMax", [source.inputs[0]], {"axes": [0], "keepdims": 1}, name="wrong")
        first.outputs[0].name, first.outputs[0].type = "wrong_out", ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(source, first)
        source.replace_input_with(0, first.outputs[0])

    source = small_models.model("y = Relu(x)", "float[N, 3] x", "float[N, 3] y")
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, wrong))
    with pytest.raises(GateError):
        optimize(source)


def test_a_pass_that_leaves_a_graph_that_cannot_run_is_caught(monkeypatch):
    def wrong(model):
        target = next(v for v in model.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT64)
        target.const_value = ir.tensor(np.array([7, 7, -1]), name=target.name)

    source = small_models.model("y = Reshape(x, s)", "float[N, 4] x", "float[A, B, C] y", {"s": np.array([1, 2, -1])})
    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, wrong))
    with pytest.raises(GateError, match="after clean-up pass `wrong` it no longer runs in onnxruntime") as caught:
        optimize(source)
    assert "\n" not in str(caught.value)


def test_a_pass_that_leaves_no_valid_graph_is_caught(monkeypatch):
    def wrong(model):
        model.graph[1].outputs[0].name = model.graph[0].outputs[0].name

    monkeypatch.setattr(passes, "PASSES", (*passes.PASSES, wrong))
    with pytest.raises(ModelError, match="a second time"):
        optimize(net(), verify=False)


def test_a_dynamic_axis_that_needs_more_than_two_is_verified(monkeypatch):
    """Sound models whose first convolution is longer than two samples run on neither 1 nor 2."""
    args = "y = Conv<strides = [4]>(x, w)", "float[1, 1, T] x", "float[1, 2, U] y", weights(w=(2, 1, 16))
    assert small_models.ops(optimize(small_models.model(*args)).model) == ["Conv"]
    monkeypatch.setattr(passes, "PASSES", breaking(lambda array: array * np.float32(2)))
    with pytest.raises(GateError):
        optimize(small_models.model(*args))


def test_a_model_that_could_not_be_compared_has_no_error_figure():
    """No random feed is as long as the convolution."""
    model = small_models.model("y = Conv(x, w)", "float[1, 1, T] x", "float[1, 2, U] y", weights(w=(2, 1, 600)))
    assert optimize(model).max_relative_error is None
