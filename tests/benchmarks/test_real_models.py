"""The benchmark models: their files, feeds and metrics hold what `benchmarks.models` promises.

Oracles: onnxruntime's own view of the inputs, batches against single samples, the scores in ``benchmarks/README.md``,
and a model that guesses, which must score near chance.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import benchmarks
from benchmarks.models import MODELS, NAMES, missing, store
from benchmarks.train import photographs

HERE = Path(benchmarks.__file__).parent
GUESS = {
    "minilm_l6": 0.15,
    "ppocr_cls": 0.6,
    "waifu2x_resnet": 0.12,
    "resemblyzer_lstm": 0.25,
    "svhn_cnn": 0.15,
    "mnist_cnn": 0.15,
}
FROM_TORCH = tuple(name for name, model in MODELS.items() if hasattr(model, "module"))


def documented(name):
    """The fp32 column of the table in the README."""
    row = re.search(rf"^\| {name} \|.*", (HERE / "README.md").read_text(), re.MULTILINE)
    return float(row[0].split("|")[6]) / 100


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(request, shared_cache, monkeypatch):
    if reason := missing(request.param):
        pytest.skip(reason)
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(shared_cache))
    return MODELS[request.param]


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.onnx_path(), options, providers=["CPUExecutionProvider"])


every = pytest.mark.parametrize("model", NAMES, indirect=True)


def test_fetch_knows_every_package_and_no_other():
    script, pins = ((HERE / name).read_text() for name in ("fetch.sh", "requirements-nodeps.txt"))
    everything = re.search(r"^ *all\)(.*?);;", script, re.DOTALL | re.MULTILINE)[1]
    listed = {entry.partition("@")[0] for names in re.findall(r"\(([^)]*)\)", everything) for entry in names.split()}
    required = {package for model in MODELS.values() for package in model.REQUIRES} | {*photographs.REQUIRES}
    assert {package.partition("/")[2] for package in required} == listed
    wheels = {package.partition("/")[2] for package in required if package.startswith("pypi/")}
    assert wheels == set(re.findall(r"^([\w-]+)==\S+ --hash=sha256:", pins, re.MULTILINE))


def test_absent_data_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_DATA", str(tmp_path))
    assert "fetch.sh" in missing("mobilenet_v2")
    with pytest.raises(store.DataError, match=r"fetch\.sh"):
        MODELS["mobilenet_v2"].onnx_path()


def test_rows_are_the_array_and_are_made_once(tmp_path):
    whole = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    made = []

    def make():
        made.append(1)
        return {"x": whole, "y": np.array(["a", "bc", "", "d"])}

    for _ in range(2):
        file = store.samples("set", make)
        np.testing.assert_array_equal(list(store.rows(file)), whole)
        assert store.field(file).tolist() == ["a", "bc", "", "d"]
    assert made == [1]


@pytest.mark.slow
@every
def test_feeds_fit_the_model_and_repeat(model):
    inputs = {entry.name: entry for entry in session(model).get_inputs()}
    feeds, again = (list(islice(model.calibration_feeds(), 5)) for _ in range(2))
    for feed, same in zip(feeds, again, strict=True):
        assert feed.keys() == inputs.keys()
        for name, array in feed.items():
            np.testing.assert_array_equal(array, same[name])
            assert {"float32": "tensor(float)", "int64": "tensor(int64)"}[array.dtype.name] == inputs[name].type
            assert array.shape[0] == 1
            sizes = zip(array.shape, inputs[name].shape, strict=True)
            assert all(got == size for got, size in sizes if isinstance(size, int))
    assert len(list(model.calibration(70))) == 70


@pytest.mark.slow
@every
def test_no_calibration_sample_is_tested(model):
    outputs = [np.ones(entry.shape[1:], np.float32) for entry in _example(model)]
    tested = set()

    def record(feed):
        tested.add(b"".join(array.tobytes() for array in feed.values()))
        return [array[None] for array in outputs]

    model.evaluate(record)
    assert len(tested) >= 100
    assert not tested & {b"".join(a.tobytes() for a in feed.values()) for feed in model.calibration(64)}


def _example(model):
    return session(model).run(None, next(model.calibration(1)))


@pytest.mark.slow
@pytest.mark.parametrize("model", FROM_TORCH, indirect=True)
def test_exported_batch_is_dynamic(model):
    engine, feeds = session(model), list(islice(model.calibration_feeds(), 3))
    together = engine.run(None, {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})[0]
    alone = np.concatenate([engine.run(None, feed)[0] for feed in feeds])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())  # other blockings, other sums
    assert np.ptp(alone, axis=0).max() > 0.01 * np.abs(alone).max()  # the input matters


@pytest.mark.slow
@every
def test_float_model_scores_as_documented(model):
    engine = session(model)
    score = model.evaluate(lambda feed: engine.run(None, feed))
    assert score == pytest.approx(documented(model.NAME), abs=0.03)  # another Debian has other fonts and photographs


@pytest.mark.slow
@every
def test_a_guess_scores_near_chance(model):
    shapes, rng = [array.shape for array in _example(model)], np.random.default_rng(0)
    score = model.evaluate(lambda feed: [rng.random(shape, np.float32) for shape in shapes])
    assert score <= GUESS.get(model.NAME, 0.06)
