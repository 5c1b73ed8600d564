"""Who prunes, what the files become on a page, and which points nobody beats.

Oracles: points counted by hand, a definition of dominance written out again, files made for the purpose, and the
peers themselves where they are installed.
"""

from __future__ import annotations

import argparse
import ast
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import choices, curves, feeds, fresh, peers, pruners
from benchmarks.curves import Point, Run, Spread
from benchmarks.models import MODELS, missing
from benchmarks.prune import UNPRUNED, architecture, measure, page
from toolchain.api.prepare import prepare
from toolchain.core.errors import DataError
from toolchain.formats.recipe import Bench
from toolchain.graph import io, run

DRIVERS = Path(peers.__file__).parent / "drivers"


@pytest.mark.parametrize("text", ["", "a", "1.1,", "1.2,1.1", "1.1,1.1", "0,1", "-1"])
def test_bad_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="number"):
        choices.numbers(text)


def test_choices():
    assert choices.numbers("1.1,1.25,2") == (1.1, 1.25, 2.0)
    assert choices.listed("none", ("a", "b")) == ()
    assert choices.listed("b, a", ("a", "b")) == ("b", "a")
    with pytest.raises(argparse.ArgumentTypeError, match="no 'onnxsin'"):
        choices.listed("onnxsin", tuple(peers.PRUNERS))


def test_points_are_means_over_seeds_in_order():
    runs = [Run("b", 0.2, 1.4, 0.5), Run("a", 1.1, 1.0, 0.9), Run("b", 0.1, 1.1, 0.8), Run("b", 0.2, 1.6, 0.7)]
    first, second, third = curves.points(runs)
    assert first == Point("b", 0.1, Spread(1.1, 1.1, 1.1), Spread(0.8, 0.8, 0.8))
    assert (second.speedup, second.size) == (Spread(1.5, 1.4, 1.6), 0.2)
    assert second.metric == Spread(pytest.approx(0.6), 0.5, 0.7)
    assert third.contestant == "a"


def at(speedup, metric, name="x"):
    return Point(name, 0.1, Spread(speedup, speedup, speedup), Spread(metric, metric, metric))


def test_a_slower_or_less_accurate_point_is_beaten_by_the_unpruned_model():
    slower, equal, better, faster = at(0.7, 0.9), at(1.0, 0.9), at(0.99, 0.91), at(1.01, 0.1)
    assert curves.unbeaten([slower, equal, better, faster], 0.9) == [equal, better, faster]


def test_unbeaten_is_dominance_as_defined():
    rng = np.random.default_rng(3)
    for _ in range(50):
        found = [at(float(s), float(m)) for s, m in rng.integers(0, 6, (8, 2)) / 4]
        places = [(1.0, 0.5), *((p.speedup.mean, p.metric.mean) for p in found)]

        def beaten(point, places=places):
            s, m = point.speedup.mean, point.metric.mean
            return any((a > s and b >= m) or (a >= s and b > m) for a, b in places)

        assert curves.unbeaten(found, 0.5) == [point for point in found if not beaten(point)]


def test_the_plot_is_the_same_bytes_every_time(tmp_path):
    found = [at(1.1, 0.9, "ours"), at(1.3, 0.8, "ours"), at(0.7, 0.85, "onnxsim")]
    for name in ("a.svg", "b.svg"):
        curves.plot(found, 0.95, "model", "top-1, %", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<svg" in (tmp_path / "a.svg").read_text()


def reshaping_gemm(path, weights, split):
    """Reshape to `split` columns, then a product with `weights`."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, split], np.int64), "shape"),
        numpy_helper.from_array(weights.astype(np.float32), "w"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)), path)
    return path


def test_files_of_one_architecture_differ_in_weights_alone(tmp_path):
    rng = np.random.default_rng(0)
    base = architecture(reshaping_gemm(tmp_path / "a.onnx", rng.normal(size=(4, 3)), 4))
    assert architecture(reshaping_gemm(tmp_path / "b.onnx", rng.normal(size=(4, 3)), 4)) == base
    assert architecture(reshaping_gemm(tmp_path / "c.onnx", rng.normal(size=(4, 2)), 4)) != base
    assert architecture(reshaping_gemm(tmp_path / "d.onnx", rng.normal(size=(4, 3)), 2)) != base


class Small:
    """A benchmark model of one product; its metric is read off its first output."""

    NAME, KIND, METRIC = "small", "tiny", "share (one sample)"

    def calibration(self, n):
        return ({"x": np.ones((2, 4), np.float32)} for _ in range(n))

    def evaluate(self, answer):
        return float(answer({"x": np.ones((2, 4), np.float32)})[0][0, 0])


def test_the_page_of_a_few_files(tmp_path):
    """Files of one shape share a time, each has a metric of its own, and failures are remarks."""
    brief = Bench(warmup_s=0, min_time_s=0, min_runs=3, rounds=1)
    source = reshaping_gemm(tmp_path / "source.onnx", np.full((4, 512), 0.2), 4)
    files = [reshaping_gemm(tmp_path / f"{i}.onnx", np.full((4, 2), x / 4), 4) for i, x in enumerate((0.5, 0.7))]
    cost = fresh.Cost(1.5, 0, 0, None)
    cuts = [pruners.Cut("x", 0.1, seed, pruners.Made("x", file, cost)) for seed, file in enumerate(files)]
    cuts.append(pruners.Cut("y", 0.1, 0, pruners.Made("y", None, error="no such thing")))
    options = argparse.Namespace(
        bench=brief, threads=1, samples=8, seeds=2, peers=("onnxsim",), plots=tmp_path, data=Small, label="other"
    )
    rows = measure(Small(), source, cuts, options)
    assert [row.variant for row in rows] == [UNPRUNED, "x, 0.1, seed 0", "x, 0.1, seed 1"]
    assert [row.score.value for row in rows] == [pytest.approx(v, abs=1e-6) for v in (0.8, 0.5, 0.7)]
    assert rows[1].latency == rows[2].latency != rows[0].latency
    assert [row.note for row in rows] == [None, None, "timed as x, 0.1, seed 0"]
    text = page(Small(), rows[0].host, cuts, rows, options)
    (line,) = [line for line in text.splitlines() if line.startswith(("| x ", "| **x**"))]
    assert [cell.strip() for cell in line.split("|")][2:6] == ["0.1", "0.6000", "0.5000 … 0.7000", "-20.0"]
    assert "- y, 0.1: no such thing." in text
    assert f"of 8 samples each, from {Small.__module__}." in text
    assert (tmp_path / "prune-small-other.svg").is_file()


def test_everybody_takes_part_with_sizes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    alone = pruners.contestants((1.1, 1.2), (0.1,), (), ())
    assert [c.name for c in alone] == ["ours", *pruners.CONTROLS]
    assert {c.sizes for c in alone} == {(1.1, 1.2)}
    field = pruners.contestants((1.1,), (0.1, 0.3), tuple(pruners.INGREDIENTS), tuple(peers.PRUNERS))
    assert len({c.name for c in field}) == len(field)
    assert {f"ours without {part}" for part in pruners.INGREDIENTS} <= {c.name for c in field}
    others = [c for c in field if isinstance(c.function, str)]
    assert {c.name for c in others} == {row for peer in peers.PRUNERS.values() for row in peer.rows}
    assert {c.sizes for c in others if c.blind} == {(0.1, 0.3)}
    assert {c.sizes for c in others if not c.blind} == {(0.0, 0.1, 0.3)}


def test_an_absent_peer_is_a_remark_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path))
    contestant = pruners.contestants((1.1,), (0.1, 0.2), (), ("onnxsim",))[-1]
    (cut,) = pruners.cut_all(contestant, MODELS["svhn_cnn"], tmp_path, [tmp_path] * 3, tmp_path)
    assert cut.made.missing
    assert "not installed" in cut.made.error


@pytest.mark.parametrize(("blind", "seeds"), [(True, [0]), (False, [0, 1])])
def test_seeds_are_tried_where_they_matter_and_larger_sizes_until_one_fails(tmp_path, blind, seeds):
    def made(contestant, model, source, samples, output, size, seed):
        return pruners.Made(contestant.name, None, error="too small" if size == 0.3 else None)

    contestant = pruners.Contestant("x", "y:z", "how", (0.1, 0.2, 0.3, 0.4), blind)
    cuts = list(pruners.cut_all(contestant, MODELS["svhn_cnn"], tmp_path, [tmp_path] * 2, tmp_path, cut=made))
    assert [(c.size, c.seed) for c in cuts] == [*product((0.1, 0.2), seeds), (0.3, 0)]


def test_seeds_share_no_sample(tmp_path):
    def counted(n):
        return ({"x": np.array([i])} for i in range(n))

    folders = pruners.sample_folders(counted(13), 4, 3, tmp_path)
    assert [[int(feed["x"][0]) for feed in feeds.read(folder)] for folder in folders] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(DataError, match="3 of 4 samples for seed 2"):
        pruners.sample_folders(counted(11), 4, 3, tmp_path / "again")


@pytest.mark.parametrize("name", peers.PRUNERS)
def test_a_pruner_is_whole(name):
    lines = (DRIVERS / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert name.replace("_", "-") in pins
    assert "torch" not in pins or pins["torch"].endswith("+cpu")
    functions = [
        node for node in ast.parse((DRIVERS / f"{name}.py").read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    (prune,) = [node for node in functions if node.name == "prune"]
    assert [arg.arg for arg in prune.args.args] == ["name", "model", "samples", "output", "how", "size", "seed"]
    assert peers.PRUNERS[name].blind < set(peers.PRUNERS[name].rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for peer in peers.PRUNERS.values() for row in peer.rows])
def test_a_pruner_prunes(row, tmp_path, monkeypatch):
    """On a small real model: the file runs and is smaller, by the environment that lies in the user's cache."""
    monkeypatch.delenv("TOOLCHAIN_CACHE")
    (name,) = [name for name, peer in peers.PRUNERS.items() if row in peer.rows]
    if peers.interpreter(name) is None:
        pytest.skip(f"{name} is not installed: python -m benchmarks.peers install {name}")
    if reason := missing("svhn_cnn"):
        pytest.skip(reason)
    model, source = MODELS["svhn_cnn"], tmp_path / "unpruned.onnx"
    io.save(prepare(model.onnx_path()).model, source)
    samples = pruners.sample_folders(model.calibration(16), 16, 1, tmp_path)
    (contestant,) = [c for c in pruners.contestants((1.1,), (0.2,), (), (name,)) if c.name == row]
    cuts = list(pruners.cut_all(contestant, model, source, samples, tmp_path))
    assert [cut.made.error for cut in cuts] == [None] * len(contestant.sizes)
    assert cuts[-1].made.file.stat().st_size < 0.95 * source.stat().st_size
    feed = next(iter(model.calibration(1)))
    for cut in cuts:
        assert run.session(cut.made.file).run(None, feed)[0].shape == (1, 10)
