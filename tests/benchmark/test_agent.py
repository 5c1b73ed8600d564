"""The agent as a process on this machine, without a connection."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from toolchain.benchmark import agent
from toolchain.benchmark.process import LineProcess, ProcessEnd
from toolchain.benchmark.ssh import AGENT_SCRIPT


@pytest.fixture
def start(tmp_path):
    """Starts agents with a cache in ``tmp_path``, and waits for the first line of each."""
    running = []

    def run(*program: str) -> LineProcess:
        command = [sys.executable, *(program or [str(AGENT_SCRIPT)])]
        process = LineProcess(command, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
        running.append(process)
        assert set(process.receive(20)) == {"load", "clock_mhz", "temperature_c", "governor", "throttled"}
        return process

    yield run
    for process in running:
        process.__exit__()


def ask(process: LineProcess, do: str, **arguments):
    process.send({"do": do, **arguments})
    return process.receive(20)


def test_it_is_one_file_of_old_enough_standard_library():
    tree = ast.parse(AGENT_SCRIPT.read_text(), feature_version=(3, 9))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)


def test_a_file_is_there_whole_or_not_at_all(start, tmp_path):
    process = start()
    assert ask(process, "lock") == {}
    assert ask(process, "have", name="a.bin") == {"have": False}
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)) * 10_000)
    process.send({"do": "put", "name": "a.bin", "size": content.stat().st_size}, content)
    assert process.receive(20) == {}
    assert ask(process, "have", name="a.bin") == {"have": True}
    files = tmp_path / "edge-toolchain" / "files"
    assert (files / "a.bin").read_bytes() == content.read_bytes()
    process.send({"do": "put", "name": "b.bin", "size": content.stat().st_size + 1}, content)
    process.finish(20)
    assert [path.name for path in files.iterdir()] == ["a.bin"]
    assert not (tmp_path / "edge-toolchain" / "run").exists()


def test_one_at_a_time(start):
    first, second = start(), start()
    assert ask(first, "lock") == {}
    assert f"process {first.pid} since " in ask(second, "lock")["busy"]
    first.finish(20)
    assert ask(second, "lock") == {}


def test_what_fails_there_is_told(start, tmp_path):
    process = start()
    (tmp_path / "edge-toolchain").write_text("a file in the way")
    assert ask(process, "lock")["error"].endswith("edge-toolchain: File exists")


@pytest.mark.slow
def test_a_connection_that_says_nothing_any_more_ends(start, tmp_path):
    process = start("-c", "from toolchain.benchmark import agent; agent.main(idle_s=2)")
    assert ask(process, "lock") == {}
    assert process.receive(20) == ProcessEnd(0)  # it ends by itself: there is no timeout and no signal
    assert not (tmp_path / "edge-toolchain" / "run").exists()


@pytest.fixture
def firmware(tmp_path, monkeypatch):
    """The program that asks a Raspberry Pi's firmware."""
    answers = {
        "get_throttled": "throttled=0x50005",
        "measure_clock": "frequency(48)=1500398464",
        "measure_temp": "temp=61.8'C",
    }
    cases = "".join(f'{question}) echo "{answer}";; ' for question, answer in answers.items())
    (tmp_path / "vcgencmd").write_text(f'#!/bin/sh\ncase "$1" in {cases}esac\n')
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_raspberry_pi_tells_what_its_firmware_does(firmware):
    found = agent.read_conditions()
    assert (found["clock_mhz"], found["temperature_c"], found["throttled"]) == (1500.398464, 61.8, 0x50005)


def test_firmware_that_does_not_answer(firmware, tmp_path):
    (tmp_path / "vcgencmd").write_text("#!/bin/sh\necho VCHI initialization failed >&2\nexit 1\n")
    assert agent.read_conditions()["throttled"] is None


def test_it_says_nothing_but_json(tmp_path):
    done = subprocess.run(
        [sys.executable, AGENT_SCRIPT], input='{"do": "facts"}\n', capture_output=True, text=True, check=True,
        timeout=60, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    assert "processor" in lines[1]["files"]["proc/cpuinfo"] or sys.platform != "linux"
    assert done.stderr == ""
