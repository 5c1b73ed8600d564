"""``toolchain bench`` as a gate, as a sweep and of a suite, with real runs of tiny models."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

RECIPE = """
schema_version = 1
[bench]
warmup_s = 0.01
min_time_s = 0.1
min_runs = 16
rounds = 8
processes = 1
"""


def products(path, count: int, n: int = 96):
    """`count` products of [n, n] one behind the other."""
    w = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32) / n
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"], name=f"p{i}") for i in range(count)]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [n, n]) for i in (0, count)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.toml").write_text(RECIPE)
    products(tmp_path / "base.onnx", 4)
    products(tmp_path / "new.onnx", 8)
    return tmp_path


def test_a_candidate_is_measured_beside_its_baseline_and_refused(folder, toolchain):
    gate = "--recipe quick.toml --threads 1 --baseline base --max-regression 5%"
    done = toolchain(f"bench base.onnx new.onnx {gate} -o out.json")
    assert done.code == 1
    said = " ".join(done.out.split())
    assert "REGRESSION: model new compared with base:" in said
    assert "% slower (95 %:" in said
    assert "5.0 % allowed." in said
    assert (folder / "out.json").is_file()  # what was measured is kept
    assert toolchain("compare out.json --baseline base --max-regression 5%").code == 1
    assert toolchain("compare out.json --baseline base --max-regression 500%").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("base.onnx new.onnx --baseline bas", "--baseline: unknown baseline 'bas'; did you mean 'base'?"),
        ("base.onnx --max-regression 5%", "--max-regression: has no baseline to compare with; give the files"),
        ("base.onnx --arena maybe", "--arena: is 'maybe'; choose one of: both, off, on"),
        ("base.onnx --sustained 0", "--sustained: is 0; give minutes, such as 10"),
        ("base.onnx new.onnx --sustained 1", "a sustained run takes one model, but 2 are given; give one"),
        ("base.onnx --suite suite.toml", "--suite: is given together with base.onnx; give a suite or models"),
        ("base.onnx --operators --on adb:1234", "--operators: has no meaning for adb:1234; measure operators on this"),
        ("base.onnx --cpus big,1", "processors big,1: 'big,1' names no processors; give numbers like 0-3, big or"),
        ("base.onnx --cpus 4711", "processors 4711: '4711' are not all among this machine's processors ["),
    ],
)
def test_what_cannot_be_is_refused(folder, toolchain, arguments, said):
    done = toolchain(f"bench {arguments}")
    assert done.code == 2
    assert done.sentence.startswith(said)


@pytest.mark.slow
def test_threads_arena_cores_and_operators(folder, toolchain):
    done = toolchain("bench base.onnx --recipe quick.toml --threads 1,2 --arena both --cpus 0 --operators -o out.json")
    assert done.code == 0
    rows = json.loads((folder / "out.json").read_text())["measurements"]
    assert [(r["latency"]["threads"], r["memory"]["arena"]) for r in rows] == [
        (1, True), (1, False), (2, True), (2, False),
    ]  # fmt: skip
    assert all(r["latency"]["cpus"] == [0] for r in rows)
    assert [bool(r["latency"]["cpu_ms"]) for r in rows] == [True, True, False, False]
    assert {o["op"] for o in rows[0]["operators"]} == {"MatMul"}
    assert [o["node"] for o in rows[0]["operators"]] == ["p0", "p1", "p2", "p3"]
    said = " ".join(done.out.split())
    assert "The tables differ in threads: no speed-up is computed between them." in said
    assert "pinned to core 0" in said
    assert "MatMul 4" in said


@pytest.mark.slow
def test_a_sustained_run_has_a_curve(folder, toolchain):
    done = toolchain("bench base.onnx --recipe quick.toml --threads 1 --sustained 0.03 -o out.json")
    assert done.code == 0
    (row,) = json.loads((folder / "out.json").read_text())["measurements"]
    assert len(row["sustained"]) >= 6
    assert row["sustained"][-1]["at_s"] >= 1.8
    assert np.median([w["p50_ms"] for w in row["sustained"]]) < 5 * np.median(row["latency"]["samples_ms"])
    assert "run continuously for 0.03" in done.out


def test_a_suite_is_timed_model_by_model(folder, toolchain):
    rows = "".join(
        f'[[rows]]\nmodel = "{model}"\nvariant = "{variant}"\nfile = "{file}.onnx"\n'
        for model, variant, file in [("a", "fp32", "new"), ("a", "int8", "base"), ("b", "fp32", "base")]
    )
    (folder / "suite.toml").write_text(f'schema_version = 1\ndescription = "Two nets"\n{rows}')
    done = toolchain("bench --suite . --recipe quick.toml --threads 1 --format markdown")
    assert done.code == 0
    assert done.out.startswith("Two nets\n\n")
    assert "| a | host | int8 |" in done.out
    assert "| b | host | fp32 |" in done.out
