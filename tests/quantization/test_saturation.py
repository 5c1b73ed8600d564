"""Limits that the readers of a tensor set; the oracle runs the readers."""

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import weights

from toolchain.calibration.observation import TensorStats
from toolchain.core.progress import silent
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Recipe
from toolchain.graph import io, query, run
from toolchain.quantization.planner import Planner
from toolchain.quantization.saturation import NO_LIMITS, saturated, useful_limits

READERS = [
    "y = Relu(c)",
    "y = HardSwish(c)",
    "y = HardSigmoid<alpha = 0.25, beta = 0.4>(c)",
    "y = Sigmoid(c)",
    "y = Tanh(c)",
    "y = Softplus(c)",
    "y = Clip(c, low, high)",
    "s = Sigmoid(c) y = Mul(c, s)",
    "s = HardSigmoid(c) y = Mul(s, c)",
    "a = HardSwish(c) b = HardSigmoid(c) y = Sub(a, b)",
]
UNLIMITED = ["y = Neg(c)", "y = Mul(c, c)", "a = HardSwish(c) y = Add(a, c)", "r = Sigmoid(c) s = Neg(r) y = Mul(c, s)"]


def net(readers, outputs="y"):
    constants = {"k": np.float32(1), "low": np.float32(-1), "high": np.float32(4)}
    return small_models.model(f"c = Mul(x, k) {readers}", "float[1, 4001] x", outputs, constants)


def limits_of(model):
    return useful_limits(next(value for value in query.activations(model) if value.name == "c"))


@pytest.mark.parametrize("readers", READERS)
def test_a_reader_gives_the_same_beyond_the_limits(readers):
    model = net(readers)
    low, high = limits_of(model)
    assert np.isfinite(low) or np.isfinite(high)
    x = np.linspace(-40, 40, 4001, dtype=np.float32)[None]
    engine = run.session(model)
    [plain], [limited] = (engine.run(None, {"x": values}) for values in (x, np.clip(x, low, high)))
    np.testing.assert_allclose(limited, plain, atol=2e-5)


@pytest.mark.parametrize("readers", UNLIMITED)
def test_one_reader_that_tells_all_values_apart_is_enough(readers):
    assert limits_of(net(readers)) == NO_LIMITS


def test_an_output_has_no_limits():
    assert limits_of(net("y = HardSwish(c)", outputs="y, c")) == NO_LIMITS


@given(st.integers(0, 2**32 - 1), st.floats(-4, 4), st.floats(0, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_value_is_lost_and_the_limits_are_inside(seed, low, width, open_above):
    values = np.random.default_rng(seed).standard_normal(5000)
    counts, edges = np.histogram(values, 64)
    stats = TensorStats(float(edges[0]), float(edges[-1]), 5000, None, counts.astype(np.int64))
    limits = (low, np.inf if open_above else low + width)
    found = saturated(stats, limits)
    assert found.histogram.sum() == found.count == 5000
    bin_width = edges[1] - edges[0]
    # what is observed between the limits stays inside, and at most a bin on each side beyond them
    inside = values[(values >= limits[0]) & (values <= limits[1])]
    if len(inside):
        assert found.minimum <= inside.min() + 1e-9
        assert found.maximum >= inside.max() - 1e-9
        assert found.minimum >= min(max(limits[0], stats.minimum), stats.maximum) - bin_width - 1e-9
    # bins that were not at an end count the same values as before
    np.testing.assert_allclose(np.diff(found.edges), bin_width, rtol=1e-6)


def test_a_convolution_in_front_of_hard_swish_spends_no_step_below_minus_three():
    body = "c = Conv(x, w) h = HardSwish(c) y = Conv(h, v)"
    model = small_models.model(body, "float[1, 4, 8, 8] x", "y", weights(w=(8, 4, 1, 1), v=(4, 8, 1, 1)))
    rng = np.random.default_rng(0)
    feeds = [{"x": (9 * rng.standard_normal((1, 4, 8, 8))).astype(np.float32)} for _ in range(8)]
    planner = Planner(open_data(feeds, io.inputs(model)), Recipe(), "u8", silent)
    planned = planner.audited_plan(model, {})
    grid, seen = planned.plan.activations["c"], planned.basis.observation.tensors["c"]
    assert seen.minimum < -6
    assert grid.low == pytest.approx(-3, abs=(seen.maximum - seen.minimum) / 200)
