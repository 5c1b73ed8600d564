"""Training recipes: the results of the steps, and interrupted runs that resume to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantize_by_hand import named
from small_models import plain, weights

pytest.importorskip("torch")

from toolchain.core.errors import ConfigError, ModelError
from toolchain.data.calibration import open_data
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.training_recipe import TrainingRecipe
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.training.runner import run_training

NET = """
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Relu (c)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm (f, w3, b3)
"""


def constants():
    random = weights(w1=(16, 1, 3, 3), b1=16, w2=(16, 16, 3, 3), b2=16, w3=(16, 4), b3=4)
    return {name: 0.3 * array for name, array in random.items()}


def net():
    return named(NET, "float[batch,1,8,8] x", "float[batch,4] y", constants())


def arrays(count=64):
    """Stripes of four kinds with noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, count)
    waves = np.stack([np.sin(np.arange(8) * (0.5 + k))[:, None] * np.ones(8) for k in range(4)])
    x = waves[labels][:, None] + 0.3 * rng.standard_normal((count, 1, 8, 8))
    return {"x": x.astype(np.float32), "labels": labels.astype(np.int64)}


def opened(labels=True):
    found = arrays()
    feeds = [{n: a[i : i + 1] for n, a in found.items() if labels or n == "x"} for i in range(64)]
    specs = [TensorSpec("labels", np.dtype(np.int64), ("batch",))] if labels else []
    return open_data(feeds, [*io.inputs(net()), *specs]).split(4, 16)


def run_recipe(folder, *steps, labels=True, **more):
    folder.mkdir(exist_ok=True)
    recipe = TrainingRecipe.parse({"schema_version": 1, "threads": 1, "steps": list(steps)} | more)
    return run_training(net(), recipe, *opened(labels), folder=folder)


def tensors(graph):
    return [v.const_value.numpy() for v in graph.graph.initializers.values()]


LEARN = {"epochs": 4, "batch": 8, "rate": 0.05}


@pytest.mark.slow
def test_training_on_labels_raises_the_accuracy(tmp_path):
    """The mean of three seeds."""
    step = {"technique": "distil", **LEARN, "labels": 1.0, "epochs": 12}
    records = [run_recipe(tmp_path / str(seed), step, seed=seed)[0].record for seed in range(3)]
    assert np.mean([record.after.accuracy for record in records]) > 0.9
    assert np.mean([record.before.accuracy for record in records]) < 0.6
    assert np.mean([record.after.loss / record.before.loss for record in records]) < 0.5


def test_without_labels_accuracy_is_agreement_with_the_teacher(tmp_path):
    (result,) = run_recipe(tmp_path, {"technique": "prune", "amount": 0.5, **LEARN}, labels=False)
    assert result.record.before.accuracy == 1
    shapes = {tuple(t.shape) for t in tensors(result.model)}
    assert (8, 8, 3, 3) in shapes
    assert result.record.macs == pytest.approx(16 * 9 * 8 + 16 * 9 * 8 * 8 + 8 * 4, rel=0.05)  # 4x4 places


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["once", "gradual", "iterative"])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "l1"])
def test_weights_are_zero_and_stay_so(tmp_path, schedule, criterion):
    step = {"technique": "prune", "structure": "weights", "amount": 0.75, "schedule": schedule, "rounds": 2}
    (result,) = run_recipe(tmp_path, {**step, "criterion": criterion, "max_drop": 1.0, **LEARN})
    assert result.record.zeros == pytest.approx(0.75, abs=0.01)
    products = [t for t in tensors(result.model) if t.ndim > 1]
    assert np.mean(np.concatenate([t.reshape(-1) == 0 for t in products])) == pytest.approx(0.75, abs=0.01)
    assert "Not faster" in result.record.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        {"technique": "distil"},
        {"technique": "share", "bits": 3},
        {"technique": "share", "bits": 2, "per": "channel"},
        {"technique": "power-of-two"},
        {"technique": "int8"},
        {"technique": "prune", "structure": "weights", "amount": 0.8, "schedule": "once"},
    ],
    ids=str,
)
def test_zeros_stay_through_the_next_step(tmp_path, step):
    prune = {"technique": "prune", "structure": "weights", "amount": 0.75, "schedule": "once", **LEARN}
    first, second = run_recipe(tmp_path, prune, {**step, **LEARN})
    moved = [checkpoint.evaluation.loss for checkpoint in second.record.checkpoints]
    assert len(set(moved)) > 2
    assert second.record.zeros >= first.record.zeros - 0.01
    assert first.record.zeros == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
def test_a_round_that_loses_too_much_is_undone(tmp_path):
    first = {"technique": "distil", **LEARN, "labels": 1.0, "epochs": 12}
    step = {"technique": "prune", "structure": "weights", "amount": 0.98, "schedule": "iterative", "rounds": 6}
    harsh = {**step, "criterion": "random", "max_drop": 0.15, **LEARN, "rate": 1e-5}
    _, result = run_recipe(tmp_path / "some", first, harsh)
    assert 0.1 < result.record.zeros < 0.97
    assert "was undone" in result.record.notes[-1]
    with pytest.raises(ModelError, match="first round"):
        run_recipe(tmp_path / "all", first, {**harsh, "rounds": 1, "max_drop": 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
def test_int8_is_trained_and_leaves_a_quantized_file(tmp_path, labels):
    step = {"technique": "int8", **LEARN, "rate": 0.01, "labels": 1.0 if labels else 0.0}
    (result,) = run_recipe(tmp_path, step, labels=labels)
    first, last = result.record.before, result.record.after
    assert last.loss < first.loss if labels else last.loss <= first.loss  # by the teacher, it is at 51 dB already
    operators = [node.op_type for node in result.model.graph]
    assert operators.count("QuantizeLinear") >= 4
    assert {t.dtype for t in tensors(result.model)} >= {np.dtype(np.int8), np.dtype(np.int32)}
    assert result.record.parameters == 16 * 9 + 16 + 16 * 16 * 9 + 16 + 16 * 4 + 4
    assert result.record.bytes == len(io.to_bytes(result.model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        {"technique": "int8", "epochs": 12},
        {"technique": "prune", "amount": 0.5},
        {"technique": "prune", "structure": "2:4", "revive": True},
        {"technique": "share", "bits": 2},
        {"technique": "power-of-two"},
    ],
    ids=str,
)
def test_an_interrupted_step_resumes_to_the_same_bits(tmp_path, step):
    step = {**LEARN, "labels": 1.0, **step}
    recipe = TrainingRecipe.parse({"schema_version": 1, "threads": 1, "steps": [step]})

    def interrupted(what, done=0, total=0):
        if what.startswith("training") and done > total / 2:
            raise InterruptedError

    (tmp_path / "interrupted").mkdir()
    with pytest.raises(InterruptedError):
        run_training(net(), recipe, *opened(), folder=tmp_path / "interrupted", progress=interrupted)
    (tmp_path / "whole").mkdir()
    again, whole = (run_training(net(), recipe, *opened(), folder=tmp_path / at)[0] for at in ("interrupted", "whole"))
    assert again.record.checkpoints == whole.record.checkpoints
    for a, b in zip(tensors(again.model), tensors(whole.model), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("technique", ["int8", "distil"])
def test_training_without_improvement_keeps_the_input_and_says_so(tmp_path, technique):
    learn = {**LEARN, "epochs": 1, "rate": 1.0, "labels": 0.0}
    (result,) = run_recipe(tmp_path, {"technique": technique, **learn}, labels=False)
    assert result.record.kept == 0
    assert "did not improve the model" in result.record.notes[-1]


def test_training_that_improves_has_no_notes(tmp_path):
    (result,) = run_recipe(tmp_path, {"technique": "distil", **LEARN, "labels": 1.0, "epochs": 12})
    assert result.record.notes == ()


def test_a_step_starts_from_the_result_of_the_one_before(tmp_path):
    prune = {"technique": "prune", "amount": 0.5, **LEARN}
    first, second = run_recipe(tmp_path, prune, {"technique": "distil", **LEARN})
    assert second.record.before.loss == pytest.approx(first.record.after.loss, rel=1e-4)
    assert second.record.macs == first.record.macs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "values"),
    [
        ({"technique": "share", "bits": 2}, 4),
        ({"technique": "share", "bits": 2, "per": 8}, 4),
        ({"technique": "power-of-two", "bits": 3}, 7),
        ({"technique": "binary"}, 2),
    ],
)
def test_codes_are_unpacked_by_onnxruntime_and_for_the_next_step(tmp_path, step, values):
    """The layer in the middle is coded by all three; each of its channels has few values."""
    coded, distilled = run_recipe(
        tmp_path, {**step, **LEARN, "batch": 16}, {"technique": "distil", **LEARN, "epochs": 1}
    )
    dense = optimize(coded.model).model
    (middle,) = [t for t in tensors(dense) if t.shape == (16, 16, 3, 3)]
    assert max(len(np.unique(channel)) for channel in middle) <= values
    feed = {"x": arrays(4)["x"]}
    assert np.array_equal(plain(coded.model, feed)["y"], plain(dense, feed)["y"])
    assert coded.record.parameters == sum(t.size for t in tensors(net()) if t.ndim > 1) + 16 + 16 + 4
    assert coded.record.bytes < distilled.record.bytes
    assert "Not faster" in coded.record.notes[0]


@pytest.mark.parametrize(
    "step",
    [
        {"technique": "prune", "structure": "weights", "amount": 0.5},
        {"technique": "prune", "amount": 0.5},
        {"technique": "power-of-two", "bits": 3},
        {"technique": "binary"},
    ],
)
def test_without_epochs_the_technique_is_applied_without_training(tmp_path, step):
    (result,) = run_recipe(tmp_path, {**step, "epochs": 0})
    assert result.record.steps == 0
    assert len(result.record.checkpoints) == 1
    (ours,) = [t for t in tensors(optimize(result.model).model) if t.ndim == 4 and t.shape[1] > 1]
    (was,) = [t for t in tensors(net()) if t.ndim == 4 and t.shape[1] > 1]
    assert not np.array_equal(ours, was)
    if step.get("structure") == "weights":
        assert set(np.unique(np.where(ours == was, 0, ours))) == {0}


@pytest.mark.slow
def test_an_untrained_student_has_batch_norms_during_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_student.py").write_text(STUDENT)
    step = {"technique": "distil", "student": "small_student:net", **LEARN, "rate": 0.1, "epochs": 20, "labels": 1.0}
    results = [run_recipe(tmp_path / f"work-{seed}", step, seed=seed)[0] for seed in range(3)]
    assert np.mean([result.record.after.accuracy for result in results]) > 0.9
    for result in results:
        assert {node.op_type for node in result.model.graph}.isdisjoint({"BatchNormalization"})
        assert result.record.parameters < 500


STUDENT = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
"""


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"technique": "prune", "structure": "rows"}, "'rows' is neither channels"),
        ({"technique": "prune", "structure": "4:2"}, "'4:2' is neither channels"),
        ({"technique": "prune", "amount": 1.5}, "give a number below 1"),
        ({"technique": "prune", "amont": 0.5}, "unknown key"),
        ({"technique": "grow"}, "grow"),
    ],
)
def test_invalid_recipes(step, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainingRecipe.parse({"schema_version": 1, "steps": [step]})


def test_nothing_comes_after_int8():
    with pytest.raises(ConfigError, match="int8 has to be the last step"):
        TrainingRecipe.parse({"schema_version": 1, "steps": [{"technique": "int8"}, {"technique": "distil"}]})


# ----------------------------------------------------------------------------------------- the command line

RECIPE = """
schema_version = 1
threads = 1
held = 16
bench = {{ warmup_s = 0.0, min_time_s = 0.0, min_runs = 3, rounds = 1 }}
[[steps]]
technique = "prune"
amount = 0.5
epochs = {epochs}
batch = 4
[[steps]]
technique = "distil"
epochs = {epochs}
batch = 4
"""


def given_files(folder, epochs=4):
    io.save(net(), folder / "net.onnx")
    np.savez(folder / "data.npz", **arrays())
    (folder / "r.toml").write_text(RECIPE.format(epochs=epochs))
    return ["train", "-m", folder / "net.onnx", "-d", folder / "data.npz", "-r", folder / "r.toml", "--max-drop", "off"]


def initializers(path):
    return {i.name: numpy_helper.to_array(i).tobytes() for i in onnx.load(path).graph.initializer}


@pytest.mark.slow
def test_the_command_writes_a_model_and_its_records(tmp_path, toolchain):
    done = toolchain(*given_files(tmp_path), "-o", str(tmp_path / "out"), "--json")
    assert done.code == 0, done.err
    assert [step["technique"] for step in done.result["steps"]] == ["prune", "distil"]
    rows = done.result["results"]["measurements"]
    assert [row["variant"] for row in rows] == ["fp32", "prune", "distil"]
    assert all(row["score"]["samples"] == 16 for row in rows)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "results.json", "findings.json", "training.json", "report.html"}
    assert "How it was trained" in (tmp_path / "out/report.html").read_text()
    findings = json.loads((tmp_path / "out/findings.json").read_text())
    assert findings["training"][1]["score"] == rows[2]["score"]["value"]


@pytest.mark.slow
def test_a_result_that_lost_too_much_is_not_written_and_need_not_be_trained_again(tmp_path, toolchain):
    """The net has random weights and no labels: half of its channels take half of its answer with them."""
    command, out = given_files(tmp_path, epochs=1), tmp_path / "out"
    np.savez(tmp_path / "data.npz", x=arrays()["x"])
    done = toolchain(*command[:-2], "-o", out)
    assert done.code == 1
    *_, sentence = done.err.splitlines()
    assert sentence.startswith("error: net: the trained model loses too much: ")
    assert not (out / "model.onnx").exists()
    again = toolchain(*command, "-o", out, "--resume")
    assert again.code == 0, again.err
    assert "LOST: " in again.err
    assert "training" not in again.stages
    findings = json.loads((out / "findings.json").read_text())
    assert findings["training"][1]["verdict"]["samples"] == 16


@pytest.mark.slow
def test_int8_is_written_for_the_kernels_of_a_target(tmp_path, toolchain):
    """The same integers: what the two files compute is the same bits."""
    command = given_files(tmp_path)
    text = (tmp_path / "r.toml").read_text().split("[[steps]]")[0]
    (tmp_path / "r.toml").write_text(text + '[[steps]]\ntechnique = "int8"\nepochs = 1\nbatch = 4\n')
    answers = {}
    for target in ("x86-vnni", "raspberry-pi-5"):
        assert toolchain(*command, "-o", tmp_path / target, "--target", target).code == 0
        written = io.load(tmp_path / target / "model.onnx")
        answers[target] = plain(written, {"x": arrays(8)["x"]})["y"]
        kinds = {t.dtype for t in tensors(written) if t.ndim == 0}
        assert (np.dtype(np.uint8) in kinds) == (target == "x86-vnni")
    assert np.array_equal(*answers.values())


def test_bad_requests_end_before_anything_is_slow(tmp_path, toolchain):
    command = given_files(tmp_path)
    assert "no run to resume" in toolchain(*command, "-o", str(tmp_path / "o"), "--resume").sentence
    (tmp_path / "r.toml").write_text('schema_version = 1\nsteps = [{ technique = "distil", student = "gone.onnx" }]\n')
    assert "student 'gone.onnx'" in toolchain(*command).sentence
    recipe = 'schema_version = 1\nsteps = [{ technique = "share" }, { technique = "distil", %s }]\n'
    (tmp_path / "r.toml").write_text(recipe % 'features = { r = "q" }')
    assert "the teacher has no inner float tensor 'q'" in toolchain(*command).sentence
    for change, sentence in (("float[batch,1,8,8] z", "takes z, and its teacher x"), ("", "has 2 float outputs")):
        text = NET.replace("(x, w1", "(z, w1") if change else NET + "    q = Relu (y)\n"
        inputs = change or "float[batch,1,8,8] x"
        outputs = "float[batch,4] y" if change else "float[batch,4] y, float[batch,4] q"
        io.save(named(text, inputs, outputs, constants()), tmp_path / "student.onnx")
        (tmp_path / "r.toml").write_text(recipe % f'student = "{tmp_path / "student.onnx"}"')
        assert sentence in toolchain(*command).sentence
    (tmp_path / "r.toml").write_text("schema_version = 1\nsteps = []\n")
    assert "r.toml" in toolchain(*command).sentence
    (tmp_path / "r.toml").unlink()
    assert "no such training recipe" in toolchain(*command).sentence


def killed(command, folder, file):
    """Run a command in a process of its own, and kill it as soon as the file is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolchain", *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not (folder / file).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["step-0-state.pt", "step-1-state.pt"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, toolchain, file):
    command = given_files(tmp_path, epochs=60)
    out = tmp_path / "killed"
    killed([*map(str, command), "-o", str(out)], out / "unfinished", file)
    assert toolchain(*command, "-o", str(out), "--resume").code == 0
    assert toolchain(*command, "-o", str(tmp_path / "whole")).code == 0
    assert initializers(out / "model.onnx") == initializers(tmp_path / "whole/model.onnx")
    assert not Path(out, "unfinished").exists()


@pytest.mark.slow
def test_another_recipe_cannot_be_resumed(tmp_path, toolchain):
    command = given_files(tmp_path, epochs=60)
    out = tmp_path / "out"
    killed([*map(str, command), "-o", str(out)], out / "unfinished", "step-0-state.pt")
    given_files(tmp_path, epochs=3)
    done = toolchain(*command, "-o", str(out), "--resume")
    assert done.code == 2
    assert "another recipe" in done.sentence
