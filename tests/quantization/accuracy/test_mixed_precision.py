"""Orders in which operators become float, and the search for a plan that is accepted."""

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from small_models import weights

from toolchain.core.progress import silent
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Recipe
from toolchain.graph import io
from toolchain.latency.race import Race
from toolchain.optimization.passes import optimize
from toolchain.quantization.accuracy import mixed_precision
from toolchain.quantization.accuracy.float_orders import FloatOrder, by_noise, from_inputs, from_outputs
from toolchain.quantization.accuracy.mixed_precision import Rating, search, trade_off_curve
from toolchain.quantization.loop import quantize_model

PLAIN = Recipe.parse({"quantize": {"measure": False, "equalize": False, "rounding": False}})
TWO_HEADS = """[a] a = Conv(x, u) [ra] p = Relu(a) [b] b = Conv(p, v) [rb] q = Relu(b)
               [h1] y = Conv(q, w) [h2] g = Conv(q, v) [rg] k = Relu(g) [h3] z = Conv(k, w)"""


def quantized_model(body=TWO_HEADS, outputs="y, z"):
    constants = weights(u=(8, 4, 1, 1), v=(8, 8, 1, 1), w=(8, 8, 1, 1))
    net = optimize(small_models.model(body, "float[1, 4, 6, 6] x", outputs, constants), verify=False).model
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(8)]
    samples = open_data(feeds, io.inputs(net))
    return quantize_model(net, samples, PLAIN), feeds[0]


@pytest.fixture
def made():
    return quantized_model()


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """Replace the clock: int8 is as fast as float."""
    monkeypatch.setattr(mixed_precision, "race", lambda *args, **kwargs: Race((1e-3,) * 7, (1e-3,) * 7))


def float_products(model: ir.Model):
    """Name the convolutions whose weight is not dequantized."""
    inputs = {node.name: node.inputs[1].producer() for node in model.graph if node.op_type == "Conv"}
    return {name for name, source in inputs.items() if source is None or source.op_type != "DequantizeLinear"}


def test_what_only_the_lost_part_needs_comes_first(made):
    quantized, _ = made
    names = [group[0] for group in from_outputs(quantized, ["z"], ["y"]).groups]
    shared = {"a", "ra", "b", "rb"}
    own = [name for name in names if name not in shared]
    assert names[: len(own)] == own
    assert own[0] == "h3"
    assert "h1" not in names


def test_forwards_is_the_order_of_the_graph(made):
    quantized, _ = made
    names = [group[0] for group in from_inputs(quantized, ["y"]).groups]
    order = [node.name for node in quantized.model.graph]
    assert names == sorted(names, key=order.index)
    assert names[0] == "a"
    assert not {"h2", "h3"} & set(names)


@pytest.mark.parametrize("needed", [set(), {"a"}, {"h3"}, {"a", "b"}, {"h1", "h3"}])
def test_the_search_finds_a_plan_with_what_is_needed_in_float(made, needed):
    """Operators that only help together: leaving one of them float changes nothing."""
    quantized, feed = made

    def rate(model):
        enough = needed <= float_products(model)
        return Rating(1.0 if enough else 0.5, enough)

    orders = [
        lambda: from_outputs(quantized, ["y", "z"], []),
        lambda: from_inputs(quantized, ["y", "z"]),
        lambda: by_noise(quantized, quantized.noise_sources()),
    ]
    found, curve = search(quantized, orders, rate, feed, silent)
    written = found.write("u8")
    assert needed <= float_products(written)
    assert len(float_products(written)) <= 2 * len(needed) + 1
    assert found.audit.clean
    assert curve[0].float_nodes == 0


def test_of_two_sufficient_plans_the_one_with_less_in_float_is_taken(made):
    quantized, feed = made
    all_of_it, last = ("a", "b", "h1", "h2", "h3"), ("h3",)
    orders = [lambda: FloatOrder((all_of_it,), ("all",)), lambda: FloatOrder((last,), ("last",))]
    found, _ = search(quantized, orders, lambda m: Rating(0, "h3" in float_products(m)), feed, silent)
    assert float_products(found.write("u8")) == {"h3"}
    reasons = {choice.node: choice.reason for choice in found.plan.choices}
    assert reasons["h3"] == "last"


@pytest.mark.parametrize(("with_two_ms", "taken"), [(0.9, {"h1", "h3"}), (1.5, {"h3"})])
def test_more_stays_float_where_that_is_better_and_as_fast(made, with_two_ms, taken, monkeypatch):
    """The score rises with every operator in float; one is sufficient, and two are as fast or slower."""
    quantized, feed = made

    def rate(model):
        left = float_products(model)
        return Rating(len(left) / 10, "h3" in left)

    times = {frozenset({"h3"}): 0.9, frozenset({"h1", "h3"}): with_two_ms}
    written = []
    monkeypatch.setattr(
        mixed_precision,
        "race",
        lambda *args, **kwargs: Race((1e-3,) * 7, (times.get(frozenset(float_products(written[-1])), 2.0) * 1e-3,) * 7),
    )
    session = mixed_precision.run.session
    monkeypatch.setattr(
        mixed_precision.run, "session", lambda model, **kw: written.append(model) or session(model, **kw)
    )
    order = FloatOrder((("h3",), ("h1",), ("b",), ("a",)), ("order",) * 4)
    found, _ = search(quantized, [lambda: order], rate, feed, silent)
    assert float_products(found.write("u8")) == taken


def test_where_nothing_is_enough_the_best_is_returned(made):
    quantized, feed = made
    rate = lambda model: Rating(len(float_products(model)) / 10, accepted=False)  # noqa: E731
    found, curve = search(quantized, [lambda: from_inputs(quantized, ["y", "z"])], rate, feed, silent)
    assert max(point.score for point in curve) == 0.5
    assert len(float_products(found.write("u8"))) == 5


def test_the_whole_curve_is_measured_on_request(made):
    quantized, feed = made
    order = by_noise(quantized, quantized.noise_sources())
    curve = trade_off_curve(quantized, order, lambda model: Rating(1.0, accepted=True), feed, silent, points=3)
    assert curve[0].float_nodes == 0
    assert curve[-1].float_nodes == len(quantized.plan.int8_nodes())
