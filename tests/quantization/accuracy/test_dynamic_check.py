"""Dynamic int8 in the loop: kept where it is accurate and faster, otherwise left float with the reason."""

import numpy as np
import pytest
import small_models

from toolchain.api import verify
from toolchain.data.calibration import open_data
from toolchain.formats.manifest import Exactness, Manifest, NodePrecision
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io
from toolchain.latency.race import Race
from toolchain.optimization.passes import optimize
from toolchain.quantization import races
from toolchain.quantization.accuracy.dynamic_check import MAX_RELATIVE_ERROR, _error_share, inaccurate_dynamic_nodes
from toolchain.quantization.loop import quantize_model

STEPS, WIDTH, HIDDEN = 12, 8, 8
UNRACED = Recipe(quantize=Quantize(measure=False))


@pytest.fixture
def source():
    body = f"[lstm] , h = LSTM<hidden_size = {HIDDEN}>(x, w, r) [flat] f = Flatten(h) [out] y = Gemm(f, v)"
    shapes = {"w": (1, 4 * HIDDEN, WIDTH), "r": (1, 4 * HIDDEN, HIDDEN), "v": (HIDDEN, 3)}
    model = small_models.model(body, f"float[{STEPS}, 1, {WIDTH}] x", "float[?, ?] y", small_models.weights(**shapes))
    return optimize(model, verify=False).model


def data(source, spread=0.0, n=4):
    """spread: standard deviation of the logarithm of the samples' magnitudes."""
    rng = np.random.default_rng(0)
    shape = (STEPS, 1, WIDTH)
    feeds = [{"x": rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape))} for _ in range(n)]
    return open_data([{"x": feed["x"].astype(np.float32)} for feed in feeds], io.inputs(source))


def precision(quantized):
    return {choice.node: (choice.precision, choice.reason) for choice in quantized.plan.choices}


def test_an_ordinary_input_is_accurate_enough(source):
    quantized = quantize_model(source, data(source), UNRACED)
    assert precision(quantized)["lstm"][0] == "int8 dynamic"
    assert inaccurate_dynamic_nodes(source, quantized.plan, "u8", data(source)) == {}


def test_an_input_of_many_magnitudes_is_not(source):
    """Most of the input lies below one step of its largest number, and large weights amplify that loss."""
    source.graph.initializers["w"].const_value = small_models.ir.tensor(
        small_models.weights(w=(1, 4 * HIDDEN, WIDTH))["w"] * 30, name="w"
    )
    quantized = quantize_model(source, data(source, spread=4), UNRACED)
    way, reason = precision(quantized)["lstm"]
    assert way == "float"
    assert f"at most {MAX_RELATIVE_ERROR:.0%} is accepted" in reason
    assert quantized.plan.recurrent == {}


def test_a_constant_result_is_lost_however_close_to_the_mean_it_is():
    """The error counts against the deviation of each feature, not against the size of its mean."""
    rng = np.random.default_rng(0)
    exact = np.array([100.0, -50.0]) + rng.standard_normal((500, 2))
    constant = np.broadcast_to(exact.mean(axis=0), exact.shape)
    assert _error_share(exact, constant) == pytest.approx(1)
    assert _error_share(exact, exact + 0.1 * rng.standard_normal((500, 2))) == pytest.approx(0.01, rel=0.2)
    assert _error_share(constant, 1.1 * constant) == pytest.approx(0.01), "a constant output is judged by its size"


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "int8 dynamic"), (1.5, "float")])
def test_the_race_decides(source, monkeypatch, ratio, expected):
    monkeypatch.setattr(races, "race_models", lambda *a, **k: Race((1e-3,) * 7, (ratio * 1e-3,) * 7))
    way, reason = precision(quantize_model(source, data(source), Recipe()))["lstm"]
    assert way == expected
    assert ("int8 is slower on this machine" in reason) == (ratio > 1)


def test_a_whole_that_is_slower_leaves_nothing_dynamic(source, monkeypatch):
    def race(first, *_, **__):
        return Race((1e-3,) * 7, ((1.5e-3 if len(list(first.graph)) > 2 else 0.5e-3),) * 7)

    monkeypatch.setattr(races, "race_models", race)
    quantized = quantize_model(source, data(source), Recipe())
    assert {way for way, _ in precision(quantized).values()} == {"float"}
    assert quantized.notes


@pytest.mark.parametrize(
    ("precisions", "exceptions", "expected"),
    [
        (["int8"], (), 0.0),
        (["int8", "float"], ("Softmax",), verify.FLOAT_TOLERANCE),
        (["int8 dynamic", "float"], ("LSTM",), verify.DYNAMIC_TOLERANCE),
        (["int8 storage"], (), 0.0),
    ],
)
def test_other_processors_may_differ_by_what_the_precision_allows(precisions, exceptions, expected):
    entries = tuple(NodePrecision(node=p, op="X", precision=p) for p in precisions)
    exactness = Exactness(activations="u8", overflow_free=True, exceptions=exceptions)
    manifest = Manifest.model_construct(precision=entries, exactness=exactness)
    assert verify._tolerance(manifest) == expected
