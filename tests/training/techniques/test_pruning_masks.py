"""Masks against NumPy, schedules against their formula, and cutting against masking."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model, plain, weights

torch = pytest.importorskip("torch")

from toolchain.channels.cut import apply_cuts, separate
from toolchain.training.engine.torch_graph import TorchGraph
from toolchain.training.prune_step import channel_groups
from toolchain.training.techniques.pruning_masks import ChannelGroup, MaskConfig, PruningMasks, WeightAxis, lamp_scores


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def kept(technique, tensors, share=1.0):
    technique.advance(tensors, share)
    return {name: mask.numpy() for name, mask in technique.kept.items()}


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 10, width=32)))
def test_lamp_scores_divide_by_the_sum_of_larger_ones(score):
    got = lamp_scores(torch.from_numpy(score)).numpy()
    order = np.argsort(score, kind="stable")
    for place, i in enumerate(order):
        rest = score[order[place:]].astype(np.float64).sum()
        assert got[i] == pytest.approx(score[i] / max(rest, 1e-20), rel=1e-4, abs=1e-6)


def test_the_schedule_is_that_of_zhu_and_gupta():
    config = MaskConfig(0.8, begin=0.2, end=0.6)
    assert config.amount_at(0.1) == 0
    assert config.amount_at(0.4) == pytest.approx(0.8 * (1 - 0.5**3))
    assert config.amount_at(0.6) == config.amount_at(1.0) == 0.8
    assert MaskConfig(0.5).amount_at(0.0) == 0.5


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "l1", "l2"])
def test_the_wanted_number_of_weights_is_masked(criterion, amount):
    tensors = {"a": drawn(8, 4, 3, 3), "b": 100 * drawn(6, 8, seed=1)}
    stay = kept(PruningMasks(["a", "b"], MaskConfig(amount, criterion)), tensors)
    total = sum(mask.size for mask in stay.values())
    assert sum(int(mask.sum()) for mask in stay.values()) == total - round(amount * total)
    assert all(mask.any() for mask in stay.values())  # no tensor dies of its scale


def test_in_one_tensor_the_smallest_are_masked():
    tensors = {"a": drawn(5, 7)}
    (stay,) = kept(PruningMasks(["a"], MaskConfig(0.6)), tensors).values()
    sizes = tensors["a"].abs().numpy()
    assert sizes[~stay].max() <= sizes[stay].min()


def test_the_threshold_is_in_root_mean_squares():
    tensors = {"a": drawn(50, 7), "b": 0.01 * drawn(9, 9, seed=1)}
    for name, stay in kept(PruningMasks(["a", "b"], MaskConfig(0.5, "threshold")), tensors).items():
        array = tensors[name].numpy()
        assert np.array_equal(stay, np.abs(array) >= 0.5 * np.sqrt((array**2).mean()))


def test_two_of_four_are_kept_along_the_summed_axis():
    tensors = {"a": drawn(6, 10, 3)}
    (stay,) = kept(PruningMasks(["a"], MaskConfig(0.5), pattern=(2, 4), axes={"a": 1}), tensors).values()
    assert (stay[:, :8].reshape(6, 2, 4, 3).sum(2) == 2).all()
    assert stay[:, 8:].all()
    sizes = tensors["a"].abs().numpy()[:, :4]
    assert (np.where(stay[:, :4], sizes, np.inf).min(1) >= np.where(stay[:, :4], 0, sizes).max(1)).all()


def test_masked_weights_return_only_with_revival():
    first, second = {"a": torch.tensor([3.0, 1.0, 2.0, 5.0])[None]}, {"a": torch.tensor([3.0, 9.0, 2.0, 5.0])[None]}
    for revive, expected in ((False, [True, False, False, True]), (True, [False, True, False, True])):
        technique = PruningMasks(["a"], MaskConfig(0.5, begin=0.0, end=0.9, revive=revive))
        technique.advance(first, 0.2)  # one of four: the second
        assert kept(technique, second)["a"].tolist() == [expected]


def test_masked_weights_get_gradients_only_with_revival():
    for revive in (False, True):
        weight = torch.tensor([[3.0, 1.0]], requires_grad=True)
        technique = PruningMasks(["a"], MaskConfig(0.5, revive=revive))
        technique.advance({"a": weight.detach()}, 0.0)
        seen = technique.transforms()["a"](weight)
        assert seen.tolist() == [[3.0, 0.0]]
        seen.sum().backward()
        assert weight.grad.tolist() == [[1.0, float(revive)]]


def test_the_regularizers_are_proximal_steps():
    tensors = {"a": drawn(4, 6)}
    a = tensors["a"].numpy()
    step, unit = 0.1 * 0.2, np.sqrt((a**2).mean())
    l1 = PruningMasks(["a"], MaskConfig(0.5, "l1", begin=0.4, end=0.4)).proximal(tensors, 0.1)["a"].numpy()
    assert l1 == pytest.approx(np.sign(a) * np.maximum(np.abs(a) - step * unit, 0), abs=1e-6)
    l2 = PruningMasks(["a"], MaskConfig(0.5, "l2", begin=0.4, end=0.4)).proximal(tensors, 0.1)["a"].numpy()
    assert l2 == pytest.approx(a / (1 + step), abs=1e-6)
    axis = WeightAxis("a", 0, np.arange(4), 1)
    group = ChannelGroup("g", 4, (axis,), (axis,))
    lasso = PruningMasks([group], MaskConfig(0.5, "l2", begin=0.4, end=0.4)).proximal(tensors, 0.1)["a"].numpy()
    rms = np.sqrt((a**2).mean(1) / (a**2).mean())
    shrunk = np.maximum(1 - step * np.sqrt((rms**2).mean()) / rms, 0)
    assert lasso == pytest.approx(a * shrunk[:, None], abs=1e-6)
    assert PruningMasks(["a"], MaskConfig(0.5)).proximal(tensors, 0.1) == {}


def test_a_channel_is_scored_by_producers_and_consumers():
    """A factor that moves from one to the other changes nothing, and a normalized channel is as large as its scale."""
    tensors = {"made": drawn(4, 6), "read": drawn(5, 4, seed=1), "gain": torch.tensor([1.0, 4.0, 2.0, 3.0])}
    made, read = WeightAxis("made", 0, np.arange(4), 1), WeightAxis("read", 1, np.arange(4), 0)
    (stay,) = kept(
        PruningMasks([ChannelGroup("g", 4, (made,), (read,))], MaskConfig(0.5, multiple=1)), tensors
    ).values()
    worth = np.linalg.norm(tensors["made"].numpy(), axis=1) * np.linalg.norm(tensors["read"].numpy(), axis=0)
    assert np.array_equal(stay, worth >= np.sort(worth)[2])
    factor = torch.tensor([100.0, 0.01, 1.0, 10.0])
    moved = {**tensors, "made": tensors["made"] * factor[:, None], "read": tensors["read"] / factor}
    (again,) = kept(PruningMasks([ChannelGroup("g", 4, (made,), (read,))], MaskConfig(0.5, multiple=1)), moved).values()
    assert np.array_equal(stay, again)
    gain = WeightAxis("gain", 0, np.arange(4), 0, is_norm_scale=True)
    normalized = {**tensors, "read": torch.ones(5, 4)}
    (stay,) = kept(
        PruningMasks([ChannelGroup("g", 4, (made, gain), (read,))], MaskConfig(0.5, multiple=1)), normalized
    ).values()
    assert stay.tolist() == [False, True, False, True]


NET = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Sigmoid (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Add (c, r)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm (f, w3)
"""


def net():
    arrays = weights(w1=(16, 3, 3, 3), b1=16, w2=(16, 16, 3, 3), b2=16, w3=(16, 5))
    return separate(model(NET, "float[n,3,8,8] x", "float[n,5] y", arrays))


def test_masking_channels_is_cutting_them():
    """f(0) of the sigmoid would leak, were channels masked where they are made."""
    whole = net()
    graph = TorchGraph(whole)
    technique = PruningMasks(channel_groups(whole), MaskConfig(0.4, multiple=2))
    technique.advance({n: w.detach() for n, w in graph.parameters.items()}, 0.0)
    x = drawn(2, 3, 8, 8)
    with torch.no_grad():
        masked = graph({"x": x}, ["y"], technique.transforms())["y"].numpy()
    cuts = {name: np.flatnonzero(mask.numpy()).tolist() for name, mask in technique.kept.items()}
    assert {len(places) for places in cuts.values()} == {10}
    small = apply_cuts(technique.finish(graph.write_back()), cuts)
    assert plain(small, {"x": x.numpy()})["y"] == pytest.approx(masked, abs=1e-4)
    assert not np.allclose(masked, plain(whole, {"x": x.numpy()})["y"], atol=1e-2)


def test_its_state_can_be_restored():
    tensors = {"a": drawn(8, 8)}
    first, second = (PruningMasks(["a"], MaskConfig(0.5, begin=0.0, end=0.9)) for _ in range(2))
    first.advance(tensors, 0.5)
    second.restore(first.state())
    later = {"a": tensors["a"] + 0.3 * drawn(8, 8, seed=2)}
    for technique in (first, second):
        technique.advance(later, 1.0)
    assert torch.equal(first.kept["a"], second.kept["a"])
