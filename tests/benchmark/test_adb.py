"""adb:SERIAL with a scripted adb: refusals before anything is built, then benchmarks on a simulated phone."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import phone as phones
import psutil
import pytest
import qdq_models
from phone import LIBRARY, SERIAL, needs_cc
from recorded import ProgressLog, RecordedPlace
from waiting import eventually

from toolchain.benchmark import adb
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.find import find_place
from toolchain.benchmark.job import BenchJob
from toolchain.core.errors import DeviceError, InputError, ModelError
from toolchain.core.progress import silent
from toolchain.formats.recipe import Bench

QUICK = Bench(warmup_s=0.02, min_time_s=0.05, min_runs=6, rounds=2)


@pytest.fixture
def phone(tmp_path, monkeypatch):
    made = phones.make(tmp_path, monkeypatch)
    yield made
    assert made.processes() == []


@pytest.fixture
def model(tmp_path):
    return qdq_models.residual(tmp_path / "model.onnx", signed=False)


def run(place, *models, progress=silent):
    subjects = [Subject(path, path.stem, "int8") for path in models]
    return bench(subjects, settings=QUICK, threads=1, place=place, progress=progress).measurements


# --------------------------------------------------------------------- refused before anything is built or sent


def test_the_place_by_name(tmp_path):
    assert find_place("adb:192.168.0.7:5555").name == "adb:192.168.0.7:5555"
    assert find_place(f"adb:{SERIAL}", library=tmp_path / "a.so", ndk=tmp_path).library == tmp_path / "a.so"
    for option in ("library", "ndk"):
        with pytest.raises(InputError, match=f"--{option}: has no meaning for ssh:pi; give it with --on adb:SERIAL"):
            find_place("ssh:pi", **{option: tmp_path})


def test_no_client(phone, model, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_ADB", str(phone.home / "gone"))
    with pytest.raises(
        DeviceError, match=f"adb:{SERIAL}: .*gone cannot be started .*; install Android's platform-tools"
    ):
        run(phone.place, model)


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        ([], "no such device; `adb devices` shows none; connect it and turn on USB debugging"),
        (["X1\tdevice", "X2\toffline"], "no such device; `adb devices` shows X1 (device), X2 (offline); connect"),
        ([f"{SERIAL}\tunauthorized"], "is not ready: `adb devices` shows it as unauthorized; unlock it and allow USB"),
        ([f"{SERIAL}\toffline"], "is not ready: `adb devices` shows it as offline; unplug it"),
        ([f"{SERIAL}\tno permissions (user in plugdev group; are your udev rules wrong?)"], "; give your user access"),
        ([f"{SERIAL}\trecovery"], "shows it as recovery; start Android on it"),
    ],
)
def test_not_a_ready_device(phone, model, shown, sentence):
    phone.show(*shown)
    with pytest.raises(DeviceError) as caught:
        run(phone.place, model)
    assert str(caught.value).startswith(f"adb:{SERIAL}: ")
    assert sentence in str(caught.value)


def test_too_old(phone, model):
    (phone.home / "features").write_text("cmd\n")
    with pytest.raises(DeviceError, match=r"is too old .*; use a device with Android 7 or newer"):
        run(phone.place, model)


def test_no_library(phone, model):
    with pytest.raises(InputError, match=r"--library: is missing for adb:.*; take it from onnxruntime-android's \.aar"):
        run(adb.Adb(SERIAL), model)


def elf(path, machine, kind=3):
    """Write the beginning of a 64-bit little-endian ELF file."""
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", kind, machine) + bytes(44))
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "no such file"), (b"PK\3\4" + bytes(60), "is no shared library for Linux"), (b"\x7fELF", "is no shared")],
)
def test_a_library_that_is_none(phone, model, tmp_path, content, sentence):
    path = tmp_path / "lib.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        run(adb.Adb(SERIAL, path), model)
    assert not (phone.home / "log").exists()


def test_a_program_is_no_library(phone, model, tmp_path):
    with pytest.raises(InputError, match="is no shared library"):
        run(adb.Adb(SERIAL, elf(tmp_path / "program", 62, kind=2)), model)


@pytest.mark.parametrize(("abis", "machine", "found"), [("arm64-v8a,armeabi-v7a", 62, "x86_64"), ("x86_64", 40, "arm")])
def test_a_library_for_another_processor(phone, model, tmp_path, abis, machine, found):
    phone.says({**phones.PROPERTIES, "ro.product.cpu.abilist": abis})
    with pytest.raises(InputError, match=f"is for {found}, and adb:{SERIAL} is .*: jni/{abis.split(',')[0]}/"):
        run(adb.Adb(SERIAL, elf(tmp_path / "lib.so", machine)), model)
    assert phone.calls("push") == []


def test_a_32_bit_system(phone, model):
    phone.says({"ro.product.cpu.abilist": "armeabi-v7a,armeabi"})
    with pytest.raises(DeviceError, match=r"runs no 64-bit programs \(armeabi-v7a, armeabi\); use another device"):
        run(phone.place, model)


def test_no_ndk(phone, model, monkeypatch):
    for name in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        DeviceError, match=r"cannot be built without the Android NDK; install .* --ndk, or set ANDROID_NDK"
    ):
        run(adb.Adb(SERIAL, LIBRARY), model)
    assert phone.calls("push") == []


def test_detecting_needs_neither_library_nor_ndk(phone):
    with adb.Adb(SERIAL).reserve(silent) as device:
        found = device.detect()
    assert (found.name, found.title.split(",")[0]) == ("phone-5", "Phone 5")
    assert phone.calls("push") == []


# ------------------------------------------------------------------------------------- with the runner, built here


@pytest.mark.slow
@needs_cc
def test_a_benchmark_and_the_second_sends_nothing(phone, model):
    log = ProgressLog()
    (first,) = run(phone.place, model, progress=log)
    assert (first.host.name, first.target, first.evidence) == ("Phone 5", "phone-5", "measured")
    assert first.host.os.startswith("Android 14 (Linux")
    assert first.host.onnxruntime == ort.__version__
    assert len(first.latency.samples_ms) >= 6
    assert first.memory.peak_run_bytes > first.memory.baseline_bytes > 2**20
    sent = [what.split()[1] for what in log.stages if what.startswith("sending")]
    assert sent == ["runner", "libonnxruntime.so", "model.onnx"]
    pushed = len(phone.calls("push"))
    assert pushed == 3  # the runner, the runtime, the model
    run(phone.place, model)
    assert len(phone.calls("push")) == pushed


@pytest.mark.slow
@needs_cc
def test_several_models_take_turns_and_see_their_feeds(phone, model, tmp_path):
    other = qdq_models.heavy_conv(tmp_path / "other.onnx", signed=False)
    feeds = [qdq_models.feed((1, 16, 8, 8), 0), qdq_models.feed((1, 64, 4, 4), 0)]
    subjects = [Subject(p, p.stem, "int8", feeds=f) for p, f in zip((model, other), feeds, strict=True)]
    place = RecordedPlace(phone.place)
    bench(subjects, settings=QUICK, threads=1, place=place)
    assert place.order("round") == ["model", "other", "other", "model"]


@pytest.mark.slow
@needs_cc
def test_answers_are_those_of_here(phone, model):
    feeds = [qdq_models.feed((1, 16, 8, 8), seed) for seed in range(2)]
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with phone.place.reserve(silent) as device:
        answers = device.answer(model, feeds, session_options={})
    for feed, found in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(found["y_dq"], session.run(None, feed)[0])
    assert not (phone.root / "answer").exists()


@pytest.mark.slow
@needs_cc
def test_processors(phone, model):
    with phone.place.reserve(silent) as device:
        with device.open(BenchJob(model, cpus="0")) as runner:
            assert runner.started()["cpus"] == [0]
        if (
            len({path.read_text() for path in Path("/sys").glob("devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq")})
            < 2
        ):
            with pytest.raises(
                DeviceError, match="has one kind of core only, or reports no clocks; give the processors"
            ):
                device.open(BenchJob(model, cpus="big"))


@pytest.mark.slow
@needs_cc
def test_external_weights_go_with_their_model(phone, model, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    onnx.save(
        onnx.load(model), folder / "it's.onnx", save_as_external_data=True, location="its weights", size_threshold=16
    )
    (row,) = run(phone.place, folder / "it's.onnx")
    assert row.latency is not None


@pytest.mark.slow
@needs_cc
def test_busy(phone, model):
    with phone.place.reserve(silent) as device:
        device.describe()
        with pytest.raises(DeviceError, match=r"busy: it is running another benchmark \(process \d+ since .*\); wait"):
            run(phone.place, model)
        assert eventually(lambda: len(phone.processes()) <= 1)  # the refused one's shell takes a moment to end
        assert len(phone.processes()) == 1  # the first one's lock outlives the refusal
    assert run(phone.place, model)


@pytest.mark.slow
@needs_cc
def test_full_storage(phone, model):
    (phone.home / "full").touch()
    with pytest.raises(DeviceError, match=r"its storage is full \(No space left on device\); free some space there"):
        run(phone.place, model)
    assert list(phone.root.glob("files/*")) == []
    (phone.home / "full").unlink()
    assert run(phone.place, model)


@pytest.mark.slow
@needs_cc
def test_what_a_cut_off_transfer_left_goes(phone, model):
    part = phone.root / "files/0123.99.part"
    part.mkdir(parents=True)
    run(phone.place, model)
    assert not part.exists()


@pytest.mark.slow
@needs_cc
@pytest.mark.parametrize("shown", [(), (f"{SERIAL}\toffline",)])
def test_the_connection_is_lost(phone, model, shown):
    def cut(what, done=0, total=0):
        if (what, done) == ("timing", 1):
            phone.show(*shown)
            for client in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):  # some end while they are looked at
                    if str(phones.CLIENT) in client.cmdline():
                        client.kill()

    state = shown[0].split("\t")[1] if shown else "gone"
    with pytest.raises(DeviceError, match=f"the connection was lost, it is {state}; check the cable"):
        run(phone.place, model, progress=cut)
    assert eventually(lambda: not phone.processes())  # the device notices the end of the connection after a moment


@pytest.mark.slow
@needs_cc
def test_an_interrupt_leaves_nothing(phone, model):
    def interrupt(what, done=0, total=0):
        if (what, done) == ("timing", 1):
            assert len(phone.processes()) == 2  # the lock and the runner
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(phone.place, model, progress=interrupt)
    assert eventually(lambda: not phone.processes())  # the device notices the end of the connection after a moment


@pytest.mark.slow
@needs_cc
def test_a_runner_killed_there(phone, model):
    def kill(what, done=0, total=0):
        if (what, done) == ("timing", 0):
            (runner,) = (p for p in phone.processes() if "--hold" not in p.cmdline())
            runner.send_signal(signal.SIGKILL)

    with pytest.raises(DeviceError, match=r"model\.onnx: the benchmark process was killed by SIGKILL during 'round'"):
        run(phone.place, model, progress=kill)


@pytest.mark.slow
@needs_cc
def test_a_leftover_of_a_lost_benchmark_is_ended(phone, model):
    run(phone.place, model)
    (runner,) = phone.root.glob("files/*/runner")
    left = subprocess.Popen([str(runner), str(LIBRARY)], stdin=subprocess.PIPE)
    run(phone.place, model)
    assert left.wait(5) == -signal.SIGKILL
    left.stdin.close()


@pytest.mark.slow
@needs_cc
def test_a_library_of_something_else(phone, model, tmp_path):
    other = tmp_path / "libother.so"
    source = tmp_path / "other.c"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)
    with pytest.raises(
        DeviceError, match=r"libother\.so: cannot be opened \(.* is no library of onnxruntime\); give a"
    ):
        run(adb.Adb(SERIAL, other, phone.ndk), model)


@pytest.mark.slow
@needs_cc
def test_not_a_model(phone, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a protobuf at all")
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime cannot load it \(.*\); check the file"):
        run(phone.place, broken)


@pytest.mark.slow
@needs_cc
def test_an_exported_folder_is_verified_there(phone, exported, toolchain):
    folder = next(path.parent for path in Path("out").glob("*/manifest.json") if path.parent.name == "host")
    place = f"--on adb:{SERIAL} --library {LIBRARY} --ndk {phone.ndk}"
    done = toolchain(f"verify {folder} {place}")
    assert (done.code, done.out) == (0, f"{folder} on adb:{SERIAL}, 3 samples: identical, bit for bit\n"), done.err
    assert toolchain(f"verify {folder} --on adb:{SERIAL}").sentence.startswith("--library: is missing for adb:")


@pytest.mark.slow
@needs_cc
def test_on_the_command_line(phone, model, toolchain):
    done = toolchain(f"bench {model} --on adb:{SERIAL} --library {LIBRARY} --ndk {phone.ndk} --threads 1")
    assert done.code == 0, done.err
    assert "Phone 5: Maker X1" in done.out
    assert "measured" in done.out
