"""The runner in C: its outputs and answers compared with those of ``runner.py``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import phone as phones
import psutil
import pytest
import qdq_models
from onnx import TensorProto, helper
from phone import LIBRARY, WARNINGS, needs_cc

from toolchain.benchmark import emulator, local
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.native import build as building
from toolchain.benchmark.native.build import (
    SOURCE_FOLDER,
    build,
    check_library,
    cross_compiler,
    host_compiler,
    ndk_compiler,
)
from toolchain.benchmark.native.runner import NativeRunner, read_answers, store_feed_npy
from toolchain.core.errors import DataError, DeviceError, InputError, ModelError

REAL = emulator.folder()
NO_ARM = emulator.unavailable("cortex-a53")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The runner for this machine, built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLCHAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build(host_compiler())


def opened(program, model, stored_feed=None, **how):
    """Start a runner with that model; stored_feed: as `store_feed_npy` returns it; how: fields of the job."""
    given = {} if stored_feed is None else {"feed": {}}  # only its presence matters, for the hint of an error
    job = BenchJob(model, **how, **given)
    return NativeRunner([str(program), str(LIBRARY)], job, first_line(job, str(model), stored_feed), library=LIBRARY)


def processor_ms(pid):
    """The processor time of a process so far, as the kernel counts it."""
    return sum(psutil.Process(pid).cpu_times()[:2]) * 1e3


def identities(path, **types):
    """Save a model that returns its inputs: [n, 2] each, of the given types; the outputs are named ``*_out``."""
    values = [helper.make_tensor_value_info(n, t, ["n", 2]) for n, t in types.items()]
    outputs = [helper.make_tensor_value_info(f"{n}_out", t, ["n", 2]) for n, t in types.items()]
    nodes = [helper.make_node("Identity", [n], [f"{n}_out"]) for n in types]
    graph = helper.make_graph(nodes, "g", values, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# --------------------------------------------------------------------------------------------------- building


def test_an_ndk_by_its_folder(tmp_path, monkeypatch):
    tools = tmp_path / "ndk/toolchains/llvm/prebuilt/linux-x86_64/bin"
    tools.mkdir(parents=True)
    for level in (21, 26, 24, 35):
        (tools / f"aarch64-linux-android{level}-clang").touch()
    (tools / "aarch64-linux-android24-clang++").touch()
    expected = (str(tools / "aarch64-linux-android24-clang"),)
    assert ndk_compiler("aarch64", tmp_path / "ndk").command == expected
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / "ndk"))
    assert ndk_compiler("aarch64", None).command == expected
    with pytest.raises(InputError, match="is no Android NDK with a compiler for x86_64"):
        ndk_compiler("x86_64", None)
    with pytest.raises(InputError, match=f"{tmp_path}: is no Android NDK"):
        ndk_compiler("aarch64", tmp_path)


def test_the_newest_ndk_of_an_sdk(tmp_path, monkeypatch):
    for name in building.NDK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for version in ("9.1.0", "27.0.12077973", "26.3.11579264", "side-by-side"):
        tools = tmp_path / "ndk" / version / "toolchains/llvm/prebuilt/linux-x86_64/bin"
        tools.mkdir(parents=True)
        (tools / "aarch64-linux-android30-clang").touch()
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path))
    assert "27.0.12077973" in ndk_compiler("aarch64", None).command[0]


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(DeviceError, match="there is no compiler no-such-cc; install a C compiler, or set CC"):
        host_compiler()


def test_a_compiler_that_refuses_is_one_sentence(tmp_path):
    phones.program(tmp_path / "clang", '[ "$1" = --version ] || { echo "runner.c:1: error: odd" >&2; exit 1; }\n')
    compiler = building.Compiler((str(tmp_path / "clang"),), "aarch64")
    with pytest.raises(DeviceError, match=r"clang: cannot compile the runner \(runner\.c:1: error: odd\)"):
        build(compiler)


def test_what_a_library_is_for():
    assert check_library(LIBRARY) in ("x86_64", "aarch64")
    with pytest.raises(InputError, match="is no shared library for Linux or Android"):
        check_library(Path(__file__))


def test_strings_are_not_sent(tmp_path):
    with pytest.raises(
        DataError, match=r"the feed: input 's' is .*; the runner for this device takes only numbers and bools"
    ):
        store_feed_npy({"s": np.array(["a"])}, tmp_path / "feed")


@pytest.mark.slow
@needs_cc
class TestBuilt:
    def test_it_is_built_once_and_anew_for_another_source(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TOOLCHAIN_CACHE", str(tmp_path / "cache"))
        first = build(host_compiler())
        before = first.stat().st_mtime_ns
        assert build(host_compiler()) == first
        assert first.stat().st_mtime_ns == before
        changed = tmp_path / "source"
        changed.mkdir()
        for path in (*SOURCE_FOLDER.glob("*.c"), *SOURCE_FOLDER.glob("*.h")):
            (changed / path.name).write_bytes(path.read_bytes() + b"\n")
        assert build(host_compiler(), changed) != first

    def test_nothing_to_warn_of(self, tmp_path):
        command = [
            "cc",
            *building.COMPILER_FLAGS,
            *WARNINGS,
            "-o",
            str(tmp_path / "runner"),
            str(SOURCE_FOLDER / "runner.c"),
        ]
        done = subprocess.run([*command, *building.LINKED_LIBRARIES], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_answers_are_pythons_bit_for_bit(self, program, tmp_path):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        with opened(program, model) as runner:
            assert runner.started()["onnxruntime"] == ort.__version__
            runner.ask("load")
            for seed in range(3):
                feed = qdq_models.feed((1, 16, 8, 8), seed)
                names = runner.answer(store_feed_npy(feed, tmp_path / "feed"), str(tmp_path / "out"))
                np.testing.assert_array_equal(read_answers(tmp_path / "out", names)["y_dq"], session.run(None, feed)[0])

    def test_every_dtype_comes_back_as_it_went(self, program, tmp_path):
        kinds = {
            "f": (TensorProto.FLOAT, np.float32), "größe\"\\": (TensorProto.DOUBLE, np.float64),
            "h": (TensorProto.FLOAT16, np.float16), "b": (TensorProto.BOOL, np.bool_),
            **{f"i{n}": (getattr(TensorProto, f"INT{n}"), np.dtype(f"i{n // 8}")) for n in (8, 16, 32, 64)},
            **{f"u{n}": (getattr(TensorProto, f"UINT{n}"), np.dtype(f"u{n // 8}")) for n in (8, 16, 32, 64)},
        }  # fmt: skip
        model = identities(tmp_path / "m.onnx", **{name: kind for name, (kind, _) in kinds.items()})
        rng = np.random.default_rng(0)
        feed = {name: rng.integers(0, 2, (3, 2)).astype(dtype) for name, (_, dtype) in kinds.items()}
        feed["f"] = np.asfortranarray(rng.standard_normal((3, 2)).astype(">f4"))
        with opened(program, model) as runner:
            runner.started()
            runner.ask("load")
            names = runner.answer(store_feed_npy(feed, tmp_path / "feed"), str(tmp_path / "out"))
        found = read_answers(tmp_path / "out", names)
        assert set(found) == {f"{name}_out" for name in kinds}
        for name, array in feed.items():
            np.testing.assert_array_equal(found[f"{name}_out"], array)
            assert found[f"{name}_out"].dtype == kinds[name][1]

    def test_made_up_feeds(self, program, tmp_path):
        types = {"x": "FLOAT", "d": "DOUBLE", "h": "FLOAT16", "ids": "INT64", "flag": "BOOL"}
        model = identities(tmp_path / "m.onnx", **{name: getattr(TensorProto, kind) for name, kind in types.items()})
        with opened(program, model, dims={"n": 50_000}) as runner:
            runner.started()
            runner.ask("load")
            names = runner.answer(None, str(tmp_path / "out"))
        found = read_answers(tmp_path / "out", names)
        for name in ("x", "d", "h"):
            noise = found[f"{name}_out"].astype(np.float64).ravel()
            assert noise.size == 100_000
            assert abs(noise.mean()) < 0.02
            assert noise.std() == pytest.approx(1, abs=0.02)
            below = [np.mean(noise < q) for q in (-2, -1, 0, 1, 2)]
            assert below == pytest.approx([0.0228, 0.1587, 0.5, 0.8413, 0.9772], abs=0.01)
        assert not found["ids_out"].any()
        assert found["flag_out"].all()

    def test_made_up_strings_and_unknown_axes(self, program, tmp_path):
        model = identities(tmp_path / "m.onnx", words=TensorProto.STRING)
        with opened(program, model) as runner:
            runner.started()
            runner.ask("load")
            assert runner.ask("warmup", {"seconds": 0})["runs"] == 0
            with pytest.raises(ModelError, match="output 'words_out' is of type 8"):
                runner.answer(None, str(tmp_path / "out"))

    def test_the_same_keys_as_in_python(self, program, tmp_path):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        commands = [
            ("load", {}),
            ("warmup", {"seconds": 0.05}),
            ("round", {"seconds": 0.3, "runs": 7}),
            ("memory", {}),
        ]
        with opened(program, model) as c, local.LocalRunner(BenchJob(model)) as python:
            mine, theirs, used_ms = [c.started()], [python.started()], []
            for do, numbers in commands:
                before = processor_ms(c.pid)
                mine.append(c.ask(do, numbers))
                used_ms.append(processor_ms(c.pid) - before)
                theirs.append(python.ask(do, numbers))
        for a, b in zip(mine, theirs, strict=True):
            assert {k: type(v) for k, v in b.items()}.items() <= {k: type(v) for k, v in a.items()}.items()
        samples, computed = mine[3]["samples_ms"], mine[3]["cpu_ms"]
        assert len(samples) == len(computed) >= 7
        # A round ends with the first inference that began after its 300 ms, or with the seventh.
        assert len(samples) == 7 or sum(samples[:-1]) < 300
        # The processor's clock encloses the other one, and reading it takes most of a microsecond.
        assert sum(computed) < 1.05 * sum(samples) + 1e-3 * len(computed)
        # The kernel's own account, in steps of 10 ms, also has the inferences before the round, and the clocks.
        assert 0.5 * used_ms[2] - 20 < sum(computed) < used_ms[2] + 20
        assert 0.2 * mine[4]["peak_run_bytes"] < mine[4]["pss_run_bytes"] <= mine[4]["peak_run_bytes"]
        assert mine[4]["peak_run_bytes"] < theirs[4]["peak_run_bytes"]

    def test_processors_and_arena(self, program, tmp_path):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        mine = sorted(os.sched_getaffinity(0))
        asked = {
            str(mine[-1]): [mine[-1]], f"{mine[0]},{mine[-1]}": sorted({mine[0], mine[-1]}), None: [],
            "x": None, "1-": None, "-1": None, "1-0": None, "": None, "0,": None, "99999": None, f"0-{1 << 40}": None,
        }  # fmt: skip
        for cpus, found in asked.items():
            with opened(program, model, threads=2, cpus=cpus, arena=False) as runner:
                answer = runner.started()
                if found is None:
                    assert answer == {"refused": f"'{cpus}' are not all among its processors"}
                    continue
                assert answer["cpus"] == found
                runner.ask("load")
                assert os.sched_getaffinity(runner.pid) == set(found or mine)
                runner.ask("warmup", {"seconds": 0})
                assert runner.ask("round", {"seconds": 0, "runs": 3})["cpu_ms"] == []  # two threads
                with pytest.raises(DeviceError, match="the runner in C makes no profiles"):
                    runner.ask("profile", {"runs": 3})

    def test_threads_and_options_reach_the_session(self, program, tmp_path):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        with opened(program, model, session_options={"session.load_model_format": "ORT"}) as runner:
            runner.started()
            with pytest.raises(ModelError, match="onnxruntime cannot load it"):
                runner.ask("load")
        with opened(program, model, threads=3) as runner:
            runner.started()
            runner.ask("load")
            assert len(list(Path(f"/proc/{runner.pid}/task").iterdir())) == 3

    @pytest.mark.parametrize(
        ("feed", "sentence"),
        [
            ({"x": np.zeros((1, 16, 8, 7), np.float32)}, "cannot run it .*Got: 7 Expected: 8.*give a feed"),
            ({"x": np.zeros((1, 16, 8, 8), np.float64)}, "cannot run it .*[Uu]nexpected input data type"),
            ({"y": np.zeros((1, 16, 8, 8), np.float32)}, "the feed has 'y', which is no input"),
            ({}, "input 'x' is missing in the feed"),
        ],
    )
    def test_wrong_feeds(self, program, tmp_path, feed, sentence):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        with opened(program, model, store_feed_npy(feed, tmp_path / "feed")) as runner:
            runner.started()
            runner.ask("load")
            with pytest.raises(ModelError, match=sentence) as caught:
                runner.ask("warmup", {"seconds": 0.05})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("keep", [0, 5, 9, 40, 100, 1000])
    def test_a_feed_that_is_not_whole(self, program, tmp_path, keep):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        stored = store_feed_npy(qdq_models.feed((1, 16, 8, 8)), tmp_path / "feed")
        (tmp_path / "feed").write_bytes((tmp_path / "feed").read_bytes()[:keep])
        with opened(program, model, stored) as runner:
            runner.started()
            runner.ask("load")
            with pytest.raises(ModelError, match=r"input x cannot be read|the feed for input 'x' .* is too short"):
                runner.ask("warmup", {"seconds": 0.05})

    @pytest.mark.parametrize(
        "lines",
        [
            b"\n", b"garbage\n", b"[]\n", b'{"model": 1\n', b"{}" * 600_000 + b"\n", b'{"a": 1}', b"\xff\xfe\x00{}\n",
            b'{"model": "m", "threads": 1}\n{"do": "load"}\n', b'{}\n{"do": "dance"}\n', b'{}\n{"do": 7}\n',
            b"{}\n{}\n",
            b'{"model": "m", "threads": -1, "session_options": {}}\n{"do": "load"}\n',
            b'{"model": "m", "threads": 1, "session_options": {"a": 1}}\n{"do": "load"}\n',
        ],
    )  # fmt: skip
    def test_garbage_ends_it_with_one_line(self, program, lines):
        done = subprocess.run([program, LIBRARY], input=lines, capture_output=True, check=False, timeout=60)
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert done.stdout.count(b"\n") <= 1

    def test_no_lines_are_no_failure(self, program):
        done = subprocess.run([program, LIBRARY], input=b"", capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_a_library_that_is_not_there(self, program, tmp_path):
        job = BenchJob(Path("m.onnx"))
        gone = tmp_path / "gone.so"
        with (
            NativeRunner([str(program), str(gone)], job, first_line(job, "m.onnx", None), library=gone) as runner,
            pytest.raises(DeviceError, match=r"gone\.so: cannot be opened \(.*No such file.*\); give a libonnxruntime"),
        ):
            runner.started()

    def test_waiting_takes_no_processor(self, program, tmp_path):
        model = qdq_models.residual(tmp_path / "m.onnx", signed=False)
        with opened(program, model, threads=2) as runner:
            runner.started()
            runner.ask("load")
            runner.ask("warmup", {"seconds": 0.05})
            stat = Path(f"/proc/{runner.pid}/stat")
            before = [int(n) for n in stat.read_text().split()[13:15]]
            subprocess.run(["sleep", "0.3"], check=True)
            assert sum(int(n) for n in stat.read_text().split()[13:15]) - sum(before) <= 3  # of 100 a second


# ------------------------------------------------------------------------------------------------ on another processor


@pytest.fixture
def emulated(monkeypatch):
    """The command that runs the runner, built for ARM, on an emulated CPU, and the ARM wheel's library."""
    if NO_ARM is not None:
        pytest.skip(NO_ARM)
    try:
        compiler = cross_compiler("aarch64")
    except DeviceError as error:
        pytest.skip(f"{error} (scripts/install-cross.sh)")
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    library = REAL / f"site/onnxruntime/capi/libonnxruntime.so.{ort.__version__}"
    assert check_library(library) == "aarch64"
    program = build(compiler)
    qemu = [str(REAL / "bin/qemu-aarch64"), "-L", str(REAL / "root"), "-cpu"]
    return lambda cpu: [*qemu, cpu, str(program), str(library)], library


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_the_same_integers_on_an_emulated_processor(emulated, tmp_path, cpu):
    command, library = emulated
    model = qdq_models.residual(tmp_path / "s8.onnx", signed=True)
    same = qdq_models.residual(tmp_path / "u8.onnx", signed=False)
    feed = qdq_models.feed((1, 16, 8, 8))
    here = ort.InferenceSession(str(same), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    (python,) = emulator.run(cpu, model, [feed])
    stored = store_feed_npy(feed, tmp_path / "feed")
    job = BenchJob(model, feed=feed)
    with NativeRunner(command(cpu), job, first_line(job, str(model), stored), library=library) as runner:
        assert runner.started()["onnxruntime"] == ort.__version__
        assert runner.ask("load")["load_ms"] > 0
        names = runner.answer(stored, str(tmp_path / "out"))
        assert runner.ask("warmup", {"seconds": 0.1})["runs"] > 0
        assert len(runner.ask("round", {"seconds": 0, "runs": 3})["samples_ms"]) == 3
    found = read_answers(tmp_path / "out", names)["y_dq"]
    np.testing.assert_array_equal(found, here)
    np.testing.assert_array_equal(found, python["y_dq"])
