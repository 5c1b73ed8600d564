"""Distillation of a small pruned net: nearer to its teacher, reproducible, and within the time limit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import model, plain, weights

from toolchain.core.errors import InputError, ModelError
from toolchain.data.calibration import open_data
from toolchain.evaluation.fidelity import decibels, power_to_db
from toolchain.evaluation.judge import Judge
from toolchain.graph import io, run, tap

torch = pytest.importorskip("torch")

from teacher_student import net, samples

from toolchain.training.engine.augment import augmented, is_image
from toolchain.training.engine.comparison import as_teacher_names, changed_tensors
from toolchain.training.engine.distil import distil


def arrays(trained):
    return {name: value.const_value.numpy() for name, value in trained.graph.initializers.items()}


def same(a, b):
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["n", "1"])
@pytest.mark.parametrize("tail", ["", "y = Softmax (z)"])
def test_a_pruned_net_gets_nearer_to_its_teacher(batch, tail):
    """By the fidelity of the package, on samples that were not trained on; the mean of three seeds."""
    teacher, student = net(batch=batch, tail=tail), net(6, batch=batch, tail=tail)
    runs = [distil(student, teacher, samples(teacher), minutes=9, steps=15, rate=0.03, seed=n) for n in range(3)]
    judge = Judge(teacher, list(samples(teacher, 8, seed=9)))
    left = [power_to_db(judge.noise(model)) for model in (*(run.model for run in runs), student)]
    assert np.mean(left[:-1]) > left[-1] + 1
    assert np.mean([run.after.fidelity_db - run.before.fidelity_db for run in runs]) > 1
    assert all(run.steps == 15 for run in runs)
    assert not any(same(run.model, student) for run in runs)


def test_its_fidelity_is_that_of_the_package():
    teacher, student = net(tail="y = Softmax (z)"), net(6, tail="y = Softmax (z)")
    held = samples(teacher, 8, seed=9)
    found = distil(student, teacher, samples(teacher), minutes=1, steps=2, check=held)
    scores = [tap.capture(either, ["z"], list(held)) for either in (teacher, student)]
    by_hand = np.mean([decibels([a["z"]], [b["z"]]) for a, b in zip(*scores, strict=True)])
    assert found.before.fidelity_db == pytest.approx(by_hand, abs=0.01)


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_give_the_same_weights_every_time_on_any_number_of_threads(threads):
    teacher, student = net(), net(6)
    once = distil(student, teacher, samples(teacher), minutes=1, steps=3, seed=1, threads=1)
    again = distil(student, teacher, samples(teacher), minutes=1, steps=3, seed=1, threads=threads)
    other = distil(student, teacher, samples(teacher), minutes=1, steps=3, seed=2, threads=1)
    assert same(once.model, again.model)
    assert not same(once.model, other.model)


class Clock:
    """A clock that advances a hundredth of a second at every call."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        self.seconds += 0.01
        return self.seconds


def test_it_ends_when_the_time_is_over_and_restores_the_threads_of_torch():
    teacher, student, clock = net(), net(6), Clock()
    before = torch.get_num_threads()
    result = distil(student, teacher, samples(teacher), minutes=0.02, clock=clock)
    assert 1.0 < result.seconds < 1.3
    assert result.seconds < clock.seconds - 1000 < result.seconds + 0.1
    assert result.steps > 5
    assert torch.get_num_threads() == before


def test_the_time_limit_ends_a_number_of_steps_too():
    teacher, student = net(), net(6)
    result = distil(student, teacher, samples(teacher), minutes=0.02, steps=10**6, clock=Clock())
    assert 5 < result.steps < 1000
    assert 1.0 < result.seconds < 1.3


def test_checkpoints_and_the_kept_one_are_logged(caplog):
    with caplog.at_level("INFO", logger="toolchain.training"):
        distil(net(6), net(), samples(net()), minutes=1, steps=4, rate=0.03)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("checkpoint ") for line in lines) >= 3
    assert lines[-1].startswith("kept checkpoint ")


def test_a_perfect_student_is_returned_unchanged():
    teacher = net()
    found = distil(teacher, teacher, samples(teacher), minutes=1, steps=2)
    assert found.model is teacher
    assert found.after.fidelity_db == found.before.fidelity_db


def test_the_student_and_the_teacher_are_not_changed():
    teacher, student = net(), net(6)
    distil(student, teacher, samples(teacher), minutes=1, steps=2)
    assert same(teacher, net())
    assert same(student, net(6))


def test_tensors_behind_a_change_are_found():
    assert changed_tensors(net(6), net()) == ["c"]
    assert changed_tensors(net(), net()) == []


BRANCH = "a = Gemm (x, v) p = Relu (a) s = Add (x, p) q = Gemm (s, w) y = Relu (q)"
WITHOUT = "q = Gemm (x, w) y = Relu (q)"


def test_the_reader_behind_a_removed_branch_is_found():
    constants = weights(v=(8, 8), w=(8, 8))
    whole = model(BRANCH, "float[n,8] x", "float[n,8] y", constants)
    rest = model(WITHOUT, "float[n,8] x", "float[n,8] y", {"w": constants["w"]})
    assert changed_tensors(rest, whole) == ["q"]


def test_integer_inputs_and_fixed_reshapes():
    """Samples that cannot be stacked are run one at a time."""
    body = "e = Gather (t, x) f = Reshape (e, s) h = Gemm (f, w) r = Relu (h) y = Gemm (r, v)"

    def built(hidden):
        drawn = weights(t=(10, 4), w=(12, 16), v=(16, 6))
        drawn |= {"w": drawn["w"][:, :hidden], "v": drawn["v"][:hidden]}
        constants = {**drawn, "s": np.array([1, 12])}
        return model(body, "int64[n,3] x", "float[n,6] y", constants)

    rng = np.random.default_rng(0)
    data = open_data([{"x": rng.integers(0, 10, (1, 3))} for _ in range(16)], [io.inputs(built(16))[0]])
    runs = [distil(built(10), built(16), data, minutes=1, steps=20, rate=0.03, seed=n) for n in range(3)]
    assert np.mean([run.after.fidelity_db - run.before.fidelity_db for run in runs]) > 1


def test_only_images_are_augmented():
    image = np.zeros((1, 3, 32, 48), np.float32)
    assert is_image({"x": image})
    assert not is_image({"x": image.astype(np.uint8)})
    assert not is_image({"x": image[:, :1]})
    assert not is_image({"x": image[:, :, :8]})
    assert not is_image({"x": image, "y": image})
    assert not is_image({"x": image[0]})


def test_augmented_images_keep_their_shape_and_differ():
    rng = np.random.default_rng(0)
    ramp = [{"x": torch.arange(3 * 32 * 48.0).reshape(1, 3, 32, 48) + k} for k in range(3)]
    made = [augmented(ramp, rng)["x"] for _ in range(20)]
    assert {image.shape for image in made} == {(1, 3, 32, 48)}
    assert len({float(image.sum()) for image in made}) > 10
    assert all(image.min() >= 0 and image.max() <= ramp[2]["x"].max() for image in made)


@pytest.mark.parametrize(("minutes", "steps"), [(0, None), (-1, 3), (float("nan"), None), (1, 0)])
def test_no_time_or_no_steps_is_refused(minutes, steps):
    with pytest.raises(InputError, match="training"):
        distil(net(6), net(), samples(net()), minutes=minutes, steps=steps)


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"torch is not installed.*edge-toolchain\[torch\]"):
        distil(net(6), net(), samples(net()), minutes=1)


def test_a_student_with_other_outputs_is_refused():
    teacher = net()
    other = model("a = Conv (x, w) f = Flatten (a) y = Gemm (f, v)", "float[n,3,32,32] x", "float[n,2] y",
                  weights(w=(1, 3, 32, 32), v=(1, 2)))  # fmt: skip
    with pytest.raises(ModelError, match="no float output of the shape"):
        distil(other, teacher, samples(teacher), minutes=1)
    assert isinstance(other, ir.Model)
    assert plain(teacher, {"x": np.zeros((1, 3, 32, 32), np.float32)})["y"].shape == (1, 5)


def test_a_student_gets_the_names_of_its_teachers_outputs_and_computes_the_same():
    """Its hidden tensor and its nodes are called as the teacher's, and mean something else."""
    student = net()
    for value, name in ((student.graph.node(-1).outputs[0], "scores"), (student.graph.node(0).outputs[0], "y")):
        value.name = name
    named = as_teacher_names(student, net())
    assert [value.name for value in named.graph.outputs] == ["y"]
    assert not {node.name for node in named.graph} & {node.name for node in net().graph}
    feed = next(iter(samples(net(), count=1)))
    for got, expected in zip(run.session(named).run(None, feed), run.session(student).run(None, feed), strict=True):
        np.testing.assert_array_equal(got, expected)
