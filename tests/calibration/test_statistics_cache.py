"""The streaming engine: statistics that are known are read again, and memory is bounded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from observed import image_feeds, net, opened

from toolchain.calibration import statistics
from toolchain.calibration.observation import Observation
from toolchain.calibration.statistics import observe
from toolchain.data.calibration import open_data
from toolchain.graph import io

# --- the cache ---


class Counted:
    """A source of feeds that counts how often it is read."""

    def __init__(self, *, change=False):
        self.change, self.reads = change, 0

    def __call__(self):
        self.reads += 1
        for i, feed in enumerate(image_feeds(3)):
            yield {"x": feed["x"] + (1 if self.change and i == 2 else 0)}


def test_what_is_known_is_not_computed_again(monkeypatch):
    model, source = net(), Counted()
    data = open_data(source, io.inputs(model))
    tensors = {"a": 1, "y": None}
    first = observe(model, data, tensors)
    reads = source.reads
    monkeypatch.setattr(statistics.run, "session", None)
    again = observe(model, data, tensors)
    assert source.reads == reads
    assert_same(first, again)
    assert_same(first, observe(model, data, dict(reversed(tensors.items()))), "the order of the request is no matter")


def assert_same(one, other, message=""):
    assert replace(one, tensors={}) == replace(other, tensors={}), message
    assert set(one.tensors) == set(other.tensors)
    for name, stats in one.tensors.items():
        got = other.tensors[name]
        assert (stats.minimum, stats.maximum, stats.count) == (got.minimum, got.maximum, got.count)
        np.testing.assert_array_equal(stats.histogram, got.histogram)
        assert stats.histogram.dtype == got.histogram.dtype
        assert (stats.channels is None) == (got.channels is None)
        if stats.channels is not None:
            for field in ("mean", "square", "minimum", "maximum"):
                np.testing.assert_array_equal(getattr(stats.channels, field), getattr(got.channels, field))


def test_channels_keep_their_places_in_the_file(tmp_path):
    """Tables of different lengths stand side by side; a file of another version is none."""
    model = net()
    found = observe(model, opened(model, image_feeds()), {"x": 1, "a": None, "b": 1, "y": 1}, cache=False)
    found.save(tmp_path / "seen.npz")
    assert_same(Observation.load(tmp_path / "seen.npz"), found)
    with np.load(tmp_path / "seen.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "old.npz", **{**arrays, "version": arrays["version"] - 1})
    assert Observation.load(tmp_path / "old.npz") is None
    found = observe(model, opened(model, image_feeds()), {"a": None}, cache=False)
    found.save(tmp_path / "none.npz")
    assert_same(Observation.load(tmp_path / "none.npz"), found)


def test_whatever_matters_makes_it_run_again():
    model = net()
    data = open_data(Counted(), io.inputs(model))
    known = observe(model, data, {"a": 1})

    def runs(model, data, tensors, **settings):
        told = []
        found = observe(model, data, tensors, progress=lambda *news: told.append(news), **settings)
        assert found.tensors
        return bool(told)

    assert not runs(model, data, {"a": 1})
    assert not runs(net(), data, {"a": 1}, group_mib=0.1, threads=1), "another object of the same content"
    other = net()
    weight = other.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy() + np.float32(1), name="w")
    assert runs(other, data, {"a": 1}), "another weight"
    assert runs(model, open_data(Counted(change=True), io.inputs(model)), {"a": 1}), "another value in the data"
    assert runs(model, data.take(2), {"a": 1}), "fewer samples"
    assert runs(model, data, {"a": None}), "another axis"
    assert runs(model, data, {"a": 1, "b": None}), "another tensor"
    assert runs(model, data, {"a": 1}, bins=100), "other bins"
    assert runs(model, data, {"a": 1}, cache=False)
    assert len(known.tensors["a"].histogram) == 2048


def test_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    model = net()
    data = opened(model, image_feeds())
    known = observe(model, data, {"a": 1})
    [file] = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert_same(observe(model, data, {"a": 1}), known)
    assert Observation.load(file) is not None


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    model = net()
    observe(model, opened(model, image_feeds()), {"a": 1}, cache=False)
    assert not list(tmp_path.rglob("*.npz"))


# --- memory ---


MEASURE = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
import small_models
from toolchain.data.calibration import open_data
from toolchain.graph import io, query
from toolchain.calibration.statistics import observe

size = {size}
body = "a = Mul(x, x) b = Add(a, x) c = Neg(b) y = Relu(c)"
model = small_models.model(body, f"float[{{size}}] x", f"float[{{size}}] y")
names = {{value.name: None for value in query.activations(model)}}

def peak_mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

for samples, group_mib in ((2, 1e-3), (2, 1e3), (16, 1e3)):
    feeds = lambda: ({{"x": np.full(size, i, np.float32)}} for i in range(samples))
    observe(model, open_data(feeds, io.inputs(model)), names, group_mib=group_mib, cache=False, threads=1)
    print(peak_mib())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak from /proc")
def test_memory_follows_the_group_and_not_the_samples():
    size, tensors = 1 << 21, 5
    code = MEASURE.format(size=size, tests=str(Path(small_models.__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    one_by_one, together, many_samples = map(float, done.stdout.split())
    tensor_mib = size * 4 / 2**20
    assert together - one_by_one > (tensors - 3) * tensor_mib, "one tensor at a time takes less than all at once"
    # Allocators scatter by two or three tensors; keeping one tensor of each of the 14 more samples would be 14.
    assert many_samples - together < 8 * tensor_mib, "14 more samples take no more"
