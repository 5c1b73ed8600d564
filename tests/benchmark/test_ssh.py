"""Benchmarks over SSH with a real sshd on the loopback interface: successes, every failure, and no process left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import sshd
from command import save_net
from recorded import ProgressLog, RecordedPlace
from timed_models import matmul
from waiting import eventually

from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.find import find_place
from toolchain.benchmark.ssh import Ssh
from toolchain.core.errors import DeviceError, ModelError
from toolchain.core.progress import Progress, silent
from toolchain.devices.catalogue import load_target
from toolchain.formats.recipe import Bench
from toolchain.formats.target import Target

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(sshd.unavailable()), reason=str(sshd.unavailable()))]
in_namespace = pytest.mark.skipif(not sshd.namespaces(), reason="a session may not have mounts of its own here")

QUICK = Bench(warmup_s=0.02, min_time_s=0.05, min_runs=6, rounds=2, processes=1)
LONG = Bench(warmup_s=0.0, min_time_s=60.0, min_runs=3, rounds=1)
HERE = sys.executable
BUSY_S = 3.0
"""Processor time after which a runner has loaded everything and runs the model."""
BARE = "PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1"
"""The environment of a board without a network."""


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """Starts boards: ``server(command=..., environment=...)``; the client connects to the last one."""
    boards = []

    def start(**lacks: str) -> sshd.Board:
        board = sshd.start(tmp_path_factory.mktemp("board"), **lacks)
        boards.append(board)
        monkeypatch.setenv("TOOLCHAIN_SSH", f"ssh -F {board.client}")
        return board

    yield start
    for board in boards:
        sshd.stop(board.process)


@pytest.fixture
def board(server):
    return server()


@pytest.fixture
def model(tmp_path):
    return matmul(tmp_path / "model.onnx", 32)


def in_the_way(folder: Path, script: str) -> str:
    """Return a server command that makes a script called python3 be found before the real one."""
    folder.mkdir()
    (folder / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python3").chmod(0o755)
    return f'PATH={folder}:$PATH sh -c "$SSH_ORIGINAL_COMMAND"'


def run_there(model: Path, python: str | None = HERE, progress: Progress = silent, settings: Bench = QUICK):
    place = Ssh("board", python)
    return bench([Subject(model, "m", "fp32")], settings=settings, threads=1, place=place, progress=progress)


def refused(board: sshd.Board, model: Path, python: str | None = HERE) -> str:
    """Return the error's sentence, and check that no process and no incomplete file is left on the board."""
    with pytest.raises(DeviceError) as caught:
        run_there(model, python)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert clean(board)
    return str(caught.value)


def clean(board: sshd.Board) -> bool:
    """True where no process runs for the benchmark, there or here, and the board's cache holds complete files only."""
    quiet = board.quiet()
    below = {p.pid for p in psutil.Process().children(recursive=True)}
    ours = [p for p in psutil.process_iter(["name"]) if p.pid in below and p.info["name"] == "ssh"]
    held = {p.name for p in board.cache.glob("*")} - {"files", "lock"}
    whole = all(re.fullmatch(r"[0-9a-f]{64}\.\w+", p.name) for p in board.cache.glob("files/*"))
    return quiet and not ours and whole and all(name.startswith("env-") for name in held)


def test_first_use_installs_and_sends_and_second_use_does_neither(board, model):
    first = ProgressLog()
    row = run_there(model, None, first).measurements[0]
    assert first.stages[0] == "connecting to board"
    assert any(what.startswith("first use: installing onnxruntime") for what in first.stages)
    assert any(what.startswith("sending model.onnx") for what in first.stages)
    assert first.counts("timing") == [(0, 2), (1, 2), (2, 2)]
    assert row.evidence == "measured"
    assert row.host.onnxruntime == onnxruntime.__version__
    assert row.host.architecture == load_target("host").architecture
    assert row.conditions.load_before is not None
    assert row.memory.peak_run_bytes > 0
    assert clean(board)

    second = ProgressLog()
    kept = {path: path.stat().st_mtime_ns for path in board.cache.glob("*/*")}
    again = run_there(model, None, second).measurements[0]
    assert set(second.stages) == {"connecting to board", "loading and warming up", "timing"}
    assert {path: path.stat().st_mtime_ns for path in board.cache.glob("*/*")} == kept
    assert (again.sha256, again.target) == (row.sha256, row.target)
    assert clean(board)


def test_an_environment_of_a_python_that_is_gone_is_made_again(board, model):
    run_there(model, None)
    (stamp,) = board.cache.glob("env-*/complete")
    stamp.write_text(f"{onnxruntime.__version__} 3.9.0\n")
    log = ProgressLog()
    run_there(model, None, log)
    assert any("installing" in what for what in log.stages)


def test_two_models_are_interleaved_and_files_are_sent_once(board, tmp_path):
    model, copy = matmul(tmp_path / "a.onnx", 32), tmp_path / "b.onnx"
    shutil.copy(model, copy)
    place, log = RecordedPlace(Ssh("board", HERE)), ProgressLog()
    feed = {"x": np.ones((4, 32), np.float32)}
    subjects = [Subject(model, "a", "fp32", feeds=feed), Subject(copy, "b", "fp32", feeds=feed)]
    a, b = bench(subjects, settings=QUICK, threads=1, place=place, progress=log).measurements
    assert place.order("round") == ["a", "b", "b", "a"]
    assert sorted(what.split()[1] for what in log.stages if "sending" in what) == ["a.onnx", "feed.npz", "runner.py"]
    assert len(a.latency.rounds) == len(b.latency.rounds) == 2
    assert len(list(board.cache.glob("files/*"))) == 3
    assert clean(board)


def test_external_data_goes_along(board, tmp_path):
    split = tmp_path / "split.onnx"
    whole = onnx.load(matmul(tmp_path / "whole.onnx", 64))
    onnx.save(whole, split, save_as_external_data=True, location="w.bin", size_threshold=0)
    log = ProgressLog()
    row = run_there(split, HERE, log).measurements[0]
    assert row.size_bytes == split.stat().st_size + 64 * 64 * 4
    assert any("sending w.bin" in what for what in log.stages)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"split\.onnx: its weights in w\.bin are missing"):
        run_there(split)


def test_its_profile(board, toolchain, tmp_path):
    done = toolchain("targets detect --on ssh:board", "-o", tmp_path / "My Board.toml", "--python", HERE, "--json")
    assert done.code == 0, done.err
    written = Target.load(tmp_path / "My Board.toml")
    here = load_target("host")
    assert written == Target.parse(done.result)
    assert (written.name, written.runtime.version) == ("my-board", f">={onnxruntime.__version__}")
    same = {"features", "cores", "cache", "memory_mib", "channel_multiple", "int8", "architecture"}
    assert written.model_dump(include=same) == here.model_dump(include=same)
    rows = bench(
        [Subject(save_net(tmp_path / "n.onnx"), "n", "fp32")],
        settings=QUICK, target=written, place=Ssh("board", HERE),
    ).measurements  # fmt: skip
    assert (rows[0].target, rows[0].evidence) == ("my-board", "measured")
    assert clean(board)


def test_another_target_is_not_what_was_measured(board, model):
    place = Ssh("board", HERE)
    rows = bench([Subject(model, "m", "x")], settings=QUICK, target=load_target("rk3588"), place=place).measurements
    assert (rows[0].target, rows[0].evidence) == ("rk3588", "host")


def test_a_model_that_is_refused_there(board, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime cannot load it \(.*\); check the file"):
        run_there(broken)
    bad = Subject(matmul(tmp_path / "m.onnx", 32), "m", "fp32", feeds={"x": np.ones((5, 31), np.float32)})
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime cannot run it \(.*; give a feed with the right names"):
        bench([bad], settings=QUICK, place=Ssh("board", HERE))
    assert clean(board)


# ------------------------------------------------------------------------------------- the connection


def test_an_unknown_host(board, model):
    with pytest.raises(DeviceError, match=r"ssh:nowhere\.invalid: no such host \(.*\); check its name"):
        bench([Subject(model, "m", "x")], settings=QUICK, place=find_place("ssh:nowhere.invalid"))


def test_a_host_that_does_not_listen(board, model):
    sshd.stop(board.process)
    with pytest.raises(DeviceError, match=r"board: cannot be reached \(.*Connection refused\); see whether `ssh bo"):
        run_there(model)


def test_a_wrong_key(board, model):
    board.client.write_text(board.client.read_text().replace(f"{board.folder}/user", f"{board.folder}/other"))
    pattern = r"ssh:board: it accepts none of your keys \(.*Permission denied.*ssh-copy-id"
    assert re.search(pattern, refused(board, model))


def test_an_unknown_host_key(board, model):
    (board.folder / "known").write_text("")
    assert refused(board, model) == "ssh:board: its host key is not known here; run `ssh board` once and accept it"
    assert (board.folder / "known").read_text() == ""


def test_a_changed_host_key(board, model):
    known = board.folder / "known"
    name = known.read_text().split(" ")[0]
    known.write_text(f"{name} {' '.join((board.folder / 'other.pub').read_text().split(' ')[:2])}\n")
    assert "ssh:board: its host key is not the one known before; if that is right" in refused(board, model)


def test_no_client(model, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_SSH", "no-such-ssh")
    with pytest.raises(DeviceError, match=r"no-such-ssh cannot be started .*install OpenSSH's client"):
        run_there(model)


def test_what_looks_like_an_option_is_a_host(model, board):
    with pytest.raises(DeviceError, match="ssh:-V: "):
        bench([Subject(model, "m", "x")], settings=QUICK, place=find_place("ssh:-V"))


def test_the_users_forwardings_and_commands_do_not_disturb(board, model):
    with board.client.open("a") as config:
        config.write(f"  LocalForward {board.port} 127.0.0.1:9\n  ExitOnForwardFailure yes\n  RemoteCommand top\n")
        config.write(f"  RequestTTY yes\n  ControlMaster auto\n  ControlPath {board.folder}/socket\n")
        config.write("  ControlPersist 60\n")
    assert run_there(model).measurements[0].latency is not None
    assert clean(board)


def test_a_shell_that_greets(server, model):
    server(command='echo Welcome to the board; eval "$SSH_ORIGINAL_COMMAND"')
    assert run_there(model).measurements[0].latency is not None


# ------------------------------------------------------------------------------------------ the board


def test_no_python(server, model, tmp_path):
    (tmp_path / "empty").mkdir()
    board = server(command=f'PATH={tmp_path}/empty; eval "$SSH_ORIGINAL_COMMAND"')
    expected = "ssh:board: python3 is not there or cannot be run; install Python 3.9 or newer there, or name one with"
    assert expected in refused(board, model, None)
    assert "ssh:board: /no/python is not there or cannot be run" in refused(board, model, "/no/python")


def test_an_old_python(server, model, tmp_path):
    old = "import sys; sys.version_info = (3, 7, 3); sys.version = '3.7.3 (default)'; exec(sys.argv[1])"
    real = shutil.which("python3", path="/usr/bin") or HERE
    board = server(command=in_the_way(tmp_path / "bin", f'exec {real} -c "{old}" "$2"'))
    assert "ssh:board: the benchmark needs Python 3.9, is 3.7.3; name a newer one" in refused(board, model, None)


@in_namespace
def test_no_venv(server, model, tmp_path):
    code = "import ensurepip, os, sys; print(os.path.dirname(ensurepip.__file__), sys.executable)"
    python = shutil.which("python3", path="/usr/bin") or HERE
    ensurepip, real = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    (tmp_path / "empty").mkdir()
    mount = f"mount --bind {tmp_path}/empty {ensurepip}"
    command = in_the_way(tmp_path / "bin", f'exec {real} "$@"')
    board = server(command=f"unshare -rm sh -c '{mount} && {command}'", environment=BARE)
    said = refused(board, model, None)
    assert re.search(r"ssh:board: has no onnxruntime, and it cannot be installed there \(.*(ensurepip|venv)", said)
    assert "install python3-venv there, or name a Python that has it with --python" in said
    assert not list(board.cache.glob("env-*"))


def test_no_network(server, model):
    board = server(environment=BARE)
    said = refused(board, model, None)
    assert re.search(r"has no onnxruntime, and it cannot be installed there \(.*No matching distribution", said)
    assert not list(board.cache.glob("env-*"))


def test_a_python_without_onnxruntime(board, model, tmp_path):
    subprocess.run([HERE, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    said = refused(board, model, f"{tmp_path}/bare/bin/python")
    pattern = r"bare/bin/python there cannot import numpy and onnxruntime \(ModuleNotFoundError.*\); install"
    assert re.search(pattern, said)


def test_a_python_that_has_it_already_is_used(server, model, tmp_path):
    board = server(command=in_the_way(tmp_path / "bin", f'exec {HERE} "$@"'), environment=BARE)
    assert run_there(model, None).measurements[0].latency is not None
    assert not list(board.cache.glob("env-*"))


@in_namespace
def test_a_full_disk(server, tmp_path):
    mount = "mount -t tmpfs -o size=1m tmpfs $XDG_CACHE_HOME"
    board = server(command=f"unshare -rm sh -c '{mount} && exec sh -c \"$SSH_ORIGINAL_COMMAND\"'")
    said = refused(board, matmul(tmp_path / "big.onnx", 1024))
    assert said == "ssh:board: its disk is full (No space left on device); free some space there"


@in_namespace
def test_a_disk_that_fills_up_while_installing(server, model):
    mount = "mount -t tmpfs -o size=30m tmpfs $XDG_CACHE_HOME"
    board = server(command=f"unshare -rm sh -c '{mount} && exec sh -c \"$SSH_ORIGINAL_COMMAND\"'")
    assert refused(board, model, None).startswith("ssh:board: its disk is full (No space left on device)")


def test_a_limit_of_the_size_of_files(server, tmp_path):
    board = server(command='ulimit -f 512; eval "$SSH_ORIGINAL_COMMAND"')
    big = matmul(tmp_path / "big.onnx", 1024)
    assert refused(board, big) == "ssh:board: its disk is full (File too large); free some space there"
    # The incomplete file is not kept.
    assert not [path for path in board.cache.glob("files/*") if path.suffix == ".onnx"]


def test_busy(board, model):
    with Ssh("board", HERE).reserve(silent) as device:
        with pytest.raises(DeviceError) as caught:
            run_there(model)
        pattern = r"ssh:board: busy: it is running another benchmark \(process \d+ for 127\.0\.0\.1 since .*\); wait"
        assert re.match(pattern, str(caught.value))
        assert device.read_conditions().load is not None  # the first one is not disturbed
    assert clean(board)
    assert run_there(model).measurements[0].latency is not None


def test_a_lock_of_a_dead_benchmark_is_none(board, model):
    with Ssh("board", HERE).reserve(silent):
        (agent,) = board.running("sys.stdin.buffer")
        agent.kill()
    assert (board.cache / "run").is_dir()
    assert run_there(model).measurements[0].latency is not None
    assert clean(board)


# -------------------------------------------------------------------------------------- halfway through


def soon(action) -> None:
    threading.Timer(1.0, action).start()


def test_a_connection_killed_while_a_model_runs(board, model):
    def say(what: str, done: int = 0, total: int = 0) -> None:
        if what == "timing":
            assert len(board.running()) >= 2  # the agent and the runner
            soon(lambda: [session.kill() for session in board.sessions()])

    with pytest.raises(DeviceError, match=r"ssh:board: the connection was lost.*; see whether the machine still runs"):
        run_there(model, HERE, say, LONG)
    assert clean(board)


def test_a_connection_killed_while_installing(board, model):
    def say(what: str, done: int = 0, total: int = 0) -> None:
        if "installing" in what:
            soon(lambda: [session.kill() for session in board.sessions()])

    with pytest.raises(DeviceError, match="the connection was lost"):
        run_there(model, None, say)
    assert clean(board)
    assert not list(board.cache.glob("env-*"))
    assert run_there(model, None).measurements[0].latency is not None


def test_a_runner_killed_there(board, model):
    def say(what: str, done: int = 0, total: int = 0) -> None:
        if what == "timing":
            soon(lambda: [runner.kill() for runner in board.running("files/")])

    with pytest.raises(DeviceError, match=r"model\.onnx: .*killed by SIGKILL during 'round'"):
        run_there(model, HERE, say, LONG)
    assert clean(board)


def test_an_interrupt(board, model):
    def say(what: str, done: int = 0, total: int = 0) -> None:
        if (what, done) == ("timing", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_there(model, HERE, say)
    assert clean(board)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_is_ended_while_a_model_runs(board, model, tmp_path, number):
    (tmp_path / "long.toml").write_text("bench = { warmup_s = 0.0, min_time_s = 60.0, min_runs = 3, rounds = 1 }\n")
    command = [HERE, "-m", "toolchain", "bench", str(model), "--on", "ssh:board", "--python", HERE]
    command += ["--recipe", str(tmp_path / "long.toml"), "-o", str(tmp_path / "results.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def runs_the_model() -> bool:
        assert process.poll() is None, process.communicate()
        return sum(sum(runner.cpu_times()[:2]) for runner in board.running("files/")) > BUSY_S

    assert eventually(runs_the_model)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=40)
    except subprocess.TimeoutExpired:  # Python loses an interrupt that comes within a destructor: press again
        process.send_signal(number)
        out, err = process.communicate(timeout=40)
    if number == signal.SIGINT:
        assert (process.returncode, out) == (130, "")
        *stages, error = err.splitlines()
        assert error == "error: interrupted; no result was written"
        assert stages[0].endswith("connecting to board")
        assert stages[-1].endswith("timing")
    assert board.quiet()
    assert clean(board)
    assert not (tmp_path / "results.json").exists()


# ----------------------------------------------------------------------------------------- the command


def test_the_command(board, toolchain, workplace):
    done = toolchain("bench net.onnx --on ssh:board --recipe fast.toml -o r.json --python", HERE)
    assert done.code == 0, done.err
    assert "measured" in done.out
    row = json.loads(Path("r.json").read_text())["measurements"][0]
    assert row["evidence"] == "measured"
    assert row["latency"]["samples_ms"]


def test_the_command_refuses_in_one_sentence(board, toolchain, workplace):
    (board.folder / "known").write_text("")
    done = toolchain("bench net.onnx --on ssh:board --recipe fast.toml -o r.json")
    assert done.code == 2
    assert done.sentence == "ssh:board: its host key is not known here; run `ssh board` once and accept it"
    assert not Path("r.json").exists()
