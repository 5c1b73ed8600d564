"""`quantize_model`: from a float model to a plan that is audited and raced."""

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from small_models import weights

from toolchain.core.errors import DataError
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io
from toolchain.latency.race import Race
from toolchain.ops import table
from toolchain.ops.cells import OwnScale
from toolchain.optimization.passes import optimize
from toolchain.quantization import planner, races
from toolchain.quantization.exactness import lattice_scales
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.selection import FOLLOWS_FLOAT

IMAGE = "float[1, 4, 8, 8] x"
RACED = Recipe.parse({"quantize": {"mixed": False}})
UNRACED = Recipe(quantize=Quantize(measure=False))
ISLAND = "[first] c = Conv(x, w) [tanh] t = Tanh(c) [second] d = Conv(t, v) [relu] y = Relu(d)"


def model(body=ISLAND, inputs=IMAGE, constants=None, outputs="y"):
    constants = weights(w=(4, 4, 3, 3), v=(4, 4, 1, 1)) if constants is None else constants
    return optimize(small_models.model(body, inputs, outputs, constants), verify=False).model


def data(source, n=3):
    rng = np.random.default_rng(0)
    specs = io.inputs(source)
    feeds = [{s.name: rng.standard_normal(s.dims).astype(s.dtype) for s in specs} for _ in range(n)]
    return open_data(feeds, specs)


def floats(quantized):
    return {choice.node: choice.reason for choice in quantized.plan.choices if not choice.int8}


def verdict(ratio):
    return Race((1e-3,) * 7, (ratio * 1e-3,) * 7)


@pytest.fixture
def raced(monkeypatch):
    """Replace the clock: ``raced.slower`` decides if int8 loses; ``raced.pairs`` keeps the pairs of models."""

    class Clock:
        slower = staticmethod(lambda first: False)

        def __init__(self):
            self.pairs = []

        def __call__(self, first, second, feed, seconds=0.1, decide=False):
            self.pairs.append((first, second, feed))
            return verdict(1.5 if self.slower(first) else 0.5)

    clock = Clock()
    monkeypatch.setattr(races, "race_models", clock)
    return clock


def names(graph_model):
    return {node.name for node in graph_model.graph}


# --- the audit ---


def test_an_ordinary_model_is_planned_and_clean():
    source = model()
    samples = data(source)
    result = quantize_model(source, samples, UNRACED)
    assert result.plan.int8_nodes() == {"first", "second", "relu"}
    assert result.audit.clean
    assert result.plan.overflow_free
    assert result.notes == ()
    assert result.model is source
    assert result.observation.samples == 3
    for encoding, dtype in (("u8", np.uint8), ("s8", np.int8)):
        zeros = {
            n.inputs[2].const_value.numpy().dtype.type
            for n in result.write(encoding).graph
            if n.op_type == "QuantizeLinear"
        }
        assert zeros == {dtype}
    feed = next(iter(samples))
    expected, found = (
        small_models.plain(source, feed)["y"],
        small_models.plain(result.write("u8"), feed, fused=True)["y"],
    )
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_what_the_runtime_does_not_fuse_is_left_float_with_the_reason(monkeypatch):
    """The table is made to promise an int8 Tanh, which onnxruntime does not have."""
    wrong = {**table.TABLE, "Tanh": table.OpRule(table.TABLE["Tanh"].channels, OwnScale(), table.TABLE["Tanh"].cost)}
    monkeypatch.setattr(table, "TABLE", wrong)
    source = model()
    result = quantize_model(source, data(source), UNRACED)
    assert floats(result) == {"tanh": planner.UNFUSED_REASON}
    assert result.audit.clean
    assert "t" in result.plan.activations, "its reader is int8 still"


def test_what_the_audit_says_decides(monkeypatch):
    """One node after another is reported as not fused; operators that only followed it become float as well."""
    real, order = planner.audit, ["second", "first"]

    def stubborn(graph, planned):
        found = real(graph, planned)
        bad = next((name for name in order if name in planned), None)
        return found if bad is None else planner.Audit((bad,), found.weights, found.boundaries, found.operators)

    monkeypatch.setattr(planner, "audit", stubborn)
    source = model()
    result = quantize_model(source, data(source), UNRACED)
    assert floats(result) == {
        "first": planner.UNFUSED_REASON,
        "second": planner.UNFUSED_REASON,
        "tanh": floats(result)["tanh"],
        "relu": FOLLOWS_FLOAT,
    }
    assert result.plan.activations == {}
    assert result.audit.clean


def test_sums_that_would_round_differently_are_left_float():
    body = """[a] a = Conv(x, w) [b] b = Conv(x, v) [c] c = Add(a, b)
    [d] d = Conv(x, u) [e] e = Conv(x, k) [f] f = Add(d, e) [g] g = Add(c, f) [y] y = Conv(g, w)"""
    source = model(body, constants=weights(**dict.fromkeys("wvuk", (4, 4, 1, 1))))
    result = quantize_model(source, data(source), UNRACED)
    assert floats(result) == {"g": lattice_scales.SCALES_FIXED}
    assert result.plan.inexact == {}
    assert result.audit.clean


@pytest.mark.parametrize("limit", ["Relu({x})", "Clip({x}, low)", "Clip({x}, low, high)", "Clip({x}, , high)"])
def test_a_limited_product_that_float_operators_read_is_int8(limit):
    """onnxruntime fuses no product whose only reader is a float Relu or Clip, so these are written as Max and Min."""
    body = f"""[g] g = Gemm(x, w, b) r = Relu(g) [h] h = Gemm(r, v, k) s = {limit.format(x="h")} t = Tanh(s)
    [m] m = MatMul(t, u) n = {limit.format(x="m")} y = Softmax(n)"""
    constants = {**weights(w=(24, 24), b=(24,), v=(24, 24), k=(24,), u=(24, 8)), "low": np.float32(-1)}
    source = model(body, "float[4, 24] x", {**constants, "high": np.float32(0.5)})
    result = quantize_model(source, data(source), UNRACED)
    assert {"g", "h", "m"} <= result.plan.int8_nodes()
    assert result.audit.clean
    assert result.audit.operators["com.microsoft::QGemm"] == 2
    feed = {"x": np.random.default_rng(9).standard_normal((4, 24)).astype(np.float32)}
    expected = small_models.plain(source, feed)["y"]
    np.testing.assert_allclose(small_models.plain(result.write("u8"), feed, fused=True)["y"], expected, atol=0.1)


def test_shapes_that_only_a_run_tells_are_taken_from_the_samples(raced):
    """A fragment of the model begins behind a Squeeze without axes; it is cut out and raced all the same."""
    body = """[first] c = Conv(x, w) p = GlobalMaxPool(c) s = Squeeze(p) t = Tanh(s) [second] g = MatMul(t, v)
    r = Softmax(g) [third] y = MatMul(r, v)"""
    source = small_models.model(body, "float[N, 4, 8, 8] x", "float[?, 4] y", weights(w=(4, 4, 3, 3), v=(4, 4)))
    for node in source.graph:
        node.name = node.name or node.outputs[0].name
    assert next(node for node in source.graph if node.op_type == "Squeeze").outputs[0].shape is None
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32)} for _ in range(8)]
    result = quantize_model(source, open_data(feeds, io.inputs(source)), RACED)
    assert {"first", "second", "third"} <= result.plan.int8_nodes()
    assert {len(pair[0].graph.inputs) for pair in raced.pairs} == {1}
    expected, found = (small_models.plain(each, feeds[0])["y"] for each in (source, result.write("u8")))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_score_can_exceed_what_was_seen_in_calibration():
    """A detector of a rare event is calibrated on ordinary data, on which all its scores are low."""
    rng = np.random.default_rng(5)
    for op, shape in (("Gemm<transB = 1>", (2, 16)), ("Conv", (2, 16, 1, 1))):
        weight = np.abs(rng.standard_normal(shape)).astype(np.float32)
        x = "float[1, 16] x" if op.startswith("Gemm") else "float[1, 16, 3, 3] x"
        source = model(f"[g] g = {op}(x, w, b) [s] y = Sigmoid(g)", x, {"w": weight, "b": np.full(2, -9, np.float32)})
        ordinary = [np.abs(rng.standard_normal(source.graph.inputs[0].shape.numpy())) * 0.4 for _ in range(12)]
        feeds = [{"x": array.astype(np.float32)} for array in ordinary]
        result = quantize_model(source, open_data(feeds, io.inputs(source)), UNRACED)
        loud = {"x": np.maximum.reduce([feed["x"] for feed in feeds])}
        expected = small_models.plain(source, loud)["y"]
        assert expected.max() > 0.5, "a score that was never seen"
        found = small_models.plain(result.write("u8"), loud)["y"]
        np.testing.assert_allclose(found, expected, atol=0.05, err_msg=op)


def test_the_recipe_keeps_operators_float():
    source = model()
    recipe = Recipe(quantize=Quantize(measure=False, keep_float=("second",)))
    result = quantize_model(source, data(source), recipe)
    assert floats(result)["second"] == "the recipe keeps it float"
    assert result.plan.int8_nodes() == {"first"}


@pytest.mark.parametrize("recipe", [Recipe(), UNRACED], ids=["raced", "unraced"])
def test_a_model_with_nothing_quantizable(recipe, raced):
    source = model("[a] a = Tanh(x) [y] y = Softmax(a)", "float[2, 3] x", {})
    result = quantize_model(source, data(source), recipe)
    assert result.plan.products == {}
    assert result.plan.activations == {}
    assert result.audit.clean
    assert result.audit.boundaries == 0
    assert set(floats(result)) == {"a", "y"}
    assert all(floats(result).values())
    assert raced.pairs == []
    feed = next(iter(data(source)))
    np.testing.assert_array_equal(
        small_models.plain(result.write("u8"), feed)["y"], small_models.plain(source, feed)["y"]
    )


def test_a_sample_that_breaks_the_model_is_named():
    source = model("[s] s = Sqrt(x) [y] y = Conv(s, w)", constants=weights(w=(4, 4, 3, 3)))
    feeds = [{"x": np.full((1, 4, 8, 8), value, np.float32)} for value in (1, -1)]
    with pytest.raises(DataError, match="sample 1: makes tensor"):
        quantize_model(source, open_data(feeds, io.inputs(source)), UNRACED)


def test_the_data_is_observed_once(monkeypatch):
    seen = []
    monkeypatch.setattr(
        planner, "observe_selection", lambda *a, _real=planner.observe_selection, **k: seen.append(1) or _real(*a, **k)
    )
    wrong = {**table.TABLE, "Tanh": table.OpRule(table.TABLE["Tanh"].channels, OwnScale(), table.TABLE["Tanh"].cost)}
    monkeypatch.setattr(table, "TABLE", wrong)
    source = model()
    quantize_model(source, data(source), UNRACED)
    assert len(seen) == 1


# --- the races ---


def test_faster_as_int8_stays_int8(raced):
    source = model()
    result = quantize_model(source, data(source), RACED)
    assert result.plan.int8_nodes() == {"first", "second", "relu"}
    assert [names(first) & {"first", "second"} for first, _, _ in raced.pairs] == [
        {"first"},
        {"second"},
        {"first", "second"},
    ], "each fragment, then the whole"


def test_fragments_race_on_the_tensors_they_meet_in_the_model(raced):
    source = model()
    samples = data(source)
    quantize_model(source, samples, RACED)
    known = small_models.every_value(ir.to_proto(source), next(iter(samples)))
    for first, second, feed in raced.pairs:
        assert [v.name for v in first.graph.inputs] == [v.name for v in second.graph.inputs] == list(feed)
        for name, array in feed.items():
            np.testing.assert_allclose(array, known[name], rtol=1e-4, atol=1e-5)


def test_fragments_of_one_form_are_raced_once(raced):
    """`a` and `b` differ in their weights only; `c` has a larger kernel."""
    body = "[a] a = Conv(x, w) s = Tanh(a) [b] b = Conv(s, v) t = Tanh(b) [c] c = Conv(t, u) y = Tanh(c)"
    source = model(body, constants=weights(w=(4, 4, 1, 1), v=(4, 4, 1, 1), u=(4, 4, 3, 3)))
    raced.slower = lambda first: names(first) == {"a"}
    result = quantize_model(source, data(source), RACED)
    parts = [names(first) & {"a", "b", "c"} for first, _, _ in raced.pairs]
    assert parts == [{"a"}, {"c"}, {"a", "b", "c"}]
    assert result.plan.int8_nodes() == {"c"}, "what was found for one holds for the other"
    assert floats(result)["a"] == floats(result)["b"] == "int8 is slower on this machine: 1500.0 µs, in float 1000.0 µs"


def test_a_fragment_that_is_slower_stays_float_with_both_times(raced):
    raced.slower = lambda first: "second" in names(first) and "first" not in names(first)
    source = model()
    result = quantize_model(source, data(source), RACED)
    assert result.plan.int8_nodes() == {"first"}
    reason = (
        "int8 is slower on this machine: 1500.0 µs, in float 1000.0 µs, measured for the 2 connected nodes around it"
    )
    assert floats(result)["second"] == floats(result)["relu"] == reason
    assert "tanh" in floats(result)
    assert result.audit.clean
    assert result.notes == ()


def test_what_is_left_float_is_logged_with_the_reason(raced, caplog):
    caplog.set_level("INFO", logger="toolchain")
    raced.slower = lambda first: "second" in names(first) and "first" not in names(first)
    source = model()
    quantize_model(source, data(source), RACED)
    [line] = [record.message for record in caplog.records if record.message.startswith("left float")]
    assert line.startswith("left float, second, relu: int8 is slower on this machine: 1500.0 µs")


def test_leaving_more_float_changes_nothing_that_is_there():
    """Reasons come in and go out with a plan: the plan they were taken from, and plans beside it, stay as they are."""
    source = model()
    quantized = quantize_model(source, data(source), UNRACED)
    before = dict(quantized.planned.reasons)
    one = quantized.leaving_float({"first": "a test"})
    other = quantized.leaving_float({"second": "another test"})
    assert quantized.planned.reasons == before == {}
    assert (one.planned.reasons, other.planned.reasons) == ({"first": "a test"}, {"second": "another test"})
    assert floats(one)["first"] == "a test"
    assert "first" in other.plan.int8_nodes()
    assert floats(one.leaving_float({"second": "both"})).keys() >= {"first", "second"}


def test_a_whole_that_is_slower_stays_float_with_a_note(raced):
    raced.slower = lambda first: {"first", "second"} <= names(first)
    source = model()
    result = quantize_model(source, data(source), RACED)
    assert result.plan.products == {}
    assert result.plan.activations == {}
    note = "the whole model is slower as int8 on this machine: 1.50 ms, in float 1.00 ms"
    assert result.notes == (note,)
    assert floats(result)["first"] == floats(result)["second"] == note
    feed = next(iter(data(source)))
    np.testing.assert_array_equal(
        small_models.plain(result.write("s8"), feed)["y"], small_models.plain(source, feed)["y"]
    )


def test_a_model_that_is_one_fragment_races_as_a_whole_only(raced):
    source = model("[a] a = Conv(x, w) [r] r = Relu(a) [y] y = Conv(r, v)")
    quantize_model(source, data(source), RACED)
    assert len(raced.pairs) == 1
    assert raced.pairs[0][0] is source


def test_without_measuring_nothing_races(raced):
    source = model()
    quantize_model(source, data(source), UNRACED)
    assert raced.pairs == []


def test_the_real_clock_gives_a_verdict():
    """Either side may win; the race must run, and its decision must give a complete and clean plan."""
    source = model()
    result = quantize_model(source, data(source), RACED)
    assert result.audit.clean
    assert {choice.node for choice in result.plan.choices} == {"first", "tanh", "second", "relu"}


def test_progress_is_called_for_every_step(raced):
    told = []
    source = model()
    quantize_model(source, data(source), RACED, progress=lambda what, done=0, total=0: told.append(what))
    steps = [
        "observing ranges",
        "observing histograms",
        "planning",
        "racing int8 against float",
        "racing the whole model",
        "trying accuracy steps",
        "second moments",
    ]
    assert list(dict.fromkeys(told)) == [*steps, "rounding weights"]
