import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import qdq_models
from onnx import TensorProto, helper

from toolchain.benchmark import emulator
from toolchain.core.errors import GateError, InputError, ModelError
from toolchain.devices.catalogue import load_target
from toolchain.formats.manifest import CalibrationEntry, Exactness, Manifest, NodePrecision, Source
from toolchain.formats.recipe import Recipe
from toolchain.formats.target import Package
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.verdict import Decision, PartFidelity, Verdict
from toolchain.graph import io
from toolchain.packaging import ort_format, write
from toolchain.packaging.golden import Golden, check_golden, load_golden
from toolchain.packaging.readme import readme
from toolchain.packaging.write import write_artifact

# Read when this file is imported: the cache is another one while a test runs.
REAL = emulator.folder()
ARM = load_target("raspberry-pi-5")
X86 = load_target("x86-avx2")
FEEDS = tuple(qdq_models.feed((1, 16, 8, 8), seed) for seed in range(2))


def emulated(*cpus):
    reasons = [(cpu, emulator.unavailable(cpu)) for cpu in cpus]
    return [
        pytest.param(cpu, marks=[pytest.mark.slow, pytest.mark.skipif(why is not None, reason=str(why))])
        for cpu, why in reasons
    ]


def session(path, options=None):
    settings = ort.SessionOptions()
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def golden(model, feeds=FEEDS, options=None):
    engine = session(model, options)
    names = [output.name for output in engine.get_outputs()]
    return Golden(feeds, tuple(dict(zip(names, engine.run(None, feed), strict=True)) for feed in feeds))


def manifest(target, outputs=("y_dq",), **changes):
    stated = {"name": "unit", "resize": "shorter", "size": 40, "crop": [32, 32], "layout": "NCHW", "channels": "RGB"}
    return Manifest(
        target=target.name,
        created="2025-01-01T00:00:00Z",
        versions={"toolchain": "0.1.0", "onnxruntime": ort.__version__},
        source=Source(name="tiny", sha256="0" * 64, kind="onnx", exporter="none"),
        recipe=Recipe(),
        calibration=CalibrationEntry(source="photos", samples=3, fingerprint="f", preprocessing=stated),
        inputs=(TensorSpec("x", np.dtype("float32"), (1, 16, 8, 8)),),
        outputs=tuple(TensorSpec(name, np.dtype("float32"), (1, None)) for name in outputs),
        files=(),
        precision=(
            NodePrecision(node="c1", op="Conv", precision="int8"),
            NodePrecision(node="s", op="Softmax", precision="float", reason="no int8 kernel worth having"),
        ),
        exactness=Exactness(activations=target.int8.activations, overflow_free=True),
    ).model_copy(update=changes)


def with_formats(target, *formats):
    return target.model_copy(update={"package": Package(formats=formats, ort_platform=target.package.ort_platform)})


def operators(folder):
    text = (folder / "required_operators.config").read_text()
    return set(re.split(r"[;,\n]", text))


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """An export of a signed model for an ARM board: the folder, the model file and the manifest returned."""
    folder = tmp_path_factory.mktemp("arm")
    model = qdq_models.residual(folder / "quantized.onnx", signed=True)
    expected = golden(model, options={"session.qdqisint8allowed": "1"})
    return (
        folder / "out",
        model,
        write_artifact(folder / "out", model, manifest=manifest(ARM), target=ARM, golden=expected),
    )


def test_the_folder_is_complete_and_hashed(arm):
    folder, model, returned = arm
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "model.ort", "required_operators.config", "golden.npz", "README.md", "manifest.json"}
    assert Manifest.load(folder / "manifest.json") == returned
    assert {entry.name for entry in returned.files} == names - {"manifest.json"}
    for entry in returned.files:
        content = (folder / entry.name).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    assert [path.name for path in folder.parent.iterdir() if path.name not in ("out", "quantized.onnx")] == []


def test_for_arm_signed_activations_are_fused(arm):
    folder, _, _ = arm
    assert {"QLinearConv", "QLinearAdd"} <= operators(folder)
    assert not {"Conv", "Add", "Relu"} & operators(folder)
    assert str(folder.parent) not in (folder / "required_operators.config").read_text()


def test_both_model_files_give_the_golden_outputs(arm):
    folder, _, _ = arm
    stored = load_golden(folder / "golden.npz")
    for engine in (session(folder / "model.onnx", {"session.qdqisint8allowed": "1"}), session(folder / "model.ort")):
        names = [output.name for output in engine.get_outputs()]
        assert check_golden(lambda feed, e=engine, n=names: dict(zip(n, e.run(None, feed), strict=True)), stored) == []


@pytest.mark.parametrize("target", [ARM, X86], ids=["arm", "amd64"])
def test_no_layout_of_this_machine_is_baked_in(target, tmp_path):
    """With NCHWc of another block width the same file gives other numbers."""
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    feeds = (qdq_models.feed((1, 32, 8, 8)),)
    data = golden(model, feeds)
    write_artifact(tmp_path / "out", model, manifest=manifest(target, ["y"]), target=target, golden=data)
    assert "com.microsoft.nchwc" not in operators(tmp_path / "out")
    assert "FusedConv" in operators(tmp_path / "out")


def test_a_model_in_memory_is_written(tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    model = ir.load(path)
    target = with_formats(X86, "onnx")
    returned = write_artifact(tmp_path / "out", model, manifest=manifest(X86), target=target, golden=golden(path))
    assert {entry.name for entry in returned.files} == {"model.onnx", "golden.npz", "README.md"}
    assert len(onnx.load(tmp_path / "out" / "model.onnx").graph.node) == len(list(model.graph))


def test_the_profile_may_ask_for_ort_alone(tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    target = with_formats(X86, "ort")
    write_artifact(tmp_path / "out", path, manifest=manifest(X86), target=target, golden=golden(path))
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert '"model.ort"' in (tmp_path / "out" / "README.md").read_text()


def test_external_data_is_taken_along(tmp_path):
    path = qdq_models.float_conv(tmp_path / "m.onnx")
    onnx.save(onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    feeds = (qdq_models.feed((1, 32, 8, 8)),)
    write_artifact(
        tmp_path / "out", tmp_path / "e.onnx", manifest=manifest(X86, ["y"]), target=X86, golden=golden(path, feeds)
    )
    np.testing.assert_array_equal(
        session(tmp_path / "out" / "model.onnx").run(None, feeds[0])[0], session(path).run(None, feeds[0])[0]
    )


def test_a_model_too_big_for_ort_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", 1000)
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    target = with_formats(X86, "ort")  # even then there must be a model
    data = golden(path)
    before = manifest(X86, notes=("made by hand",))
    returned = write_artifact(tmp_path / "out", ir.load(path), manifest=before, target=target, golden=data)
    names = {entry.name for entry in returned.files}
    assert names == {"model.onnx", "model.onnx.data", "golden.npz", "README.md"}
    assert returned.notes[0] == "made by hand"
    assert "below 2 GB" in returned.notes[1]
    assert returned.notes[1] in (tmp_path / "out" / "README.md").read_text()
    np.testing.assert_array_equal(
        session(tmp_path / "out" / "model.onnx").run(None, FEEDS[0])[0], data.outputs[0]["y_dq"]
    )


def test_an_earlier_export_is_replaced(arm, tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    target = with_formats(X86, "onnx")
    for created in ("first", "second"):
        stated = manifest(X86, created=created)
        write_artifact(tmp_path / "out", path, manifest=stated, target=target, golden=golden(path))
        (tmp_path / "out" / "left over").touch()
    assert Manifest.load(tmp_path / "out" / "manifest.json").created == "second"
    write_artifact(tmp_path / "out", path, manifest=manifest(X86), target=target, golden=golden(path))
    assert not (tmp_path / "out" / "left over").exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)
    with pytest.raises(InputError, match="contains files that are not an export; choose another output folder"):
        write_artifact(tmp_path, path, manifest=manifest(X86), target=X86, golden=golden(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(InputError, match="is a file"):
        write.check_folder(path)
    write.check_folder(tmp_path / "new")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    path = qdq_models.residual(tmp_path / "m.onnx", signed=False)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "save_golden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "out", path, manifest=manifest(X86), target=X86, golden=golden(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_a_converted_file_that_computes_otherwise_is_refused(arm, tmp_path):
    folder, _, _ = arm
    other = qdq_models.residual(tmp_path / "m.onnx", signed=True)
    changed = onnx.load(other)
    weights = next(t for t in changed.graph.initializer if t.name == "w2_q")
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(changed, other)
    with pytest.raises(GateError, match=r"model\.ort and model\.onnx give different outputs \(sample 0, output 'y_dq'"):
        ort_format.verify_ort(other, folder / "model.ort", FEEDS, ARM.package)


def test_a_model_the_converter_refuses_is_one_sentence(tmp_path):
    node = helper.make_node("Unheard", ["x"], ["y"], domain="custom.domain")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be written in the \.ort format \(.*Unheard"):
        ort_format.write_ort(tmp_path / "m.onnx", tmp_path, X86.package)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["signed", "unsigned", "float"])
def test_the_file_is_what_the_converter_makes_for_arm(kind, tmp_path):
    if kind == "float":
        path, feeds = qdq_models.float_conv(tmp_path / "m.onnx"), (qdq_models.feed((1, 32, 8, 8)),)
    else:
        path, feeds = qdq_models.residual(tmp_path / "m.onnx", signed=kind == "signed"), FEEDS
    ort_format.write_ort(path, tmp_path, ARM.package)
    tool = "onnxruntime.tools.convert_onnx_models_to_ort"
    options = ["--optimization_style", "Fixed", "--target_platform", "arm", "--output_dir", tmp_path / "tool"]
    subprocess.run([sys.executable, "-m", tool, path, *options], check=True, capture_output=True, timeout=60)
    # The .ort files are not equal byte by byte: both list the graph's values in the order of a hash table.
    theirs = (tmp_path / "tool" / "m.required_operators.config").read_text().splitlines()
    ours = (tmp_path / "required_operators.config").read_text().splitlines()
    assert [line for line in ours if line[0] != "#"] == [line for line in theirs if line[0] != "#"]
    for feed in feeds:
        np.testing.assert_array_equal(
            session(tmp_path / "model.ort").run(None, feed)[0], session(tmp_path / "tool" / "m.ort").run(None, feed)[0]
        )


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_page_s_python_runs_and_finds_the_same_answers(arm):
    folder, _, _ = arm
    for program in blocks((folder / "README.md").read_text(), "python"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 y_dq same", "1 y_dq same"]


def test_the_page_says_how_inputs_are_prepared_and_what_stays_float(arm):
    folder, _, _ = arm
    text = (folder / "README.md").read_text()
    assert "| input | `x` | float32 | 1 × 16 × 8 × 8 |" in text
    assert "the shorter side has 40 pixels" in text
    assert "Crop 32 × 32 (height × width) pixels around the centre." in text
    assert "Arrange the values as NCHW" in text
    assert "Operators that compute in int8: 1; in float: 1." in text
    assert "- 1 × Softmax: no int8 kernel worth having" in text
    assert "bit for bit" in text


def page_of(**changes):
    stated = manifest(ARM).model_copy(update=changes)
    return readme(stated, ARM, {"model.onnx"})


def test_the_page_says_what_is_left_of_the_answer():
    part = PartFidelity(name="y[:, 0:4]", tensor="y", fidelity_db=21.25)
    decision = Decision(part="y[:, 4:84]", kind="positives", kept=0.875, count=200)
    kept = Verdict(samples=8, parts=(part,), decisions=(decision,))
    text = page_of(verdict=kept)
    assert "compared with the float model on 8 samples that were used for nothing else" in text
    assert "The part with the largest error is `y[:, 0:4]`: its fidelity is 21.2 dB" in text
    assert "which is not accuracy: positives 0.875 (y[:, 4:84])." in text
    assert "lost" not in text
    whole = kept.model_copy(update={"parts": (part.model_copy(update={"fidelity_db": 100.0}),)})
    assert "Its outputs are those of the float model." in page_of(verdict=whole)
    assert "What is left" not in page_of()


def test_the_page_names_lost_parts_before_anything_else():
    text = page_of(verdict=Verdict(samples=8, lost=("y[:, 4:84], computed by Concat 'c': nothing is left",)))
    head = text[: text.index("## Files")]
    assert "**This model lost a part of the float model's answer.**" in head
    assert "\n- y[:, 4:84], computed by Concat 'c': nothing is left" in head


def test_the_page_says_how_far_processors_differ():
    def said(**differing):
        found = {"activations": "u8", "overflow_free": True, "exceptions": ("4 Conv run in float",)} | differing
        return page_of(exactness=Exactness(**found))

    assert "The outputs may differ in the last digits between processors:\n\n- 4 Conv run in float" in said()
    assert "outputs may differ between processors by as much as int8 rounds:\n\n- 4 Conv" in said(steps=True)


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("raspberry-pi-4", "cpp", 'Ort::Session session(env, ORT_TSTR("model.onnx"), options);'),
        ("android-arm64-dotprod", "kotlin", 'addConfigEntry("session.force_spinning_stop", "1")'),
        ("android-arm64-dotprod", "kotlin", "LongBuffer.wrap(LongArray(7)), longArrayOf(1, 7))"),
        ("android-arm64-i8mm", "kotlin", 'results.get("b").get() as OnnxTensor'),
        ("ios-arm64", "swift", "elementType: .int64, shape: [1, 7])"),
        ("ios-arm64", "swift", 'withInputs: ["pixels": input1, "ids": input2], outputNames: ["a", "b"]'),
    ],
)
def test_the_page_speaks_the_target_s_language(name, language, expected):
    target = load_target(name)
    stated = manifest(
        target,
        ["a", "b"],
        inputs=(
            TensorSpec("pixels", np.dtype("uint8"), (1, 3, 4, 4)),
            TensorSpec("ids", np.dtype("int64"), ("batch", 7)),
        ),
    )
    text = write.readme(stated, target, {"model.onnx", "model.ort"})
    (block,) = blocks(text, language)
    assert expected in block
    assert "Axes without a number" in text


def test_types_a_language_lacks_fall_back_to_python():
    target = load_target("ios-arm64")
    stated = manifest(target, inputs=(TensorSpec("x", np.dtype("float16"), (1,)),))
    text = write.readme(stated, target, {"model.onnx"})
    assert not blocks(text, "swift")
    assert "np.float16" in blocks(text, "python")[0]
    assert "Ort::Float16_t" in blocks(text, "cpp")[0]


@pytest.mark.parametrize("cpu", emulated("cortex-a53", "cortex-a76"))
def test_on_arm_both_files_give_the_golden_outputs(cpu, arm, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    folder, _, _ = arm
    stored = load_golden(folder / "golden.npz")
    for name in ("model.onnx", "model.ort"):
        answers = iter(emulator.run(cpu, folder / name, stored.feeds))
        assert check_golden(lambda feed, a=answers: next(a), stored) == []


@pytest.mark.parametrize("cpu", emulated("x86-avx2"))
def test_a_float_file_made_here_is_right_without_avx512(cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLCHAIN_EMULATOR", str(REAL))
    model = qdq_models.float_conv(tmp_path / "m.onnx")
    feeds = (qdq_models.feed((1, 32, 8, 8)),)
    data = golden(model, feeds)
    write_artifact(tmp_path / "out", model, manifest=manifest(X86, ["y"]), target=X86, golden=data)
    for name in ("model.onnx", "model.ort"):
        answers = emulator.run(cpu, tmp_path / "out" / name, feeds)
        # Float sums are added in another order there.
        assert check_golden(lambda _, a=answers: a[0], data, tolerance=1e-5) == []
