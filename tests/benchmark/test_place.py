"""Places by name and what each can do; emulated ones, which give answers and no latency."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest
import qdq_models
from recorded import ProgressLog

from toolchain.benchmark import emulator
from toolchain.benchmark.adb import Adb
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.comparison import describe_difference
from toolchain.benchmark.emulated import Emulated
from toolchain.benchmark.find import find_place
from toolchain.benchmark.local import Local
from toolchain.benchmark.place import TargetEvidence, detected_evidence
from toolchain.benchmark.ssh import Ssh, shell_path
from toolchain.core.errors import DeviceError, InputError, ModelError
from toolchain.core.progress import silent
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
            ["sh", "-c", f"echo {shell_path(given)}"],
            env={"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == meant


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An emulator that runs the program on this machine."""
    folder = tmp_path / "emulator"
    (folder / "bin").mkdir(parents=True)
    (folder / "onnxruntime-version").write_text(version("onnxruntime") + "\n")
    (folder / "bin" / "qemu-x86_64").write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    (folder / "bin" / "qemu-x86_64").chmod(0o755)
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(folder))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_emulation_answers_and_has_no_time(pretended, tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    log, place = ProgressLog(), find_place("emulator:x86-avx2")
    (row,) = bench([Subject(model, "m", "int8")], settings=QUICK, place=place, progress=log).measurements
    assert (row.evidence, row.target, row.latency, row.memory) == ("emulated", "x86-avx2", None, None)
    assert re.fullmatch(r"answers identical to those of this \w+ machine, bit for bit", row.note)
    assert log.reports == [("running each model here and on emulator:x86-avx2", 0, 1)]
    given = Subject(model, "m", "int8", feeds=qdq_models.feed((1, 16, 8, 8)), note="kept")
    target = load_target("x86-avx2")
    (row,) = bench([given], settings=QUICK, target=target, place=place).measurements
    assert (row.target, row.note[:6]) == ("x86-avx2", "kept; ")


@pytest.mark.parametrize(
    ("place", "times", "answers", "profiles"),
    [
        (Local(), True, True, True),
        (Ssh("pi"), True, False, True),
        (Adb("X1"), True, True, False),
        (Emulated("x86-avx2"), False, True, False),
    ],
)
def test_what_each_place_can_do(place, times, answers, profiles):
    assert (place.timing is not None, place.answering is not None) == (times, answers)
    assert place.profiles_operators == profiles


def test_an_emulated_cpu_has_nothing_that_could_be_timed(pretended):
    with Emulated("x86-avx2").answering(silent) as device:
        assert not {"open", "detect", "read_conditions"} & set(dir(device))


def test_evidence_of_a_row():
    pi, rk3588 = load_target("raspberry-pi-5"), load_target("rk3588")
    assert Emulated("max").evidence_for(None) == TargetEvidence("max", "emulated")
    assert Emulated("max").evidence_for(pi) == TargetEvidence("raspberry-pi-5", "emulated")
    assert Local().evidence_for(None) == TargetEvidence(None, "measured")
    assert Local().evidence_for(load_target("host")) == TargetEvidence("host", "measured")
    assert Local().evidence_for(pi) == TargetEvidence("raspberry-pi-5", "host")
    assert detected_evidence(pi.renamed("mine"), None) == TargetEvidence("mine", "measured")
    assert detected_evidence(pi.renamed("mine"), pi) == TargetEvidence("raspberry-pi-5", "measured")
    assert detected_evidence(rk3588, pi) == TargetEvidence("raspberry-pi-5", "host")


def test_an_emulated_cpu_is_no_device_to_describe(toolchain):
    done = toolchain("targets detect --on emulator:cortex-a72")
    assert done.code == 2
    assert done.sentence == (
        "--on: emulator:cortex-a72 is an emulated CPU, not a device to describe; give local, ssh:HOST or adb:SERIAL"
    )


def test_a_place_that_only_times_models_is_not_verified_on(toolchain):
    done = toolchain("verify . --on ssh:pi")
    assert done.code == 2
    assert done.sentence.startswith("--on: models are only timed on ssh:pi, not run on given inputs; give local, emu")


def test_answers_of_this_machine(tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    feeds = [qdq_models.feed((1, 16, 8, 8), seed) for seed in range(3)]
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with Local().answering(silent) as device:
        answers = device.answer(model, feeds, session_options={})
        with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime cannot run it \(.*; check the names, shapes"):
            device.answer(model, [{"nothing": np.ones(1)}], session_options={})
    for feed, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y_dq"], session.run(None, feed)[0])


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
    assert re.search(words, describe_difference(here, {"a": same, "b": np.array(there)}))


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
def script(tmp_path):
    """Writes another set-up script."""

    def write(text: str) -> Path:
        (tmp_path / "setup.sh").write_text(text)
        return tmp_path / "setup.sh"

    return write


@pytest.fixture
def bash(tmp_path, monkeypatch):
    """A program called bash, found before the real one, that runs the given text in place of the set-up script."""

    def write(text: str) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "bash").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/asked; shift\n{text}\n')
        (tmp_path / "bin" / "bash").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return write


def test_the_script_of_the_checkout_is_found():
    assert emulator.setup_script().is_file()


def test_setting_up_tells_its_steps(script):
    log, steps = ProgressLog(), script('echo "emulator-setup: fetching"; echo "$1 $PYTHON"')
    assert emulator.set_up(log, script=steps) == emulator.folder()
    assert log.stages == ["fetching", f"{emulator.folder()} {sys.executable}"]


def test_the_command_sets_up(bash, toolchain, tmp_path):
    bash(f'echo "$1 $PYTHON" > {tmp_path}/given')
    assert toolchain("emulator setup --json").result == {"folder": str(emulator.folder())}
    assert (tmp_path / "asked").read_text().strip() == str(emulator.setup_script())
    assert (tmp_path / "given").read_text().strip() == f"{emulator.folder()} {sys.executable}"


def test_a_failed_set_up_is_one_sentence(bash, toolchain):
    bash('echo "some words"; echo "emulator-setup: apt-get is missing; run this on Debian" >&2; exit 2')
    done = toolchain("emulator setup")
    assert done.code == 2
    assert done.sentence.startswith("the emulator: cannot be set up (apt-get is missing; run this on Debian)")


def test_an_interrupted_set_up_cleans_up(script, tmp_path):
    steps = f"trap 'rm -f {tmp_path}/half' EXIT; touch {tmp_path}/half; echo $$; sleep 600; touch {tmp_path}/slept"
    pids: list[int] = []

    def interrupt(what: str, done: int = 0, total: int = 0) -> None:
        assert (tmp_path / "half").exists()
        pids.append(int(what))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emulator.set_up(interrupt, script=script(steps))
    assert not psutil.pid_exists(pids[0])
    assert not (tmp_path / "half").exists()
    assert not (tmp_path / "slept").exists()


def test_emulated_cpus_are_listed(toolchain):
    assert [row["name"] for row in toolchain("emulator list --json").result] == list(emulator.CPUS)
    assert "cortex-a72   aarch64" in toolchain("emulator list").out
