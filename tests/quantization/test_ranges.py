"""Ranges: inside the observed limits, around zero, and never of larger squared error than min-max."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from toolchain.calibration.observation import TensorStats
from toolchain.quantization.ranges import Affine, affine, choose_range

BINS = 2048


def stats_of(values):
    """Statistics by NumPy's own histogram, to compare with the engine."""
    low, high = float(values.min()), float(values.max())
    counts = (
        np.histogram(values, BINS, (low, high))[0] if high > low else np.bincount([0], minlength=BINS) * values.size
    )
    return TensorStats(low, high, values.size, None, counts.astype(np.int64))


def fake_quantized(values, grid):
    """Quantize and dequantize, straight from the definition in ONNX."""
    scale = np.float32(grid.scale)
    integers = np.clip(np.rint(values.astype(np.float32) / scale) + grid.zero_point, 0, 255)
    return (integers - grid.zero_point) * np.float64(scale)


def squared_error(values, limits):
    return float(np.mean((fake_quantized(values, affine(*limits)) - values) ** 2))


@st.composite
def samples(draw):
    """Typical activations of networks: bell-shaped, with tails, clipped, shifted, with a few far outliers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(("normal", "laplace", "uniform", "student", "exponential")))
    draws = {
        "normal": rng.standard_normal,
        "laplace": lambda n: rng.laplace(size=n),
        "uniform": lambda n: rng.uniform(-1, 1, n),
        "student": lambda n: rng.standard_t(4, n),
        "exponential": lambda n: rng.exponential(size=n),
    }
    values = draws[kind](20000) + draw(st.sampled_from((0, 0, -1.5, 4.0)))
    if draw(st.booleans()):
        values[:3] *= draw(st.sampled_from((2, 5, 10)))
    shapes = {"as is": (-np.inf, np.inf), "relu": (0, np.inf), "clip": (-1, 6), "negative": (-np.inf, 0)}
    values = np.clip(values, *shapes[draw(st.sampled_from(sorted(shapes)))])
    return (values * 10.0 ** draw(st.integers(-6, 6))).astype(np.float32)


methods = st.sampled_from(("mse", "minmax", "percentile", "entropy"))


@given(samples(), methods, st.floats(60, 100))
@settings(max_examples=40, deadline=None)
def test_a_range_contains_zero_and_stays_within_the_observed_limits(values, method, percentile):
    low, high = choose_range(stats_of(values), method, percentile)
    assert min(float(values.min()), 0.0) <= low <= 0.0 <= high <= max(float(values.max()), 0.0)


@given(samples())
@settings(max_examples=25, deadline=None)
def test_minmax_is_exact(values):
    low, high = choose_range(stats_of(values), "minmax", 99.99)
    assert (low, high) == (min(float(values.min()), 0.0), max(float(values.max()), 0.0))
    assert choose_range(stats_of(values), "percentile", 100.0) == (low, high)


@given(samples(), st.floats(60, 99.99))
@settings(max_examples=25, deadline=None)
def test_percentiles_are_numpys_up_to_a_bin(values, percentile):
    stats = stats_of(values)
    assume(stats.maximum > stats.minimum)
    tail = (100 - percentile) / 2
    low, high = choose_range(stats, "percentile", percentile)
    bin_width = (stats.maximum - stats.minimum) / BINS
    # Order statistics at both sides of the rank: NumPy interpolates between values, the histogram within a bin.
    for found, rank in ((low, tail), (high, 100 - tail)):
        below, above = np.percentile(values, rank, method="lower"), np.percentile(values, rank, method="higher")
        exact = [min(v, 0.0) if found is low else max(v, 0.0) for v in (below - bin_width, above + bin_width)]
        assert exact[0] - 1e-6 * abs(exact[0]) <= found <= exact[1] + 1e-6 * abs(exact[1])


@given(samples())
@settings(max_examples=50, deadline=None)
def test_the_least_error_is_no_more_than_that_of_minmax(values):
    """Both by brute force on the values themselves; 2 %, because the choice knows values only to within a bin."""
    stats = stats_of(values)
    chosen = choose_range(stats, "mse", 99.99)
    assert squared_error(values, chosen) <= 1.02 * squared_error(values, choose_range(stats, "minmax", 99.99))


def test_an_outlier_is_clipped_as_far_as_it_pays():
    """n (h - l)² / (12 · 255²) + (t - h)² is least where its derivative by h is zero."""
    bulk, top = np.random.default_rng(0).uniform(-4, 4, 100_000), 40.0
    far = stats_of(np.append(bulk, top).astype(np.float32))
    low, high = choose_range(far, "mse", 99.99)
    weight = bulk.size / (12 * 255**2)
    best = (top + weight * far.minimum) / (1 + weight)
    assert low == pytest.approx(-4, abs=0.1), "a step is 0.16"
    assert high == pytest.approx(best, abs=top / 128), "the nearest of 128 candidates"
    assert high < 36


def test_nothing_is_clipped_where_there_is_no_tail():
    flat = stats_of(np.random.default_rng(0).uniform(-1, 1, 10_000).astype(np.float32))
    assert choose_range(flat, "mse", 99.99) == (flat.minimum, flat.maximum)


def test_exact_zeros_do_not_make_the_grid_finer():
    """After a Relu they are representable on any grid, so how many there are must hardly matter.

    One far value against half a million near ones is clipped at about 25 of 40; were the zeros taken for values that
    are rounded, it would be at 12, which is worse and still better than min-max.
    """
    positive = np.random.default_rng(0).uniform(0, 4, 470_000).astype(np.float32)
    positive[0] = 40.0
    alone = choose_range(stats_of(positive), "mse", 99.99)
    assert 20 < alone[1] < 30
    with_zeros = np.concatenate([positive, np.zeros(940_000, np.float32)])
    assert choose_range(stats_of(with_zeros), "mse", 99.99)[1] == pytest.approx(alone[1], rel=0.05)


def test_values_within_one_step_do_not_count_as_spread():
    """Far outliers make a step wider than all other values: clipping them gains nothing and costs much."""
    values = np.append(np.random.default_rng(0).normal(0, 1e-3, 10_000), [1000.0]).astype(np.float32)
    assert choose_range(stats_of(values), "mse", 99.99)[1] == 1000.0


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "entropy"])
@pytest.mark.parametrize("value", [0.0, 5.0, -0.25, 1e-30, 3e38])
def test_a_constant_tensor(method, value):
    values = np.full(100, value, np.float32)
    low, high = choose_range(stats_of(values), method, 99.9)
    assert (low, high) == (min(float(np.float32(value)), 0.0), max(float(np.float32(value)), 0.0))
    assert fake_quantized(values, affine(low, high)) == pytest.approx(values, rel=1e-6)


# --- entropy ---


def slow_entropy(stats):
    """Bin by bin: values outside count in the ends of P; Q is the mean of each level over its bins of P."""
    edges = np.linspace(stats.minimum, stats.maximum, len(stats.histogram) + 1)
    bins = [((a + b) / 2, float(n)) for a, b, n in zip(edges, edges[1:], stats.histogram, strict=False)]
    widest = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    found = []
    for share in np.linspace(1.0, 0.02, 128):
        low, high = (np.clip(limit, *(max(np.abs(widest)) * share * np.array([-1, 1]))) for limit in widest)
        inside = [(centre, n) for centre, n in bins if low <= centre <= high]
        if len(inside) < 2:
            break
        p = [n for _, n in inside]
        p[0] += sum(n for centre, n in bins if centre < low)
        p[-1] += sum(n for centre, n in bins if centre > high)
        levels = {}
        for (centre, n), clipped in zip(inside, p, strict=True):
            if clipped:
                levels.setdefault(round(255 * (centre - low) / (high - low)), []).append(n)
        total = sum(n for _, n in inside)
        divergence = 0.0
        for (centre, _), clipped in zip(inside, p, strict=True):
            if clipped:
                members = levels[round(255 * (centre - low) / (high - low))]
                q = sum(members) / len(members) / max(total, 1.0)
                divergence += clipped / sum(p) * np.log(clipped / sum(p) / max(q, 1e-12))
        found.append((divergence, low, high))
    return found


@given(samples(), st.sampled_from((16, 300, 700)))
@settings(max_examples=15, deadline=None)
def test_entropy_is_the_least_divergence_counted_slowly(values, bins):
    assume(values.max() > values.min())
    stats = stats_of(values)
    counts = np.histogram(values, bins, (stats.minimum, stats.maximum))[0].astype(np.int64)
    stats = TensorStats(stats.minimum, stats.maximum, stats.count, None, counts)
    low, high = choose_range(stats, "entropy", 99.99)
    candidates = slow_entropy(stats)
    mine = min(d for d, a, b in candidates if (a, b) == pytest.approx((low, high), rel=1e-9, abs=0))
    assert mine <= min(candidates)[0] + 1e-9 * (1 + abs(mine))


def test_entropy_cuts_a_far_outlier_of_a_bell():
    values = np.append(np.random.default_rng(0).standard_normal(100_000), [40.0]).astype(np.float32)
    low, high = choose_range(stats_of(values), "entropy", 99.99)
    assert 2 < high < 12
    assert -5 < low < 0


def test_entropy_keeps_what_is_evenly_spread():
    flat = stats_of(np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32))
    low, high = choose_range(flat, "entropy", 99.99)
    assert (low, high) == pytest.approx((flat.minimum, flat.maximum), rel=0.02)


# --- grids ---

limits = st.floats(-3.4e38, 3.4e38, allow_subnormal=True)


@given(limits, limits)
@example(-1e-45, 0.0)
@example(-3.4e38, 3.4e38)
@example(1.0, 2.0)
@example(-2.0, -1.0)
@settings(max_examples=200, deadline=None)
def test_a_grid_is_float32_has_zero_on_it_and_covers_its_range(low, high):
    low, high = min(low, high), max(low, high)
    grid = affine(low, high)
    assert isinstance(grid.zero_point, int)
    assert 0 <= grid.zero_point <= 255
    assert grid.scale == np.float32(grid.scale)
    assert np.isfinite(np.float32(grid.scale))
    assert grid.scale >= np.finfo(np.float32).tiny
    assert grid.low <= 0.0 <= grid.high
    assert fake_quantized(np.zeros(1), grid) == 0.0
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low > 255 * 2e-38:
        slack = grid.scale * (0.5 + 1e-4)  # zero moves by at most half a step to lie on the grid
        assert abs(grid.low - low) <= slack
        assert abs(grid.high - high) <= slack


@given(st.floats(0, 1e6), st.floats(1e-3, 1e6))
@settings(max_examples=100, deadline=None)
def test_a_clipped_value_gets_the_integer_of_the_end_of_its_grid(low, high):
    """Why a Clip may vanish: below and above its limits there is only the first and the last integer."""
    grid = affine(-low, high)

    def quantized(value):
        return np.clip(np.rint(np.float32(value) / np.float32(grid.scale)) + grid.zero_point, 0, 255)

    # The limits lie half a step beyond the grid at most, and rounding to float32 may decide a tie either way.
    assert quantized(-low) <= 1
    assert quantized(high) >= 254
    assert quantized(-10 * low - 10 * high) == 0
    assert quantized(10 * low + 10 * high) == 255


def test_one_sided_grids_start_at_zero():
    assert affine(0.0, 6.0) == Affine(float(np.float32(6 / 255)), 0)
    assert affine(-6.0, 0.0) == Affine(float(np.float32(6 / 255)), 255)
    assert affine(2.0, 6.0) == affine(0.0, 6.0)
    assert affine(0.0, 0.0).zero_point == 0
