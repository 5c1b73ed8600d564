"""The streaming engine, compared with NumPy on the same activations kept in memory."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observed import everything, image_feeds, integers, kept_whole, net, opened

from toolchain.calibration import statistics
from toolchain.calibration.statistics import observe
from toolchain.core.errors import DataError
from toolchain.graph import run


def assert_histogram(stats, values):
    """Counts equal those of exact edges, except for values so near an edge that float32 cannot tell the side.

    The engine bins (x - low) · bins / (high - low) in float32: three roundings of 2^-24 relative to at most the whole
    range, and one of the factor. So a value farther than range · 2^-21 from an edge is on its exact side.
    """
    low, high, bins = stats.minimum, stats.maximum, len(stats.histogram)
    flat = np.sort(np.concatenate([np.ravel(v) for v in values]).astype(np.float64))
    assert stats.histogram.sum() == stats.count == flat.size
    edges, slack = np.linspace(low, high, bins + 1)[1:-1], (high - low) * 2.0**-21
    seen = np.cumsum(stats.histogram)[:-1]
    assert (np.searchsorted(flat, edges - slack, side="left") <= seen).all()
    assert (seen <= np.searchsorted(flat, edges + slack, side="right")).all()


# --- against NumPy ---


def test_limits_means_and_counts_of_every_tensor():
    model, feeds = net(), list(image_feeds())
    axes = {"x": 1, "a": 1, "b": 1, "f": 1, "y": -1, "e": 3 - 2}
    found = observe(model, opened(model, feeds), everything(model, axes), bins=64)
    whole = kept_whole(model, feeds)
    assert set(found.tensors) == set(whole) == {"x", "a", "b", "c", "d", "e", "p", "f", "y"}
    assert found.samples == len(feeds)
    for name, arrays in whole.items():
        stats, flat = found.tensors[name], np.concatenate([a.ravel() for a in arrays])
        assert (stats.minimum, stats.maximum, stats.count) == (flat.min(), flat.max(), flat.size), name
        if name in axes:
            channels = np.concatenate([np.moveaxis(a, 1, 0).reshape(a.shape[1], -1) for a in arrays], axis=1)
            np.testing.assert_allclose(stats.channels.mean, channels.mean(axis=1, dtype=np.float64), rtol=1e-12)
        else:
            assert stats.channels is None
        assert_histogram(stats, arrays)


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_limits_and_squares_of_every_channel(opset):
    """Any axis of tensors with one to four axes; some channels have no value above or below zero."""
    model = small_models.model(
        "a = Conv(x, w) b = Relu(a) c = Neg(b) f = Flatten(c) v = ReduceMean<axes = [0], keepdims = 0>(f) y = Abs(v)"
        if opset < 18
        else "a = Conv(x, w) b = Relu(a) c = Neg(b) f = Flatten(c) v = ReduceMean<keepdims = 0>(f, zero) y = Abs(v)",
        "float[N, 2, 3, 4] x",
        "y",
        {**integers(0, w=(5, 2, 1, 1)), **({"zero": np.array([0])} if opset >= 18 else {})},
        opset=opset,
    )
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.integers(-4, 5, (1 + i, 2, 3, 4)).astype(np.float32)} for i in range(4)]
    axes = {"x": 2, "a": 1, "b": 3, "c": -1, "f": 1, "y": 0, "v": -1}
    found = observe(model, opened(model, feeds), axes)
    for name, arrays in kept_whole(model, feeds).items():
        axis, channels = axes[name], found.tensors[name].channels
        rows = np.concatenate([np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays], axis=1)
        rows = rows.astype(np.float64)
        np.testing.assert_array_equal(channels.minimum, rows.min(axis=1), err_msg=name)
        np.testing.assert_array_equal(channels.maximum, rows.max(axis=1), err_msg=name)
        np.testing.assert_allclose(channels.mean, rows.mean(axis=1), rtol=1e-6, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(channels.square, (rows**2).mean(axis=1), rtol=1e-6, err_msg=name)
        assert found.tensors[name].minimum == rows.min()
        assert found.tensors[name].maximum == rows.max()


def test_histograms_are_numpys_where_edges_are_float32_numbers():
    """Integers over [-2^k, 2^k] in 2^k bins: every edge is exact, so the counts must be exact."""
    model = small_models.model("y = Relu(x)", "float[N, 4] x", "float[N, 4] y")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.integers(-64, 65, (500, 4)).astype(np.float32)} for _ in range(3)]
    found = observe(model, opened(model, feeds), {"x": None, "y": None}, bins=32)
    for name, arrays in kept_whole(model, feeds).items():
        counts, edges = np.histogram(np.concatenate(arrays), bins=32)
        np.testing.assert_array_equal(found.tensors[name].histogram, counts)
        np.testing.assert_array_equal(found.tensors[name].edges, edges)


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(hnp.arrays(np.float32, st.integers(1, 300), elements=finite), st.integers(2, 300))
@settings(max_examples=50, deadline=None)
def test_counting_any_floats(array, bins):
    """Also where the range overflows float32, or is so small that a bin's reciprocal does."""
    counts = np.zeros(bins, np.int64)
    low, high = float(array.min()), float(array.max())
    statistics.count_into(counts, array, low, high)
    assert counts.sum() == array.size
    if low == high:
        assert counts[0] == array.size
    else:
        assert counts[0] >= (array == low).sum()
        assert counts[-1] >= (array == high).sum()
        stats = statistics.TensorStats(low, high, array.size, None, counts)
        assert_histogram(stats, [array])


def test_counting_goes_on_over_chunks(monkeypatch):
    array = np.random.default_rng(0).standard_normal((7, 100)).astype(np.float32)
    whole, parts = np.zeros(50, np.int64), np.zeros(50, np.int64)
    statistics.count_into(whole, array, array.min(), array.max())
    monkeypatch.setattr(statistics, "HISTOGRAM_CHUNK_ELEMENTS", 64)
    statistics.count_into(parts, array, array.min(), array.max())
    np.testing.assert_array_equal(whole, parts)


def test_of_large_tensors_evenly_spread_elements_are_counted(monkeypatch):
    """4 · 84 elements are more than two times 150; 3 and 4 divide the 12 columns, so every fifth element is counted."""
    monkeypatch.setattr(statistics, "MAX_COUNTED_ELEMENTS", 150)
    model = small_models.model("y = Relu(x)", "float[N, 7, 12] x", "float[N, 7, 12] y")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.integers(-64, 65, (1, 7, 12)).astype(np.float32)} for _ in range(4)]
    found = observe(model, opened(model, feeds), {"x": 1, "y": None}, bins=32)
    for name, arrays in kept_whole(model, feeds).items():
        stats = found.tensors[name]
        counted = np.concatenate([array.ravel()[::5] for array in arrays])
        expected, _ = np.histogram(counted, bins=32, range=(stats.minimum, stats.maximum))
        np.testing.assert_array_equal(stats.histogram, expected)
        assert stats.count == counted.size
        assert (stats.minimum, stats.maximum) == (np.min(arrays), np.max(arrays)), "limits are those of all elements"


def test_a_constant_tensor_is_counted_in_one_bin():
    model = small_models.model("y = Add(x, k)", "float[N, 2] x", "float[N, 2] y", {"k": np.float32(0.1)})
    found = observe(model, opened(model, [{"x": np.ones((3, 2), np.float32)}] * 2), {"y": 1}, bins=16).tensors["y"]
    assert found.minimum == found.maximum == np.float32(1.1)
    assert list(found.histogram) == [12, *[0] * 15]


# --- streams ---


def test_samples_of_different_lengths():
    model = small_models.model("e = Gather(table, ids) y = MatMul(e, w)", "int64[1, T] ids", "float[1, T, 3] y",
                               integers(3, table=(5, 4), w=(4, 3)))  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = [{"ids": rng.integers(0, 5, (1, n))} for n in (3, 11, 1, 7)]
    found = observe(model, opened(model, feeds), {"e": 2, "y": 2}, bins=8)
    whole = kept_whole(model, feeds)
    for name in ("e", "y"):
        flat = np.concatenate(whole[name], axis=1)
        stats = found.tensors[name]
        assert stats.count == flat.size
        np.testing.assert_allclose(stats.channels.mean, flat.mean(axis=(0, 1), dtype=np.float64), rtol=1e-12)
        assert_histogram(stats, whole[name])


@pytest.mark.parametrize("group_mib", [1e-6, 0.01, 1000])
def test_grouping_changes_nothing(group_mib, monkeypatch):
    model, feeds = net(), list(image_feeds())
    passes = []
    monkeypatch.setattr(statistics.run, "session", lambda *a, **k: passes.append(1) or run_session(*a, **k))
    found = observe(model, opened(model, feeds), everything(model), group_mib=group_mib, cache=False)
    whole = kept_whole(model, feeds)
    assert len(passes) == {1e-6: 1 + len(whole), 1000: 2}.get(group_mib, len(passes))
    for name, arrays in whole.items():
        assert_histogram(found.tensors[name], arrays)
    one = observe(model, opened(model, feeds), everything(model), cache=False)
    for name, stats in one.tensors.items():
        np.testing.assert_array_equal(stats.histogram, found.tensors[name].histogram)


run_session = run.session


@given(st.lists(st.integers(0, 100), max_size=12), st.integers(1, 120))
def test_groups_fit_the_budget_in_order(sizes, budget):
    named = {f"t{i}": size for i, size in enumerate(sizes)}
    groups = statistics.consecutive_groups(named.items(), budget)
    assert [name for group in groups for name in group] == list(named)
    assert all(group for group in groups)
    for group in groups:
        assert len(group) == 1 or sum(named[name] for name in group) <= budget
    for group, following in itertools.pairwise(groups):
        assert sum(named[name] for name in group) + named[following[0]] > budget, "a group is filled first"


def test_order_of_samples_does_not_matter():
    model, feeds = net(), list(image_feeds())
    tensors = everything(model, {"a": 1})
    one = observe(model, opened(model, feeds), tensors)
    other = observe(model, opened(model, reversed(feeds)), tensors)
    assert one.data_fingerprint != other.data_fingerprint
    for name, stats in one.tensors.items():
        np.testing.assert_array_equal(stats.histogram, other.tensors[name].histogram)
        assert (stats.minimum, stats.maximum) == (other.tensors[name].minimum, other.tensors[name].maximum)


def test_graph_inputs_and_vectors_are_observed_too():
    model = small_models.model("y = MatMul(v, w)", "float[4] v", "float[3] y", integers(0, w=(4, 3)))
    feeds = [{"v": np.array(row, np.float32)} for row in ([1, 2, 3, 4], [5, 6, 7, 8])]
    found = observe(model, opened(model, feeds), {"v": 0}).tensors["v"]
    np.testing.assert_array_equal(found.channels.mean, [3, 4, 5, 6])
    assert (found.minimum, found.maximum, found.count) == (1, 8, 8)


def test_a_tensor_that_no_sample_fills_is_left_out():
    body = "a = Slice(x, zero, n, axes) e = Relu(a) y = Identity(x)"
    model = small_models.model(body, "float[T, 2] x, int64[1] n", "float[T, 2] y, float[M, 2] e",
                               {"zero": np.array([0]), "axes": np.array([0])})  # fmt: skip
    x = np.ones((3, 2), np.float32)
    none = [{"x": x, "n": np.array([0])}] * 2
    assert set(observe(model, opened(model, none), {"e": 1, "y": 1}).tensors) == {"y"}
    some = [*none, {"x": x, "n": np.array([2])}]
    assert observe(model, opened(model, some), {"e": 1, "y": 1}).tensors["e"].count == 4


def test_the_model_is_unchanged_and_names_do_not_collide():
    model = small_models.model("x_ReduceMin = Relu(x) y = Neg(x_ReduceMin)", "float[2] x", "float[2] y")
    before = ir.to_proto(model).SerializeToString()
    found = observe(model, opened(model, [{"x": np.array([-1, 2], np.float32)}]), everything(model))
    assert ir.to_proto(model).SerializeToString() == before
    assert found.tensors["x_ReduceMin"].maximum == 2


def test_progress_counts_every_sample_of_every_pass():
    model = net()
    told = []
    data = opened(model, image_feeds(4))
    observe(model, data, {"a": 1}, progress=lambda *news: told.append(news))
    assert told == [(what, i, 4) for what in ("observing ranges", "observing histograms") for i in range(5)]
    told.clear()
    observe(model, data, {"a": 1, "b": 1}, group_mib=1e-6, cache=False, progress=lambda *news: told.append(news))
    assert [news for news in told if "histograms" in news[0]] == [("observing histograms", i, 8) for i in range(9)]


# --- what goes wrong ---


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("place", [0, 1, 500, 999])
def test_nan_is_reported_with_its_tensor(place, axis):
    model = small_models.model("r = Sqrt(x) y = Add(r, x)", "float[N, 1000] x", "float[N, 1000] y")
    feeds = [{"x": np.ones((1, 1000), np.float32)} for _ in range(3)]
    feeds[1]["x"][0, place] = -1
    with pytest.raises(DataError, match=r"sample 1: makes tensor 'r' NaN; check the preprocessing") as caught:
        observe(model, opened(model, feeds), {"x": axis, "r": axis})
    assert "\n" not in str(caught.value)


def test_infinity_is_named():
    model = small_models.model("l = Log(x) y = Neg(l)", "float[4] x", "float[4] y")
    feeds = [{"x": np.ones(4, np.float32)}, {"x": np.array([1, 0, 1, 1], np.float32)}]
    with pytest.raises(DataError, match="sample 1: makes tensor 'l' infinite"):
        observe(model, opened(model, feeds), {"l": None})


def test_samples_are_numbered_as_in_their_source():
    model = small_models.model("r = Sqrt(x)", "float[4] x", "float[4] r")
    feeds = [{"x": np.full(4, -1 if i == 7 else 1, np.float32)} for i in range(10)]
    data = opened(model, feeds).take(5)
    assert 7 in data.numbers
    with pytest.raises(DataError, match="sample 7: makes tensor 'r' NaN"):
        observe(model, data, {"r": None})


def test_a_sample_that_does_not_run_is_named():
    model = small_models.model("y = Reshape(x, s)", "float[N, 3] x", "float[M, 2] y", {"s": np.array([-1, 2])})
    feeds = [{"x": np.ones((n, 3), np.float32)} for n in (2, 4, 3)]
    with pytest.raises(DataError, match=r"sample 2: onnxruntime cannot run the model on it \(") as caught:
        observe(model, opened(model, feeds), {"y": None})
    assert "\n" not in str(caught.value)
