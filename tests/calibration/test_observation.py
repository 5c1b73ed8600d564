"""The file of an observation holds all of it, and a foreign or damaged file counts as absent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolchain.calibration import observation
from toolchain.calibration.observation import ChannelStats, Observation, TensorStats

BINS = 16
floats = st.floats(-1e30, 1e30)
channels = hnp.arrays(np.float64, st.tuples(st.just(4), st.integers(0, 5)), elements=floats).map(
    lambda table: ChannelStats(*table)
)
stats = st.builds(
    TensorStats,
    minimum=floats,
    maximum=floats,
    count=st.integers(1, 2**40),
    channels=st.none() | channels,
    histogram=hnp.arrays(np.int64, BINS, elements=st.integers(0, 2**40)),
)
names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30)


def some():
    return Observation(
        {"a": TensorStats(-1.0, 3.0, 9, ChannelStats(*np.ones((4, 2))), np.arange(4))}, 2, "model", "data"
    )


@given(st.dictionaries(names, stats, max_size=4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_what_was_saved_is_loaded(tmp_path_factory, tensors, samples):
    path = tmp_path_factory.mktemp("o") / "new" / "o.npz"
    Observation(tensors, samples, "model hash", "data hash").save(path)
    found = Observation.load(path)
    assert (found.samples, found.model_sha256, found.data_fingerprint) == (samples, "model hash", "data hash")
    assert set(found.tensors) == set(tensors)
    for name, known in tensors.items():
        got = found.tensors[name]
        assert (got.minimum, got.maximum, got.count) == (known.minimum, known.maximum, known.count)
        np.testing.assert_array_equal(got.histogram, known.histogram)
        assert (got.channels is None) == (known.channels is None)
        if known.channels is not None:
            np.testing.assert_array_equal(got.channels.mean, known.channels.mean)
            np.testing.assert_array_equal(got.channels.square, known.channels.square)
            np.testing.assert_array_equal(got.channels.minimum, known.channels.minimum)
            np.testing.assert_array_equal(got.channels.maximum, known.channels.maximum)


def test_edges_span_the_limits_evenly():
    np.testing.assert_array_equal(some().tensors["a"].edges, [-1, 0, 1, 2, 3])


def test_what_is_no_observation_loads_as_none(tmp_path, monkeypatch):
    path = tmp_path / "o.npz"
    assert Observation.load(path) is None
    some().save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:50], whole[: len(whole) // 2], whole[:-5]):
        path.write_bytes(content)
        assert Observation.load(path) is None, content[:10]
    np.savez(path, other=np.arange(3))
    assert Observation.load(path) is None
    path.write_bytes(whole)
    assert Observation.load(path) is not None
    monkeypatch.setattr(observation, "OBSERVATION_VERSION", observation.OBSERVATION_VERSION + 1)
    assert Observation.load(path) is None


@pytest.mark.parametrize("start", range(4))
def test_a_flipped_byte_never_raises(tmp_path, start):
    path = tmp_path / "o.npz"
    some().save(path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\1\2")  # names, flags and sizes of the zip's entries: the fussiest part
    for place in [*range(start, 300, 4), *range(directory + start, len(whole), 4)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        Observation.load(path)
