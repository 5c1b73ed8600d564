"""The floor: a model that lost a part of its answer is not written, and what was given up for it is told."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_models
from command import CommandLine

import toolchain
from toolchain.core.errors import GateError
from toolchain.graph import io
from toolchain.quantization import plan

UNTIMED = "[quantize]\nmeasure = false\n"
HEAD = """c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) q = Relu(c) d = Conv(q, v) r = Relu(d)
          boxes = Conv(r, wb, bb) pixels = Mul(boxes, large) logits = Conv(r, ws, bs) scores = Sigmoid(logits)
          fb = Reshape(pixels, to4) fs = Reshape(scores, to6) y = Concat<axis = 1>(fb, fs)"""


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A head that joins boxes in pixels and scores between 0 and 1 to one output."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def normal(*shape, scale=0.3):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    constants = {
        "w": normal(16, 3, 3, 3),
        "b": normal(16),
        "v": normal(16, 16, 1, 1),
        "wb": normal(4, 16, 1, 1),
        "bb": np.full(4, 5, np.float32),
        "ws": normal(6, 16, 1, 1, scale=0.6),
        "bs": np.full(6, -2, np.float32),
        "large": np.float32(60),
        "to4": np.array([0, 4, -1]),
        "to6": np.array([0, 6, -1]),
    }
    io.save(small_models.model(HEAD, "float[1, 3, 16, 16] x", "y", constants), "net.onnx")
    np.savez("samples.npz", x=rng.standard_normal((32, 3, 16, 16)).astype(np.float32))
    (tmp_path / "recipe.toml").write_text(UNTIMED)
    return tmp_path


def score_db(file):
    """Variance of the scores over their squared error, in decibels, on inputs of another seed."""
    x = np.random.default_rng(9).standard_normal((20, 1, 3, 16, 16)).astype(np.float32)
    a, b = (
        np.concatenate([ort.InferenceSession(f).run(None, {"x": sample})[0][:, 4:] for sample in x])
        for f in ("net.onnx", file)
    )
    return 10 * np.log10(a.var() / ((a - b) ** 2).mean())


def quantize(**options):
    return toolchain.quantize("net.onnx", calibration="samples.npz", recipe="recipe.toml", output="q.onnx", **options)


def test_small_scores_joined_to_boxes_survive(detector):
    made = quantize()
    assert not made.verdict.lost
    assert score_db("q.onnx") > 15
    assert {choice.node for choice in made.quantized.plan.choices if choice.op == "Conv" and not choice.int8} == set()


def test_every_lost_part_is_named_where_the_floor_is_off(detector, monkeypatch):
    break_a_grid(monkeypatch)
    made = quantize(max_drop="off")
    assert score_db("q.onnx") < 3
    assert any("y[:, 4:10]" in sentence for sentence in made.verdict.lost)


def test_a_plan_that_loses_a_part_is_repaired_and_says_so(detector, monkeypatch):
    break_a_grid(monkeypatch)
    made = quantize()
    assert score_db("q.onnx") > 15
    assert not made.verdict.lost
    assert any("became float, because otherwise y[:, 0:4]" in note for note in made.quantized.notes)


def test_with_a_metric_the_metric_decides_and_lost_parts_are_told(detector, monkeypatch):
    break_a_grid(monkeypatch)
    made = quantize(evaluate=lambda run: 1.0)
    assert score_db("q.onnx") < 3
    assert made.verdict.lost


def test_a_metric_may_lose_a_twentieth_without_a_limit(detector):
    """The score of int8 is lower by more, whatever stays float: nothing is written."""
    calls = iter([1.0] + [0.9] * 100)
    with pytest.raises(GateError, match=r"it scores 0\.9000, and at least 0\.9500 is wanted"):
        quantize(evaluate=lambda run: next(calls))
    assert not (detector / "q.onnx").exists()


def break_a_grid(monkeypatch):
    """Give one tensor in front of both heads a grid on which everything becomes 0."""
    original = plan._grid

    def grid(value, *arguments, **options):
        found = original(value, *arguments, **options)
        return replace(found, scale=200 * found.scale) if value.name == "r" else found

    monkeypatch.setattr(plan, "_grid", grid)


def test_the_command_shows_every_part(detector, capsys):
    shown = CommandLine(capsys)("quantize net.onnx -c samples.npz --recipe recipe.toml -o q.onnx")
    assert shown.code == 0
    assert "y[:, 4:10]" in shown.out
    assert "LOST" not in shown.out


def test_the_command_says_loudly_what_is_lost(detector, capsys, monkeypatch):
    break_a_grid(monkeypatch)
    shown = CommandLine(capsys)("quantize net.onnx -c samples.npz --recipe recipe.toml -o q.onnx --max-drop off")
    assert shown.code == 0
    assert "LOST: y[:, 4:10]" in shown.err


def test_verify_says_what_was_lost_before(detector, monkeypatch):
    """The golden outputs are those of the int8 model, so that they agree whatever it lost."""
    break_a_grid(monkeypatch)
    recipe = toolchain.Recipe.parse({"quantize": {"measure": False}, "bench": {"min_time_s": 0, "rounds": 1}})
    toolchain.export(
        "net.onnx", targets=["host"], calibration="samples.npz", recipe=recipe, output="out", max_drop="off"
    )
    verified = toolchain.verify("out/host")
    assert not verified.mismatches
    assert any("y[:, 4:10]" in sentence for sentence in verified.lost)


def test_a_clean_up_that_changes_the_answer_on_samples_is_found(detector, monkeypatch):
    """A pass that drops a small offset is right on random inputs, and wrong where a sample is 0."""
    body = "r = Relu(x) a = Add(r, k) l = Log(a) f = Flatten(l) y = Gemm(f, w)"
    constants = {"k": np.float32(1e-10), "w": np.ones((27, 2), np.float32)}
    io.save(small_models.model(body, "float[1, 3, 3, 3] x", "y", constants), "net.onnx")
    rng = np.random.default_rng(0)
    np.savez("samples.npz", x=rng.standard_normal((32, 3, 3, 3)).astype(np.float32))
    from toolchain.api import prepare as module
    from toolchain.optimization.passes import optimize

    def careless(model):
        optimized = optimize(model)
        for value in optimized.model.graph.initializers.values():
            if value.const_value.size == 1:
                value.const_value = ir.tensor(np.float32(1e-2), name=value.name)
        return optimized

    monkeypatch.setattr(module, "optimize", careless)
    with pytest.raises(GateError, match="the clean-up changed y"):
        quantize()
