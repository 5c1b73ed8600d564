"""Importance: obs against least squares computed for every subset, and the usual criteria."""

from itertools import combinations

import numpy as np
import pytest
from small_models import model, weights

from toolchain.channels.cut import separate
from toolchain.channels.groups import by_name, groups
from toolchain.channels.layout import layout
from toolchain.pruning.importance import (
    ChannelMoments,
    Consumer,
    consumers,
    fold_removed,
    producer_weights,
    rank_channels,
)

rng = np.random.default_rng(0)


def channels(places=6, samples=400):
    """Correlated channels and their moments."""
    x = rng.standard_normal((samples, places)) @ rng.standard_normal((places, places))
    return x, ChannelMoments(x.T @ x / samples, x.mean(axis=0))


def residual(x, weight, kept):
    """The least squared error of x W from the kept columns alone, by NumPy's own solver."""
    target = x @ weight
    solution = np.linalg.lstsq(x[:, kept], target, rcond=None)[0]
    return float(((target - x[:, kept] @ solution) ** 2).sum())


def reading(body, inputs, outputs, constants, name):
    """The group of a small model, its consumers and its producers."""
    net = separate(model(body, inputs, outputs, constants))
    found = layout(net)
    group = by_name(groups(net, found))[name]
    return group, consumers(net, found, group), producer_weights(net, found, group)


MLP = "a = Gemm<transB = 1>(x, w, b) h = Relu(a) y = Gemm<transB = 1>(h, v)"


def test_a_consumer_sums_over_the_group():
    w = weights(w=(6, 3), b=(6,), v=(2, 6))
    _group, (reader,), made = reading(MLP, "float[n, 3] x", "float[n, 2] y", w, "a")
    assert (reader.reads, reader.axis, reader.positions.tolist()) == ("h", 1, list(range(6)))
    np.testing.assert_array_equal(reader.weight, w["v"].T)
    np.testing.assert_array_equal(made["w"], np.abs(w["w"]))


def test_the_first_channel_is_the_one_whose_loss_the_others_compensate_best():
    x, moments = channels()
    weight = rng.standard_normal((6, 3))
    group, _, _ = reading(MLP, "float[n, 3] x", "float[n, 2] y", weights(w=(6, 3), b=(6,), v=(2, 6)), "a")
    reader = Consumer("y", "h", 1, np.arange(6), weight)
    order = rank_channels(group, [reader], {("h", 1): moments}, "obs")
    losses = [residual(x, weight, [i for i in range(6) if i != gone]) for gone in range(6)]
    assert order[0] == np.argmin(losses)
    assert sorted(order) == list(range(6))


def test_greedy_obs_is_near_the_best_of_all_subsets():
    x, moments = channels(7)
    weight = rng.standard_normal((7, 4))
    group, _, _ = reading(MLP, "float[n, 3] x", "float[n, 2] y", weights(w=(7, 3), b=(7,), v=(2, 7)), "a")
    order = rank_channels(group, [Consumer("y", "h", 1, np.arange(7), weight)], {("h", 1): moments}, "obs")
    every = sorted(residual(x, weight, list(kept)) for kept in combinations(range(7), 4))
    assert residual(x, weight, sorted(order[3:])) <= every[len(every) // 5]


def test_a_channel_may_be_a_block():
    """Three heads of two: the whole head goes, and it is the one whose removal costs least."""
    x, moments = channels()
    weight = rng.standard_normal((6, 3))
    group, _, _ = reading(MLP, "float[n, 3] x", "float[n, 2] y", weights(w=(3, 3), b=(3,), v=(2, 3)), "a")
    order = rank_channels(
        group, [Consumer("y", "h", 1, np.repeat(np.arange(3), 2), weight)], {("h", 1): moments}, "obs"
    )
    losses = [residual(x, weight, [i for i in range(6) if i // 2 != gone]) for gone in range(3)]
    assert order[0] == np.argmin(losses)


def test_a_copied_channel_is_the_least_important():
    x, _ = channels(4)
    x = np.concatenate([x, x[:, :1]], axis=1)
    moments = ChannelMoments(x.T @ x / len(x), x.mean(axis=0))
    weight = rng.standard_normal((5, 3))
    group, _, _ = reading(MLP, "float[n, 3] x", "float[n, 2] y", weights(w=(5, 3), b=(5,), v=(2, 5)), "a")
    order = rank_channels(group, [Consumer("y", "h", 1, np.arange(5), weight)], {("h", 1): moments}, "obs")
    assert order[0] in (0, 4)


def test_folding_is_least_squares():
    x, moments = channels()
    weight, kept = rng.standard_normal((6, 3)), np.array([0, 2, 5])
    folded = fold_removed(weight, moments.second, kept)
    folded_error = float(((x @ weight - x[:, kept] @ folded) ** 2).sum())
    assert folded_error == pytest.approx(residual(x, weight, kept), rel=1e-2)


@pytest.mark.parametrize("criterion", ["l1", "l2", "activation"])
def test_a_channel_of_zeros_is_the_least_important(criterion):
    w = weights(w=(6, 3), b=(6,), v=(2, 6))
    w["w"][4], w["b"][4], w["v"][:, 4] = 0, 0, 0
    group, read, made = reading(MLP, "float[n, 3] x", "float[n, 2] y", w, "a")
    _, moments = channels()
    assert rank_channels(group, read, {("h", 1): moments}, criterion, producers=made)[0] == 4


def test_random_follows_its_seed():
    group, read, _ = reading(MLP, "float[n, 3] x", "float[n, 2] y", weights(w=(64, 3), b=(64,), v=(2, 64)), "a")
    first, again, other = (rank_channels(group, read, {}, "random", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
