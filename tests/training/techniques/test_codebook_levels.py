"""K-means on a line and levels of powers, against brute force and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from toolchain.training.techniques.codebook_levels import (
    MIN_RELATIVE_IMPORTANCE,
    best_scales,
    kmeans,
    nearest,
    power_levels,
    start_centres,
)

VALUES = arrays.arrays(np.float64, st.integers(3, 9), elements=st.integers(-50, 50).map(lambda n: n / 8))


def error(values, centres, weights):
    return float((weights * ((values[:, None] - centres) ** 2).min(1)).sum())


def partitions(values, weights, count):
    """The least error over all ways to cut the sorted values into intervals."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), count - 1):
        parts = list(zip(np.split(values, cuts), np.split(weights, cuts), strict=True))
        centres = [float((v * w).sum() / w.sum()) for v, w in parts]
        best = min(best, sum(float((w * (v - c) ** 2).sum()) for (v, w), c in zip(parts, centres, strict=True)))
    return best


@given(VALUES, st.integers(2, 3), st.integers(0, 99), st.sampled_from(["linear", "quantile"]))
@settings(deadline=None)
def test_kmeans_never_gets_worse_and_stays_above_the_optimum(values, count, seed, start):
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(values))
    first = start_centres(values, count, start)
    found = kmeans(values, first, weights)
    slack = 1e-9 * (1 + float((values**2).sum()))
    assert partitions(values, weights, count) - slack <= error(values, found, weights)
    assert error(values, found, weights) <= error(values, first, weights) + slack
    np.testing.assert_array_equal(kmeans(values, found, weights), found)
    for j in range(count):
        mine = nearest(values, found) == j
        if mine.any():
            assert found[j] == pytest.approx(np.average(values[mine], weights=weights[mine]), abs=1e-9)


def test_separate_clusters_are_found():
    values = np.concatenate([centre + np.linspace(-0.1, 0.1, 5) for centre in (-3, 0, 1, 7)])
    weights = np.random.default_rng(0).uniform(0.5, 2, len(values))
    found = kmeans(np.random.default_rng(1).permutation(values), start_centres(values, 4, "quantile"))
    np.testing.assert_allclose(found, [-3, 0, 1, 7], atol=1e-12)
    found = kmeans(values, start_centres(values, 4, "quantile"), weights)
    assert error(values, found, weights) == pytest.approx(partitions(values, weights, 4))


def test_weights_attract_centres_and_every_value_counts():
    values = np.array([0.0, 1.0, 10.0])
    np.testing.assert_allclose(kmeans(values, np.array([0.0, 10.0]), np.array([1.0, 3.0, 1.0])), [0.75, 10])
    left, right = kmeans(values, np.array([0.0, 10.0]), np.array([0.0, 3.0, 0.0]))
    assert left == pytest.approx(3 / (3 + MIN_RELATIVE_IMPORTANCE))
    assert right == pytest.approx(10)


def test_kmeans_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    for count, start in itertools.product((2, 4, 16), ("linear", "quantile")):
        values, weights = rng.standard_normal(1000), rng.uniform(0.1, 2, 1000)
        first = start_centres(values, count, start)
        theirs = sklearn.KMeans(count, init=first[:, None], n_init=1, tol=0, max_iter=1000, algorithm="lloyd")
        theirs.fit(values[:, None], sample_weight=weights)
        np.testing.assert_allclose(kmeans(values, first, weights), theirs.cluster_centers_[:, 0], rtol=1e-6, atol=1e-8)


def test_starts():
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 100])
    np.testing.assert_array_equal(start_centres(values, 3, "linear"), [0, 50, 100])
    np.testing.assert_allclose(start_centres(values, 2, "quantile"), [1.75, 5.25])


def test_nearest_is_the_nearest():
    levels, values = power_levels(4, 2), np.random.default_rng(0).standard_normal((20, 30))
    expected = np.abs(values[..., None] - levels).argmin(-1)
    np.testing.assert_array_equal(nearest(values, levels), expected)


# The sums of two of Li et al. 2020, equation 5, for 4 bits of magnitude.
FIRST, SECOND = (0, 1, 2**-2, 2**-4), (0, 2**-1, 2**-3, 2**-5)


def test_levels_are_powers_and_sums_of_two():
    np.testing.assert_array_equal(power_levels(2, 1), [-1, 0, 1])
    np.testing.assert_array_equal(power_levels(3, 1), [-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    sums = sorted(a + b for a in FIRST for b in SECOND)
    np.testing.assert_array_equal(power_levels(5, 2)[15:], sums)
    for terms, most in ((1, 6), (2, 8)):
        for bits in range(2, most + 1):
            levels = power_levels(bits, terms)
            assert len(levels) == 2**bits - 1
            assert (np.diff(levels) > 0).all()
            np.testing.assert_array_equal(levels, -levels[::-1])
            for level in levels[2 ** (bits - 1) :]:
                assert (level.as_integer_ratio()[0]).bit_count() <= terms, "so many bits are set"


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_scale_is_near_the_best_of_a_fine_search(bits, terms):
    rng, levels = np.random.default_rng(0), power_levels(bits, terms)
    rows, weights = rng.standard_normal((6, 50)) * rng.uniform(1e-3, 10, (6, 1)), rng.uniform(0.1, 2, (6, 50))

    def errors(scales):
        rounded = levels[nearest(rows / scales[:, None], levels)] * scales[:, None]
        return (weights * (rows - rounded) ** 2).sum(1)

    found = errors(best_scales(rows, levels, weights))
    fine = np.min([errors(np.abs(rows).max(1) * factor / levels[-1]) for factor in np.geomspace(0.2, 2, 2000)], axis=0)
    assert (found <= 1.1 * fine).all()


def test_a_row_of_zeros_has_a_scale():
    scales = best_scales(np.array([[0.0, 0], [2, -2]]), power_levels(3, 1))
    np.testing.assert_allclose(scales[0], 1)
    np.testing.assert_allclose(np.abs(np.log2(scales[1] / 2)) % 1, 0, atol=1e-12)
