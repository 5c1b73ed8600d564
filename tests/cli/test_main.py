"""The contract of the command line: what goes to stdout and to stderr, exit codes, JSON, help, interruptions."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from command import QUANTIZE, content, save_net
from small_models import proto

import toolchain as toolchain_api

COMMANDS = [
    "export", "convert", "optimize", "prune", "train", "quantize", "verify", "bench", "compare", "inspect",
    "targets list", "targets show", "targets detect", "targets check",
    "emulator setup", "emulator list",
]  # fmt: skip
PYTHON = [sys.executable, "-m", "toolchain"]


# ------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", "targets", *COMMANDS])
def test_help_is_short_and_whole(toolchain, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = toolchain(f"{command} --help")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    shown = lines.index("  Examples:") - 1 if command in COMMANDS else len(lines)
    assert shown <= (48 if command == "bench" else 40)  # bench has the most options
    assert max(map(len, lines)) <= 80
    assert toolchain(f"{command} -h").out == done.out
    examples = [line for line in lines[shown:] if line.startswith("    toolchain ")]
    assert all(line.startswith(f"    toolchain {command} ") or line.endswith(f" {command}") for line in examples)
    assert bool(examples) == ("-q, --quiet" in done.out) == (command in COMMANDS)
    assert "..." not in done.out.replace("COMMAND [ARGS]...", "").replace("}...", "").replace("[MODEL]...", "")
    assert ("--json" in done.out) == (command in COMMANDS)


def test_without_arguments_the_help_is_shown(toolchain):
    for command in ("", "targets"):
        done = toolchain(command)
        assert (done.code, done.out) == (2, "")
        assert "Commands:" in done.err


def test_version_and_module():
    done = subprocess.run([*PYTHON, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("toolchain ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("exprot net.onnx", "no such command 'exprot'; did you mean 'export'?"),
        ("export net.onnx", "missing option '--target' / '-t'; see `toolchain export --help`"),
        ("bench", "no model to bench; give at least one"),
        ("convert net.onnx out.onnx", "missing option '--output' / '-o'; see `toolchain convert --help`"),
        ("inspect net.onnx --xyz", "no such option: --xyz; see `toolchain inspect --help`"),
        ("bench net.onnx --threads 0", "--threads: is '0'; give numbers like 2 or 1,2,4"),
        ("quantize net.onnx -c x -o y --max-drop much", "invalid value for '--max-drop'"),
        ("targets lst", "no such command 'lst'; did you mean 'list'?"),
    ],
)
def test_wrong_usage_is_one_sentence(toolchain, arguments, said):
    done = toolchain(arguments)
    assert done.code == 2
    assert done.sentence.startswith(said)


# -------------------------------------------------------------------------------------- results as JSON


def test_export(exported, toolchain, workplace):
    rows = exported.result["results"]["measurements"]
    assert [(row["target"], row["variant"]) for row in rows] == [
        ("host", "fp32"),
        ("host", "int8"),
        ("raspberry-pi-5", "int8"),
    ]
    assert exported.result["folder"] == "out"
    assert json.loads(Path("out/results.json").read_text())["measurements"] == rows
    stages = [json.loads(Path(f"out/{t}/manifest.json").read_text())["stages"] for t in ("host", "raspberry-pi-5")]
    for times in stages:
        assert [time["stage"] for time in times] == [s for s in exported.stages if s != "writing the report"]
        assert all(time["seconds"] >= 0 for time in times)
    for target in ("host", "raspberry-pi-5"):
        verified = toolchain(f"verify out/{target} --json")
        assert (verified.code, verified.result["mismatches"]) == (0, [])


def test_a_second_export_replaces_the_first(exported, toolchain, workplace):
    Path("out/host/stale").write_text("of the first")
    assert toolchain("export net.onnx -t host -c samples.npz --recipe fast.toml -o out").code == 0
    assert not Path("out/host/stale").exists()
    assert Path("out/raspberry-pi-5/manifest.json").is_file()


def test_convert_optimize_quantize(toolchain, workplace):
    converted = toolchain("convert net.onnx -o converted.onnx --json").result
    assert converted["output"] == "converted.onnx"
    assert toolchain("optimize net.onnx -o clean.onnx --json").result["nodes_after"] == 7
    done = toolchain("quantize net.onnx -c samples.npz --recipe fast.toml -o int8.onnx --json")
    assert {node["precision"] for node in done.result["nodes"]} == {"int8"}
    assert 0.5 <= done.result["score"]["int8"] <= 1
    operators = {node.op_type for node in onnx.load("int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators


def test_optimize_stores_large_weights_as_float16(toolchain, workplace):
    large = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    onnx.save(proto("y = MatMul(x, w)", "float[1, 64] x", "float[1, 64] y", {"w": large}), "large.onnx")
    done = toolchain("optimize large.onnx -o small.onnx --fp16-weights")
    assert done.code == 0
    assert "1 float weight is stored as float16" in done.out + done.err
    assert Path("small.onnx").stat().st_size < 0.6 * Path("large.onnx").stat().st_size
    result = toolchain("optimize large.onnx -o small.onnx --fp16-weights --json").result
    assert (result["fp16_tensors"], result["saved_bytes"]) == (1, large.nbytes // 2)


def test_optimize_in_place(toolchain, workplace):
    assert toolchain("optimize net.onnx -o net.onnx").code == 0
    onnx.checker.check_model("net.onnx")
    assert sorted(content(workplace)) == ["fast.toml", "net.onnx", "samples.npz"]


def test_bench_and_compare(toolchain, workplace):
    done = toolchain("bench net.onnx --recipe fast.toml -o results.json --json")
    assert done.out == Path("results.json").read_text()
    (row,) = done.result["measurements"]
    assert len(row["latency"]["samples_ms"]) >= 3
    compared = toolchain("compare results.json --json").result
    assert compared["hosts"][0]["rows"][0]["model"] == "net"


def test_bench_tells_models_of_one_name_apart(toolchain, workplace):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        save_net(Path(folder, "net.onnx"))
    rows = toolchain("bench a/net.onnx b/net.onnx --recipe fast.toml --json").result["measurements"]
    assert [row["model"] for row in rows] == ["a/net", "b/net"]


def test_inspect_and_targets(toolchain, workplace):
    assert toolchain("inspect net.onnx --json").result["opset"] == 17
    assert "host" in [profile["name"] for profile in toolchain("targets list --json").result]
    assert toolchain("targets show rk3588 --json").result["name"] == "rk3588"
    shown = toolchain("targets detect --json").result
    Path("mine.json").write_text(json.dumps(shown))
    assert toolchain("targets check mine.json --json").result["valid"] is True


# ------------------------------------------------------------------------------------------- both streams

LOUD = """
import logging, os, warnings
def score(run):
    print("printed")
    os.write(1, b"written by a library\\n")
    os.system("echo said by a child")
    warnings.warn("warned")
    logging.getLogger("some.library").warning("logged")
    return 1.0
"""


def test_stdout_holds_the_result_alone(toolchain, workplace):
    Path("loud.py").write_text(LOUD)
    done = toolchain("quantize net.onnx -c samples.npz --recipe fast.toml -o q.onnx --evaluate loud:score --json")
    assert done.result["score"] == {"float": 1.0, "int8": 1.0, "kind": "evaluate"}
    assert sorted(set(done.err.splitlines())) == ["printed", "said by a child", "written by a library"]


def test_the_time_of_every_stage_is_recorded_and_v_ends_with_the_sum(toolchain, workplace):
    done = toolchain(f"{QUANTIZE} -c samples.npz --json -v")
    recorded = {stage["stage"]: stage["seconds"] for stage in done.result["stages"]}
    *stages, total = done.stages
    assert list(recorded) == stages
    assert {"converting", "observing ranges", "planning", "rounding weights", "writing"} <= set(stages)
    assert total.startswith("in all: ")
    assert all(f" {stage} " in total for stage, seconds in recorded.items() if seconds > 0.2 * sum(recorded.values()))


def test_a_terminal_without_our_signs_shows_the_rest(toolchain, workplace, monkeypatch):
    onnx.save(proto("y = Sin(x)", "float[1] x", "float[1] y"), "sine.onnx")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert toolchain("inspect sine.onnx").code == 0
    ascii_only.flush()
    assert b"1 ? Sin" in ascii_only.buffer.getvalue()


def test_nothing_is_logged_where_the_constant_folder_gives_up(toolchain, workplace):
    """onnx's reference cannot compute GatherElements with indices broader than the data's other axes."""
    graph = proto(
        "g = GatherElements<axis = 1>(table, places) f = Cast<to = 1>(g) y = Add(x, f)",
        "float[1, 3] x",
        "float[1, 3] y",
        {"table": np.arange(512).reshape(1, 512), "places": np.array([[5, 7, 9]])},
    )
    onnx.save(graph, "gather.onnx")
    done = toolchain("optimize gather.onnx -o clean.onnx")
    assert done.code == 0
    assert [line.split()[0] for line in done.err.splitlines()] == [
        str(len(onnx.load("gather.onnx").graph.node)),
        "written:",
    ]


def test_progress_is_drawn_on_terminals_only(toolchain, workplace):
    command = "convert net.onnx -o out.onnx"
    ours, theirs = pty.openpty()
    drawn = subprocess.run([*PYTHON, *command.split()], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: all has been read
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert b"converting" in seen
    assert drawn.stdout == b""
    piped = toolchain(command)
    assert (piped.out, piped.err, piped.stages) == ("", "written: out.onnx\n", ("converting",))
    quiet = toolchain(f"{command} -q")
    assert (quiet.code, quiet.out, quiet.err, quiet.stages) == (0, "", "", ())


def test_onnxruntime_reports_nothing_to_its_maker(tmp_path, workplace):
    """Its wheels from 1.29 on keep an identity and a database of events in these places, and send them."""
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    code = "import toolchain, onnxruntime as o; o.InferenceSession('net.onnx', providers=['CPUExecutionProvider'])"
    clean = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run([sys.executable, "-c", code], env={**clean, **home}, check=True)
    assert content(tmp_path) == {}


# ------------------------------------------------------------------------------------------------- gates


def test_a_drop_beyond_the_limit_fails(toolchain, workplace):
    Path("falling.py").write_text(
        "from itertools import chain, repeat\nscores = chain([0.9], repeat(0.7))\ndef score(run): return next(scores)\n"
    )
    before = content(workplace)
    done = toolchain(f"{QUANTIZE} -c samples.npz --evaluate falling:score --max-drop 0.1")
    assert done.code == 1
    assert "it scores 0.7000, and at least 0.8000 is wanted" in done.sentence
    assert {name for name in content(workplace) if not name.startswith("__pycache__")} == set(before)


def test_operators_stay_float_until_the_drop_is_met(toolchain, workplace):
    Path("strict.py").write_text(
        "import numpy as np\n"
        "expected = []\n"
        "def score(run):\n"
        "    rng = np.random.default_rng(0)\n"
        "    shape = np.load('samples.npz')\n"
        "    name = shape.files[0]\n"
        "    got = run({name: rng.standard_normal((1, *shape[name].shape[1:])).astype(np.float32)})[0]\n"
        "    expected.append(got) if not expected else None\n"
        "    return 1.0 if np.allclose(got, expected[0], rtol=1e-4, atol=1e-5) else 0.0\n"
    )
    command = f"{QUANTIZE} -c samples.npz --evaluate strict:score --max-drop 0.5"
    done = toolchain(f"{command} --json")
    assert done.code == 0, done.err
    curve = done.result["tradeoff"]
    assert [curve[0]["float_nodes"], curve[0]["score"]] == [0, 0.0]
    assert curve[-1]["score"] == 1.0
    left = [node for node in done.result["nodes"] if "left float" in (node["reason"] or "")]
    assert len(left) > 0
    assert done.result["score"] == {"float": 1.0, "int8": 1.0, "kind": "evaluate"}
    assert "operators kept in float for accuracy" in toolchain(command).out


def test_explain_shows_the_steps_and_the_worst_causes(toolchain, workplace):
    done = toolchain(f"{QUANTIZE} -c samples.npz --explain")
    assert done.code == 0, done.err
    assert "fidelity of the outputs to float" in done.out
    assert "causes of the remaining error" in done.out
    found = toolchain(f"{QUANTIZE} -c samples.npz --explain --json").result
    assert {"without_db", "with_db", "used", "name"} == set(found["steps"][0])
    assert sum(noise["share"] for noise in found["noise"]) == pytest.approx(1.0)
    assert "noise" not in toolchain(f"{QUANTIZE} -c samples.npz --json").result
    Path("none.toml").write_text('quantize.keep_float = ["Conv", "Gemm", "MatMul"]')
    done = toolchain("quantize net.onnx -c samples.npz --recipe none.toml -o q.onnx --explain")
    assert "nothing computes in int8, so there is nothing to explain" in done.out


def test_slowing_down_beyond_the_limit_fails(toolchain, workplace):
    toolchain("bench net.onnx --recipe fast.toml -o one.json")
    found = json.loads(Path("one.json").read_text())
    (one,), rows = found["measurements"], []
    for variant, ms in (("fp32", 1.0), ("int8", 3.0)):
        latency = one["latency"] | {"samples_ms": [ms + 0.001 * i for i in range(60)], "rounds": [0, 20, 40]}
        rows.append(one | {"variant": variant, "latency": latency})
    Path("both.json").write_text(json.dumps(found | {"measurements": rows}))
    done = toolchain("compare both.json --max-regression 5% --json")
    assert done.code == 1
    assert done.result["regressions"] == ["net int8"]
    assert toolchain("compare both.json --max-regression 250% --json").code == 0


def test_other_answers_than_the_golden_ones_fail(exported, toolchain, workplace):
    golden = dict(np.load("out/host/golden.npz"))
    name = next(key for key in golden if key.startswith("output:"))
    golden[name] = golden[name] + 1
    np.savez("out/host/golden.npz", **golden)
    manifest = json.loads(Path("out/host/manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["name"] == "golden.npz")
    entry["sha256"] = hashlib.sha256(Path("out/host/golden.npz").read_bytes()).hexdigest()
    Path("out/host/manifest.json").write_text(json.dumps(manifest))
    done = toolchain("verify out/host --json")
    assert (done.code, done.err) == (1, "")
    assert done.result["mismatches"] == ["sample 0, output 'y': 10 of 10 elements differ, by at most 1"]


# ------------------------------------------------------------------------------------------ interruptions

SLOW = """
import time, pathlib, numpy
def wait():
    pathlib.Path("waiting").touch()
    time.sleep(60)
def score(run): wait()
def samples():
    yield {"x": numpy.zeros((1, 3, 16, 16), "float32")}
    wait()
"""
ENDLESS = "bench = { warmup_s = 0.0, min_time_s = 60.0, min_runs = 3, rounds = 1 }\nquantize.measure = false\n"


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, "export net.onnx -t host -c slow:samples -o new/out"),
        (signal.SIGTERM, "export net.onnx -t host -c samples.npz --recipe endless.toml -o out"),
        pytest.param(signal.SIGINT, "bench net.onnx --recipe endless.toml -o r.json", marks=pytest.mark.slow),
        pytest.param(
            signal.SIGHUP, "quantize net.onnx -c samples.npz --evaluate slow:score -o q.onnx", marks=pytest.mark.slow
        ),
    ],
)
def test_an_interrupted_run_leaves_nothing(workplace, tmp_path, number, command):
    """And an earlier export as it was."""
    Path("out/host").mkdir(parents=True)
    Path("out/host/manifest.json").write_text("{}")
    Path("slow.py").write_text(SLOW)
    Path("endless.toml").write_text(ENDLESS)
    before = content(workplace)
    heeded = signal.signal(number, signal.SIG_DFL)  # ignored, and inherited so, where tests run in the background
    process = subprocess.Popen(
        [*PYTHON, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    signal.signal(number, heeded)
    try:
        children = _wait_until_busy(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "error: interrupted; no result was written"  # after the stages that were reached
    Path("waiting").unlink(missing_ok=True)
    assert content(workplace) == before
    assert content(tmp_path) == {}
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def _wait_until_busy(process):
    """Until the user's code waits, or a model is being timed; returns the processes that time it."""
    for _ in range(600):
        children = psutil.Process(process.pid).children(recursive=True)
        if Path("waiting").exists() or any(child.cpu_times().user > 0.5 for child in children):
            return children
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("never got there")


def test_signals_that_are_ignored_stay_so(toolchain, workplace):
    """Programs started by nohup, and background jobs of shells, rely on it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("toolchain.cli.main.app", lambda **_: seen.append(signal.getsignal(signal.SIGHUP)))
            toolchain("targets list")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]


def test_an_interrupt_while_the_command_line_is_loaded():
    code = (
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'toolchain.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('toolchain', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: interrupted; no result was written\n")


def test_an_interrupt_while_int8_is_explained_leaves_no_file(workplace, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("toolchain.quantization.loop.Quantized.noise_sources", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toolchain_api.quantize("net.onnx", calibration="samples.npz", output="q.onnx", explain=True)
    assert not Path("q.onnx").exists()
