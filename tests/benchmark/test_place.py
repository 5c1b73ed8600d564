"""Places by name, and emulated ones: answers and no time."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
import qdq_models

from toolchain.benchmark import emulator
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.emulated import Emulated, difference
from toolchain.benchmark.find import find_place
from toolchain.benchmark.local import Local
from toolchain.benchmark.ssh import Ssh, _quoted
from toolchain.core.errors import DeviceError, InputError, ModelError
from toolchain.devices.catalogue import load_target
from toolchain.formats.recipe import Bench

QUICK = Bench(warmup_s=0.0, min_time_s=0.0, min_runs=3, rounds=1)


def test_places_by_name():
    assert find_place("local") == Local()
    assert find_place("ssh:user@pi.local") == Ssh("user@pi.local")
    assert find_place("ssh:pi", python="/opt/python").python == "/opt/python"
    assert find_place("emulator:cortex-a72").name == "emulator:cortex-a72"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ssg:pi", "--on: unknown place 'ssg:pi'; did you mean 'ssh:pi'?"),
        ("emulater:max", "--on: unknown place 'emulater:max'; did you mean 'emulator:max'?"),
        ("here", "--on: unknown place 'here'; give one of: local, ssh:HOST, adb:SERIAL, emulator:CPU"),
        ("local:x", "--on: unknown place 'local:x'; give one of: local, ssh:HOST, adb:SERIAL, emulator:CPU"),
        ("ssh", "--on: 'ssh' does not say which; give ssh:HOST"),
        ("ssh:", "--on: 'ssh:' does not say which; give ssh:HOST"),
    ],
)
def test_other_places_are_refused(text, sentence):
    with pytest.raises(InputError) as caught:
        find_place(text)
    assert str(caught.value) == sentence


def test_an_unknown_emulated_cpu():
    with pytest.raises(DeviceError, match="unknown emulated CPU 'cortex-a75'; did you mean"):
        find_place("emulator:cortex-a75")


def test_an_interpreter_is_for_ssh_alone():
    with pytest.raises(InputError, match="--python: has no meaning for local; give it with --on ssh:HOST"):
        find_place("local", python="python3")


def test_a_path_means_there_what_it_means_here(tmp_path):
    for given, meant in [("~/env/bin/python", f"{tmp_path}/env/bin/python"), ("/a b/$x'y", "/a b/$x'y")]:
        done = subprocess.run(
            ["sh", "-c", f"echo {_quoted(given)}"],
            env={"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == meant


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An emulator that runs the program on this very machine."""
    folder = tmp_path / "emulator"
    (folder / "bin").mkdir(parents=True)
    (folder / "onnxruntime-version").write_text(version("onnxruntime") + "\n")
    (folder / "bin" / "qemu-x86_64").write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    (folder / "bin" / "qemu-x86_64").chmod(0o755)
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(folder))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_emulation_answers_and_has_no_time(pretended, tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    lines: list[str] = []
    place = find_place("emulator:x86-avx2")
    (row,) = bench([Subject(model, "m", "int8")], settings=QUICK, place=place, progress=lines.append).measurements
    assert (row.evidence, row.target, row.latency, row.memory) == ("emulated", "x86-avx2", None, None)
    assert re.fullmatch(r"answers identical to those of this \w+ machine, bit for bit", row.note)
    assert lines == ["m int8: answering here and on emulator:x86-avx2"]
    given = Subject(model, "m", "int8", feeds=qdq_models.feed((1, 16, 8, 8)), note="kept")
    target = load_target("x86-avx2")
    (row,) = bench([given], settings=QUICK, target=target, place=place).measurements
    assert (row.target, row.note[:6]) == ("x86-avx2", "kept; ")


def test_who_asks_for_its_time_is_told_why_there_is_none(pretended, tmp_path):
    with Emulated("x86-avx2").reserve(lambda line: None) as device:
        with pytest.raises(DeviceError, match="computes, never how long it takes; time it on the device"):
            device.open(tmp_path / "m.onnx", threads=1, session_options={})
        with pytest.raises(DeviceError, match="no device to describe"):
            device.detect()


def test_an_emulator_that_is_not_set_up(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(tmp_path / "none"))
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match=r"emulator:cortex-a72: there is no emulator in .*; run `toolchain emulat"):
        bench([Subject(model, "m", "x")], settings=QUICK, place=find_place("emulator:cortex-a72"))


def test_a_model_or_feed_that_is_refused_here(pretended, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    place = find_place("emulator:x86-avx2")
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime .*does not accept it"):
        bench([Subject(tmp_path / "broken.onnx", "m", "x")], settings=QUICK, place=place)
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime cannot run it"):
        bench([Subject(model, "m", "x", feeds={"nothing": np.ones(1)})], settings=QUICK, place=place)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ([1.0, 2.0], "identical"),
        ([1.0, 2.5], "differ from those of .* by 0.5 at most, in b, whose values go to 2"),
        ([1.0, np.nan], "differ .* by inf"),
        ([1.0], "differ .* by inf"),
    ],
)
def test_differences_in_words(there, words):
    same = np.zeros(3, np.int64)
    here = {"a": same, "b": np.array([1.0, 2.0])}
    assert re.search(words, difference(here, {"a": same, "b": np.array(there)}))


@pytest.mark.slow
@pytest.mark.skipif(emulator.unavailable("cortex-a72") is not None, reason=str(emulator.unavailable("cortex-a72")))
def test_the_command_answers_for_a_cortex_a72(toolchain, workplace):
    done = toolchain("bench net.onnx --on emulator:cortex-a72 -o r.json")
    assert done.code == 0, done.err
    assert "emulated" in done.out
    assert re.search(r"answers (identical|differ)", done.out)
    assert done.err == "no latency: an emulated CPU says what a model computes, never how long it takes\n"


# ------------------------------------------------------------------------------------------- setting up


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Another set-up script."""

    def write(text: str) -> None:
        (tmp_path / "setup.sh").write_text(text)
        monkeypatch.setattr(emulator, "script", lambda: tmp_path / "setup.sh")

    return write


def test_the_script_of_the_checkout_is_found():
    assert emulator.script().is_file()


def test_setting_up_tells_its_steps(script, toolchain):
    script('echo "emulator-setup: fetching"; echo "$1 $PYTHON"')
    lines: list[str] = []
    assert emulator.set_up(lines.append) == emulator.folder()
    assert lines == ["fetching", f"{emulator.folder()} {sys.executable}"]
    assert toolchain("emulator setup --json").result == {"folder": str(emulator.folder())}


def test_a_failed_set_up_is_one_sentence(script, toolchain):
    script('echo "some words"; echo "emulator-setup: apt-get is missing; run this on Debian" >&2; exit 2')
    done = toolchain("emulator setup")
    assert done.code == 2
    assert done.sentence.startswith("the emulator: cannot be set up (apt-get is missing; run this on Debian)")


def test_an_interrupted_set_up_cleans_up(script, tmp_path):
    script(f"trap 'rm -f {tmp_path}/half' EXIT; touch {tmp_path}/half; echo begun; sleep 60")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        emulator.set_up(interrupt)
    assert time.monotonic() - start < 20
    assert not (tmp_path / "half").exists()


def test_emulated_cpus_are_listed(toolchain):
    assert [row["name"] for row in toolchain("emulator list --json").result] == list(emulator.CPUS)
    assert "cortex-a72   aarch64" in toolchain("emulator list").out
