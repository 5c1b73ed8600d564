"""Bad targets, recipes, limits, outputs and earlier results, as `test_bad_models.py` has it of models."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import QUANTIZE, content, samples

from toolchain.benchmark.emulator import SETUP_HINT
from toolchain.devices.catalogue import profile_folder

# --------------------------------------------------------------------------------- profiles and recipes


def _profile(old, new):
    text = (profile_folder() / "raspberry-pi-5.toml").read_text()
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (None, "raspberry-pi5", "unknown target 'raspberry-pi5'; did you mean 'raspberry-pi-5'?"),
        (None, "rpi", "unknown target 'rpi'; choose one of: android-arm64-dotprod, "),
        (None, "mine.toml", "mine.toml: no such target profile file; check the path"),
        (("[runtime]", "[runtimes]"), "mine.toml", "mine.toml: runtimes: unknown key; did you mean 'runtime'?"),
        (
            ("channel_multiple = ", "channel_multiple = 0.5 #"),
            "mine.toml",
            "mine.toml: channel_multiple: is",
        ),
        (('"dotprod"', '"dotprods"'), "mine.toml", "mine.toml: features.2: 'dotprods' is not allowed; did you mean"),
        (("[runtime]", "[runtime"), "mine.toml", "mine.toml: cannot be read as a target profile ("),
    ],
)
@pytest.mark.parametrize("command", [f"{QUANTIZE} -c samples.npz -t", "bench net.onnx -t", "inspect net.onnx -t"])
def test_targets(refused, workplace, command, text, target, said):
    if text is not None:
        Path("mine.toml").write_text(_profile(*text))
    assert refused(f"{command} {target}").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "schema_version = 9",
            "mine.toml: schema_version: is 9, and this release reads version 1; use the release that wrote",
        ),
        ("quantize.rangess = 'mse'", "mine.toml: quantize.rangess: unknown key; did you mean 'ranges'?"),
        ("quantize.ranges = 'mze'", "mine.toml: quantize.ranges: 'mze' is not allowed; did you mean 'mse'?"),
        ("calibrate.bins = 'many'", 'mine.toml: calibrate.bins: is "many"; give a whole number'),
        ("calibrate.samples = 0", "mine.toml: calibrate.samples: is 0; give 1 or more"),
        ("quantize.keep_float = ['Convv']", "recipe: quantize.keep_float: names 'Convv', which is neither an operator"),
        ("max_drop = ", "mine.toml: cannot be read as a recipe ("),
    ],
)
def test_recipes(refused, workplace, text, said):
    Path("mine.toml").write_text(text)
    assert refused("quantize net.onnx -c samples.npz -o q.onnx --recipe mine.toml").startswith(said)


def test_one_target_twice(refused, workplace):
    said = refused("export net.onnx -t host -t host -c samples.npz -o out")
    assert said == "target 'host': is given more than once; give each target once"


# ---------------------------------------------------------------------------------------- scores, limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def score(run): raise OSError('no labels')",
            "mine:score: raised OSError: no labels (mine.py line 1); correct",
        ),
        ("def score(run): return float('nan')", "mine:score: returned nan; return one finite number, higher is better"),
        ("def score(run): return 'good'", "mine:score: returned 'good'; return one finite number, higher is better"),
        ("def score(run): run({'z': 0})", "mine:score: raised ValueError: Required inputs (['x']) are missing from"),
        ("def score(run): exit(5)", "mine:score: raised SystemExit: 5 ("),
    ],
)
def test_evaluate(refused, code, text, said):
    code(text)
    assert refused(f"{QUANTIZE} -c samples.npz --evaluate mine:score").startswith(said)


TRAIN = "train -m net.onnx -d samples.npz -r training.toml"


@pytest.mark.parametrize(
    ("command", "slow"),
    [
        (QUANTIZE + " -c samples.npz", "toolchain.api.int8_model.quantize_model"),
        ("export net.onnx -t host -c samples.npz -o out", "toolchain.api.int8_model.quantize_model"),
        ("prune net.onnx -c samples.npz -o out.onnx --keep 0.7", "toolchain.api.prune.prune_model"),
        (TRAIN + " -o out", "toolchain.api.train.run_training"),
    ],
)
def test_a_metric_that_fails_is_refused_before_the_slow_step(refused, code, monkeypatch, command, slow):
    Path("training.toml").write_text("[[steps]]\ntechnique = 'prune'\n")
    code("def score(run): return 'good'")
    monkeypatch.setattr(slow, None)
    said = refused(f"{command} --evaluate mine:score")
    assert said == "mine:score: returned 'good'; return one finite number, higher is better"
    assert not Path("out").exists()


def test_there_is_no_run_to_resume(refused, workplace, monkeypatch):
    Path("training.toml").write_text("[[steps]]\ntechnique = 'prune'\n")
    monkeypatch.setattr("toolchain.api.request.prepare", None)
    assert refused(TRAIN + " -o out --resume") == "out: there is no run to resume; leave --resume out"


@pytest.mark.parametrize(
    ("size", "said"), [("0", "size 0 is below 1; give a"), ("9" * 20, f"size {'9' * 20} is above 2147483647; give a")]
)
def test_sizes_of_axes_are_refused_before_the_conversion(refused, workplace, monkeypatch, size, said):
    monkeypatch.setattr("toolchain.api.convert.convert_model", None)
    assert refused(f"convert net.onnx -o out.onnx --freeze N={size}").startswith(f"freeze N={size}: {said}")


@pytest.mark.parametrize("threads", ["0", "x", "1,,2", "²", "99999999999"])
def test_threads(refused, workplace, threads):
    assert refused("bench net.onnx --threads", threads) == f"--threads: is {threads!r}; give numbers like 2 or 1,2,4"


def test_the_option_for_pruning_has_its_own_name(refused, workplace):
    said = refused("export net.onnx -t host -c samples.npz -o out --prune 0.5")
    assert said == "--prune: is 0.5; give a number above 1"


@pytest.mark.parametrize("command", ["export net.onnx -t host -c samples.npz", TRAIN])
def test_an_empty_text_is_not_the_current_folder(refused, workplace, command):
    assert refused(command, "-o", "").startswith("invalid value for '--output' / '-o': it is empty; see")


@pytest.mark.parametrize("limit", ["-1", "nan", "inf"])
def test_max_drop(refused, limit):
    assert refused(f"{QUANTIZE} -c samples.npz --max-drop {limit}") == f"--max-drop: is {limit}; give 0 or more, or off"


@pytest.mark.parametrize("limit", ["abc", "-5%", "nan", ""])
def test_max_regression(refused, limit):
    said = refused("compare results.json --max-regression", limit)
    assert said == f"--max-regression: is {limit!r}; give a share like 5% or 0.05"


# --------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "command", ["convert net.onnx", "optimize net.onnx", "quantize net.onnx -c samples.npz", "bench net.onnx"]
)
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("folder", "folder: is a folder; name a file in it"),
        ("net.onnx/out.onnx", "net.onnx/out.onnx: cannot be written ("),
        (".", ".: is not the name of a file or folder; name the output itself"),
    ],
)
def test_outputs(refused, workplace, monkeypatch, command, output, said):
    """Refused before the work begins: here the work would fail."""
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    Path("folder").mkdir()
    assert refused(f"{command} -o {output}").startswith(said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Path("out").write_text("mine"), "out/results.json: cannot be written ("),
        (
            lambda: (Path("out/host").mkdir(parents=True), Path("out/host/mine").touch()),
            "out/host: contains files that",
        ),
        (
            lambda: (Path("out").mkdir(), Path("out/host").touch()),
            "out/host: is a file, not a folder; choose another output folder",
        ),
        (lambda: Path("out/results.json").mkdir(parents=True), "out/results.json: is a folder; name a file in it"),
    ],
)
def test_output_folders(refused, workplace, monkeypatch, make, said):
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    make()
    assert refused("export net.onnx -t host -c samples.npz -o out").startswith(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("convert net.onnx -o", "disk/new.onnx"),
        ("optimize net.onnx -o", "disk/old.onnx"),
        ("quantize net.onnx --recipe fast.toml -c samples.npz -o", "disk/folder/new.onnx"),
        ("bench net.onnx --recipe fast.toml -o", "disk/old.onnx"),
        ("export net.onnx --recipe fast.toml -t host -c samples.npz -o", "disk/export"),
    ],
)
def test_a_full_disk(toolchain, workplace, command, output):
    """What was there stays as it was, and no part of what would have come is left."""
    disk = workplace / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        (disk / "old.onnx").write_bytes(b"old")
        with (disk / "filling").open("wb", buffering=0) as filling:
            while filling.write(b"x" * 4096) == 4096 and os.statvfs(disk).f_bavail:
                pass
        before = content(disk)
        done = toolchain(command, output)
        assert (done.code, content(disk)) == (2, before)
        assert done.sentence.startswith(output)
        assert "No space left on device); free some space or choose another output" in done.sentence
    finally:
        subprocess.run(["umount", disk], check=True)


# --------------------------------------------------------------------------- results, exports, processors


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (None, "compare gone.json", "gone.json: no such results file; check the path"),
        ("{", "compare bad.json", "bad.json: cannot be read as a results file ("),
        ("[]", "compare bad.json", "bad.json: is []; give a table of keys and values"),
        ('{"measurements": []}', "compare bad.json", "the results hold no measurement; run `toolchain bench` first"),
        ('{"measurement": []}', "compare bad.json", "bad.json: measurement: unknown key; did you mean 'measurements'?"),
        (
            '{"measurements": [{"model": 3}]}',
            "compare bad.json",
            "bad.json: measurements.0.model: is",
        ),
        (None, "compare net.onnx", "net.onnx: cannot be read as a results file ("),
        (None, "compare ok.json --format tabel", "--format: unknown format 'tabel'; did you mean 'table'?"),
        (None, "bench net.onnx --format tabel", "--format: unknown format 'tabel'; did you mean 'table'?"),
        (None, "bench gone.onnx", "gone.onnx: no such model file; check the path"),
        (None, "targets check net.onnx", "net.onnx: cannot be read as a target profile ("),
        (None, "targets show rk35", "unknown target 'rk35'; did you mean 'rk3588'?"),
        (None, "verify .", ".: is no exported folder, it holds no manifest.json; give a target's folder, as export"),
        (None, "verify gone", "gone: is no exported folder, it holds no manifest.json; give a target's folder, as"),
        (
            None,
            "verify . --on moon",
            "--on: unknown place 'moon'; give one of: local, ssh:HOST, adb:SERIAL, emulator:CPU",
        ),
    ],
)
def test_other_files(refused, workplace, toolchain, text, line, said):
    if text is not None:
        Path("bad.json").write_text(text)
    if "ok.json" in line:
        toolchain("bench net.onnx --recipe fast.toml -o ok.json")
    assert refused(line).startswith(said)


def test_a_model_that_cannot_be_timed(refused, workplace):
    Path("text.onnx").write_text("no model")
    said = refused("bench text.onnx")
    assert said.startswith("text.onnx: onnxruntime cannot load it (InvalidProtobuf: Load model from text.onnx failed")
    model = onnx.load("net.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    model.graph.node[0].attribute[0].ints[:] = [0] * 4  # without padding nothing is left of one pixel
    onnx.save(model, "open.onnx")
    said = refused("bench open.onnx")
    assert said.startswith("open.onnx: onnxruntime cannot run it (")
    assert said.endswith(
        "; generated inputs have size 1 for dynamic axes: fix those with `toolchain convert --freeze AXIS=SIZE`"
    )


def test_damaged_exports(refused, exported, monkeypatch, tmp_path):
    shutil.rmtree("out/raspberry-pi-5")
    assert refused("verify out").endswith("holds no manifest.json; give out/host")
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(tmp_path))
    said = refused("verify out/host --on emulator:cortex-a76")
    assert said == f"emulator:cortex-a76: there is no emulator in {tmp_path}; {SETUP_HINT}"
    said = refused("verify out/host --on emulator:cortex-a67")
    assert said == "unknown emulated CPU 'cortex-a67'; did you mean 'cortex-a76'?"

    def damaged(name, data):
        whole = Path(name).read_bytes()
        Path(name).write_bytes(data(whole))
        said = refused("verify out/host")
        Path(name).write_bytes(whole)
        return said

    Path("out/host/README.md").write_text("our own notes")  # which is nobody's business
    for name in ("model.onnx", "golden.npz"):
        said = damaged(f"out/host/{name}", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        assert said.startswith(f"out/host/{name}: is not the file that was exported (its SHA-256 is not ")
        assert said.endswith("; copy the whole folder, or export again")
    said = damaged("out/host/manifest.json", lambda data: data.replace(b'"files"', b'"file"'))
    assert said == "out/host/manifest.json: file: unknown key; did you mean 'files'?"
    assert "cannot be read as a manifest (" in damaged("out/host/manifest.json", lambda data: data[:100])
    Path("out/host/model.onnx").unlink()
    assert refused("verify out/host") == "out/host/model.onnx: is missing; copy the whole folder, or export again"


@pytest.mark.parametrize("command", ["quantize", "export -t host", "prune --keep 0.5"])
def test_samples_that_are_all_zero(toolchain, workplace, command):
    np.savez("zeros.npz", x=np.zeros((16, 3, 16, 16), np.float32))
    before = content(workplace)
    done = toolchain(f"{command} net.onnx -c zeros.npz -o out{'.onnx' if 'export' not in command else ''}")
    assert done.code == 2
    assert "zeros.npz: all 16 samples hold one value only (0.0 in input 'x'); give real inputs" in done.sentence
    assert content(workplace) == before


def test_few_samples_are_a_note(toolchain, workplace):
    np.savez("few.npz", x=samples(3))
    done = toolchain("quantize net.onnx -c few.npz --recipe fast.toml -o q.onnx")
    assert done.code == 0
    assert "note: only 3 samples were given to calibrate on; give a few hundred" in done.err
