"""Benchmarks in real processes with tiny models. Speeds are compared only where one model has 256 times the work."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper
from recorded import ProgressLog, RecordedPlace
from timed_models import matmul

from toolchain.benchmark import local
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.host import describe_host, read_conditions
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.model_files import model_bytes
from toolchain.benchmark.rounds import Extras
from toolchain.core.errors import DeviceError, InputError, ModelError
from toolchain.devices.catalogue import load_target
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Results

QUICK = Bench(warmup_s=0.02, min_time_s=0.05, min_runs=6, rounds=2, processes=1)


@pytest.fixture
def model(tmp_path):
    return matmul(tmp_path / "model.onnx", 32)


def alive_runners() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def test_bigger_is_slower_and_order_is_a_b_b_a(tmp_path):
    small, big = matmul(tmp_path / "small.onnx", 64), matmul(tmp_path / "big.onnx", 1024)
    place, log = RecordedPlace(local.Local()), ProgressLog()
    dims = {"rows": 16}
    subjects = [Subject(small, "small", "fp32", dims=dims), Subject(big, "big", "fp32", dims=dims)]
    results = bench(subjects, settings=QUICK, threads=1, place=place, progress=log)
    a, b = results.measurements
    assert b.latency.p50_ms > 3 * a.latency.p50_ms
    assert place.order("round") == ["small", "big", "big", "small"]
    assert log.counts("timing") == [(done, 4) for done in range(5)]
    assert a.when == b.when
    assert (a.evidence, a.target, a.latency.threads) == ("measured", None, 1)
    assert len(a.latency.rounds) == 2
    assert min(np.diff((*b.latency.rounds, len(b.latency.samples_ms)))) >= 3
    assert b.latency.load_ms > 0
    assert b.latency.first_ms > 0
    assert b.latency.warmup_runs > 0
    # 4 MiB of weights against 16 KiB
    assert b.memory.peak_load_bytes - b.memory.baseline_bytes > 3 * 2**20
    assert Results.parse(json.loads(results.to_json())) == results
    assert alive_runners() == []


def test_the_runs_peak_is_seen_and_the_loads_spike_is_not_in_it(tmp_path):
    path = matmul(tmp_path / "m.onnx", 64)
    few, many = (Subject(path, "m", str(rows), dims={"rows": rows}) for rows in (1, 200_000))
    low, high = bench([few, many], settings=QUICK, threads=1).measurements
    # input and output of 200,000 x 64 floats
    assert high.memory.peak_run_bytes - low.memory.peak_run_bytes > 1.8 * 200_000 * 64 * 4
    assert high.memory.peak_load_bytes == pytest.approx(low.memory.peak_load_bytes, abs=8 * 2**20)


def test_given_feed_is_used(tmp_path):
    path = matmul(tmp_path / "m.onnx", 32, rows=4)
    good = Subject(path, "m", "fp32", feeds={"x": np.ones((4, 32), np.float32)})
    assert bench([good], settings=QUICK).measurements[0].latency is not None
    bad = Subject(path, "m", "fp32", feeds={"x": np.ones((5, 32), np.float32)})
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime cannot run it \(.*Got: 5 Expected: 4.*feed") as caught:
        bench([bad], settings=QUICK)
    assert "\n" not in str(caught.value)
    assert alive_runners() == []


def test_awkward_input_names_and_types(tmp_path):
    names = ["file", "a/b:0", "flag", "ids"]
    types = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64]
    values = [helper.make_tensor_value_info(n, t, ["n", 2]) for n, t in zip(names, types, strict=True)]
    nodes = [helper.make_node("Identity", [n], [f"{n}_out"]) for n in names]
    outputs = [helper.make_tensor_value_info(f"{n}_out", t, ["n", 2]) for n, t in zip(names, types, strict=True)]
    graph = helper.make_graph(nodes, "g", values, outputs)
    path = tmp_path / "names.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    kinds = [np.float32, np.float16, np.bool_, np.int64]
    feed = {name: np.zeros((3, 2), kind) for name, kind in zip(names, kinds, strict=True)}
    subjects = [Subject(path, "made up", "x"), Subject(path, "given", "x", feeds=feed)]
    assert len(bench(subjects, settings=QUICK).measurements) == 2


def test_targets_and_evidence(model):
    target = load_target("host").model_copy(update={"name": "raspberry-pi-5"})
    options = {"session.intra_op.allow_spinning": "0"}
    target = target.model_copy(update={"runtime": target.runtime.model_copy(update={"session_options": options})})
    subjects = [
        Subject(model, "m", "a"),
        Subject(model, "m", "b", target="host"),
        Subject(model, "m", "c", target="rk3588", evidence="emulated"),
    ]
    rows = bench(subjects, settings=QUICK, target=target).measurements
    assert [(m.target, m.evidence) for m in rows] == [
        ("raspberry-pi-5", "host"),
        ("host", "measured"),
        ("rk3588", "emulated"),
    ]
    assert all(m.latency.session_options == options for m in rows)
    assert rows[0].latency.threads == min(target.runtime.threads, describe_host().cores)


def test_refusals_come_before_any_process(tmp_path, model):
    place, log = RecordedPlace(local.Local()), ProgressLog()
    missing, there = (Subject(path, "m", "fp32") for path in (tmp_path / "gone.onnx", model))
    with pytest.raises(InputError, match="no model"):
        bench([], settings=QUICK, place=place, progress=log)
    with pytest.raises(ModelError, match=r"gone\.onnx: no such model file; check the path"):
        bench([there, missing], settings=QUICK, place=place, progress=log)
    with pytest.raises(InputError, match="a sustained run takes one model, but 2 are given"):
        bench([there, there], settings=QUICK, place=place, progress=log, extras=Extras(sustained_s=1))
    assert (place.commands, log.reports) == ([], [])


def test_not_a_model_is_one_sentence(tmp_path, model):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a protobuf at all")
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime cannot load it \(.*\); check the file") as caught:
        bench([Subject(model, "m", "fp32"), Subject(path, "m", "int8")], settings=QUICK)
    assert "\n" not in str(caught.value)
    assert alive_runners() == []


def test_killed_runner_is_one_sentence(model):
    with local.LocalRunner(BenchJob(model)) as runner:
        runner.started()
        runner.ask("load")
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match=r"model\.onnx: .*killed by SIGKILL during 'warmup'.*; check free memory"):
            runner.ask("warmup", {"seconds": 0.1})
    assert alive_runners() == []


def test_hung_runner_is_one_sentence(model):
    with local.LocalRunner(BenchJob(model), reply_timeout_s=0.5) as runner:
        os.kill(runner.pid, signal.SIGSTOP)
        with pytest.raises(DeviceError, match=r"no answer to 'start' within 0\.5 s"):
            runner.started()
    assert alive_runners() == []


def test_a_runtime_that_cannot_be_imported_is_one_sentence(model, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such wheel')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        local.LocalRunner(BenchJob(model)) as runner,
        pytest.raises(
            DeviceError, match=r"did not start \(ImportError: no such wheel\); check that numpy and onnxruntime"
        ),
    ):
        runner.started()


def test_interrupt_leaves_no_process(model):
    def interrupt(what: str, done: int = 0, total: int = 0) -> None:
        if what == "timing":
            assert alive_runners()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench([Subject(model, "m", "a"), Subject(model, "m", "b")], settings=QUICK, progress=interrupt)
    assert alive_runners() == []


def test_waiting_runners_use_no_processor(model):
    with local.LocalRunner(BenchJob(model, threads=2)) as runner:
        runner.started()
        runner.ask("load")
        runner.ask("warmup", {"seconds": 0.05})
        process = psutil.Process(runner.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.3)
        assert sum(process.cpu_times()[:2]) - before <= 0.03


def test_runner_ends_with_its_parent(model):
    """The runner ends at the end of its input, so none is left when its parent dies."""
    command = [sys.executable, str(local.RUNNER_SCRIPT)]
    line = json.dumps(first_line(BenchJob(model), str(model), None)) + "\n"
    done = subprocess.run(command, input=line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["onnxruntime"] == onnxruntime.__version__


def test_runner_is_self_contained_and_old_enough():
    source = local.RUNNER_SCRIPT.read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_external_data_counts_in_the_size(tmp_path):
    whole = matmul(tmp_path / "whole.onnx", 64)
    assert model_bytes(whole) == whole.stat().st_size
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(whole), split, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert model_bytes(split) == split.stat().st_size + 64 * 64 * 4


def test_host_and_conditions(tmp_path):
    host = describe_host()
    assert host.onnxruntime == onnxruntime.__version__
    assert host.cores >= 1
    assert host.memory_mib > 100
    for path, text in {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": "1800000\n",
        "sys/class/thermal/thermal_zone0/temp": "61300\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    reading = read_conditions(tmp_path)
    assert (reading.clock_mhz, reading.temperature_c) == (1800.0, 61.3)
    nothing = read_conditions(tmp_path / "nowhere")
    assert (nothing.clock_mhz, nothing.temperature_c) == (None, None)


def test_torch_is_not_imported():
    names = "'torch' in sys.modules, 'onnx_ir' in sys.modules"
    code = f"import sys, toolchain.benchmark.bench, toolchain.benchmark.stats, toolchain.report; print({names})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
