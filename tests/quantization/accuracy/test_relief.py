"""`relieve`: small last convolutions and noisy operators become float, where the clock and the outputs allow it."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.data.calibration import open_data
from toolchain.evaluation.floor import PART_FLOOR_DB
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Recipe
from toolchain.graph import io
from toolchain.latency.race import Race
from toolchain.optimization.passes import optimize
from toolchain.quantization import races
from toolchain.quantization.accuracy import relief
from toolchain.quantization.accuracy.relief import LAST_CONVOLUTIONS
from toolchain.quantization.accuracy.steps import MIXED_PRECISION, RANGE_SEARCH
from toolchain.quantization.loop import quantize_model

DETECTOR = """
    [body] b = Conv<pads = [1, 1, 1, 1]>(x, w) [relu] r = Relu(b) [deep] d = Conv<pads = [1, 1, 1, 1]>(r, v)
    [boxes] l = Conv(d, u) p = Softmax<axis = 1>(l)
    [coarse] q = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(d) [few] m = Conv(q, t) o = Softmax<axis = 1>(m)
"""
WEIGHTS = weights(w=(64, 8, 3, 3), v=(64, 64, 3, 3), u=(8, 64, 1, 1), t=(3, 64, 1, 1))
"""[few] makes 0.03 % of the multiply-accumulates and 0.5 % of the weights, [boxes] 1.2 % of both."""


@pytest.fixture
def quantized(monkeypatch):
    """Quantize the detector with a clock that says by what factor the model is slower with operators in float."""
    monkeypatch.setattr(relief, "RELIEF_BELOW_DB", 1000.0)
    monkeypatch.setattr(relief, "MIN_FLOAT_NOISE_SHARE", 2.0)

    def made(slower=1.0, mixed=True, equalize=False):
        monkeypatch.setattr(races, "race_models", lambda *args, **kwargs: race(slower))
        monkeypatch.setattr(races, "slower_fragments", lambda *args: {})
        monkeypatch.setattr(races, "slower_whole_model", lambda *args: None)
        source = small_models.model(
            DETECTOR, "float[1, 8, 16, 16] x", "float[1, 8, 16, 16] p, float[1, 3, 4, 4] o", WEIGHTS
        )
        model = optimize(source, verify=False).model
        rng = np.random.default_rng(0)
        feeds = [{"x": rng.standard_normal((1, 8, 16, 16)).astype(np.float32)} for _ in range(8)]
        recipe = Recipe.parse({"quantize": {"mixed": mixed, "rounding": False, "equalize": equalize}})
        return quantize_model(model, open_data(feeds, io.inputs(model)), recipe)

    return made


def race(ratio):
    return Race((1e-3,) * 7, (ratio * 1e-3,) * 7)


def test_the_smallest_last_convolution_becomes_float(quantized):
    found = quantized()
    reasons = {choice.node: choice.reason for choice in found.plan.choices}
    assert reasons["few"] == LAST_CONVOLUTIONS
    assert {"body", "deep", "boxes"} <= found.plan.int8_nodes()
    [step] = [step for step in found.steps if step.name == MIXED_PRECISION]
    assert step.used


@pytest.mark.parametrize(("slower", "float_"), [(1.04, True), (1.06, False)])
def test_up_to_a_twentieth_slower(quantized, slower, float_):
    assert ("few" not in quantized(slower).plan.int8_nodes()) == float_


def test_the_recipe_can_forbid_it(quantized):
    assert "few" in quantized(mixed=False).plan.int8_nodes()


@pytest.mark.parametrize("left_db", [9.0, 11.0])
def test_it_comes_first_where_little_is_left(quantized, left_db, monkeypatch):
    monkeypatch.setattr(Judge, "fidelity_db", lambda self, model: left_db)
    steps = [step.name for step in quantized(equalize=True).steps]
    assert steps[0] == RANGE_SEARCH
    assert steps.index(MIXED_PRECISION) == (1 if left_db < PART_FLOOR_DB else len(steps) - 1)


def test_a_good_model_is_left_alone(quantized, monkeypatch):
    monkeypatch.setattr(relief, "RELIEF_BELOW_DB", 1.0)
    found = quantized()
    assert "few" in found.plan.int8_nodes()
    assert MIXED_PRECISION not in [step.name for step in found.steps]
