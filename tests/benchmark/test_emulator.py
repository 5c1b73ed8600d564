import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest
import qdq_models

from toolchain.benchmark import emulator
from toolchain.core.errors import DeviceError, InputError

# Read when this file is imported: the cache is another one while a test runs.
REAL = emulator.folder()
ABSENT = {cpu: emulator.unavailable(cpu) for cpu in emulator.CPUS}
SCRIPT = Path(emulator.__file__).parents[2] / "scripts" / "emulator-setup.sh"
ARM = ["cortex-a53", "cortex-a72", "cortex-a76"]


def emulated(*cpus):
    """Make each CPU a parameter of a slow test, skipped with the reason where it cannot be emulated."""
    return [
        pytest.param(
            cpu, marks=[pytest.mark.slow, pytest.mark.skipif(ABSENT[cpu] is not None, reason=str(ABSENT[cpu]))]
        )
        for cpu in cpus
    ]


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """An emulator that runs the program on this machine, to test everything but the emulation itself."""
    folder = tmp_path / "emulator"
    (folder / "bin").mkdir(parents=True)
    (folder / "onnxruntime-version").write_text(version("onnxruntime") + "\n")
    qemu = folder / "bin" / "qemu-x86_64"
    qemu.write_text('#!/bin/sh\n[ "$1" = -cpu ] || exit 9\nshift 2\nexec "$@"\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(folder))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return folder


def test_answers_come_back_by_name_and_feed(pretended, tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    feeds = [qdq_models.feed((1, 16, 8, 8), seed) for seed in range(3)]
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    answers = emulator.run("x86-avx2", model, feeds)
    for feed, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y_dq"], session.run(None, feed)[0])


def test_a_relative_path_is_meant_from_here(pretended, tmp_path, monkeypatch):
    qdq_models.float_conv(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    written = emulator.optimized("x86-avx2", Path("m.onnx"), Path("graph.onnx"))
    assert {node.op_type for node in onnx.load(written).graph.node} != {"Conv", "Relu"}


def test_options_reach_the_session(pretended, tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=True)
    with pytest.raises(DeviceError, match=r"the run failed \(.*[Cc]onfig key"):
        emulator.run("x86-avx2", model, [qdq_models.feed((1, 16, 8, 8))], options={"": "1"})


def test_an_unknown_cpu_has_a_near_match():
    with pytest.raises(DeviceError, match="unknown emulated CPU 'cortex-a75'; did you mean 'cortex-a7"):
        emulator.unavailable("cortex-a75")


@pytest.mark.parametrize("cpu", ["cortex-a76", "x86-avx2"])
def test_an_absent_emulator_is_one_sentence_with_the_command(cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(tmp_path / "none"))
    assert "there is no emulator in" in emulator.unavailable(cpu)
    with pytest.raises(DeviceError, match=rf"emulator:{cpu}: there is no emulator in .*toolchain emulator setup"):
        emulator.run(cpu, tmp_path / "m.onnx", [])


def test_another_runtime_there_is_told(pretended):
    (pretended / "onnxruntime-version").write_text("1.2.3\n")
    assert "holds onnxruntime 1.2.3 where" in emulator.unavailable("x86-avx2")


def test_x86_needs_an_x86_machine(pretended, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "which is for aarch64" in emulator.unavailable("x86-avx2")


def test_a_missing_model_is_told_before_anything_runs(pretended, tmp_path):
    (pretended / "bin" / "qemu-x86_64").unlink()
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        emulator.run("x86-avx2", tmp_path / "none.onnx", [])


def test_a_failing_run_says_why(pretended, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"emulator:x86-avx2: the run failed \(.*(Protobuf|INVALID)"):
        emulator.run("x86-avx2", tmp_path / "m.onnx", [])


def test_a_crash_and_a_silent_death_are_told(pretended, tmp_path):
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    (pretended / "bin" / "qemu-x86_64").write_text("#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(DeviceError, match="exit code -11"):
        emulator.run("x86-avx2", model, [])
    (pretended / "bin" / "qemu-x86_64").unlink()
    with pytest.raises(DeviceError, match="cannot be started"):
        emulator.run("x86-avx2", model, [])


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended(pretended, tmp_path):
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    (pretended / "bin" / "qemu-x86_64").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid; exec sleep 600\n")
    with pytest.raises(DeviceError, match=r"gave no answer within 2 s"):
        emulator.run("x86-avx2", model, [], timeout_s=2)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("cpu", emulated(*ARM, "cortex-a710", "max"))
@pytest.mark.parametrize("signed", [False, True])
def test_arm_adds_products_exactly(cpu, signed, real, tmp_path):
    model = qdq_models.heavy_conv(tmp_path / "m.onnx", signed=signed)
    feed = {"x": np.abs(qdq_models.feed((1, 64, 4, 4))["x"]) * 4}
    (answer,) = emulator.run(cpu, model, [feed])
    np.testing.assert_array_equal(answer["y_dq"], qdq_models.heavy_answer(feed["x"]))


@pytest.mark.parametrize("cpu", emulated("x86-avx2"))
def test_avx2_without_vnni_saturates(cpu, real, tmp_path):
    model = qdq_models.heavy_conv(tmp_path / "m.onnx", signed=False)
    feed = {"x": np.abs(qdq_models.feed((1, 64, 4, 4))["x"]) * 4}
    (answer,) = emulator.run(cpu, model, [feed])
    assert not np.array_equal(answer["y_dq"], qdq_models.heavy_answer(feed["x"]))
    # Small inputs cannot overflow, so there the same kernel is exact.
    small = {"x": feed["x"] / 16}
    (answer,) = emulator.run(cpu, model, [small])
    np.testing.assert_array_equal(answer["y_dq"], qdq_models.heavy_answer(small["x"]))


@pytest.mark.parametrize("cpu", emulated("cortex-a76"))
def test_the_arm_wheel_fuses_signed_activations(cpu, real, tmp_path):
    model = qdq_models.residual(tmp_path / "m.onnx", signed=True)
    graph = onnx.load(emulator.optimized(cpu, model, tmp_path / "graph.onnx")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QLinearAdd") == 1
    assert kinds.count("DequantizeLinear") == 1
    assert "Relu" not in kinds


@pytest.mark.parametrize("cpu", emulated("cortex-a76"))
def test_setup_leaves_a_complete_emulator_alone(cpu):
    done = subprocess.run(
        [SCRIPT, REAL],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert "is complete" in done.stdout


def test_setup_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 2
    assert "holds no emulator" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
