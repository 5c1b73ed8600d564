"""From a plan to a student and back: before and after training, the student computes the same as onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import quantizable_nets as nets
import quantize_by_hand as by_hand
from small_models import weights

from toolchain.core.progress import silent
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io, run
from toolchain.optimization.passes import optimize
from toolchain.quantization.exactness.certificate import certify
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.plan import scale_source
from toolchain.quantization.weights import as_rows, is_overflow_free, quantize_weight, round_at

torch = pytest.importorskip("torch")

from toolchain.training.engine.torch_graph import TorchGraph
from toolchain.training.techniques import qat

RECIPE = Recipe(quantize=Quantize(measure=False, mixed=False))


def quantized(model, recipe=RECIPE):
    feeds = nets.draw_feeds(model, 8)
    return quantize_model(model, open_data(feeds, io.inputs(model)), recipe)


def case(name):
    return quantized(optimize(nets.build(name), verify=False).model)


def perturbed(student, size=0.1, seed=1):
    """The student's graph, with weights and scales that are moved at random by a tenth."""
    graph, rng = TorchGraph(student.model), np.random.default_rng(seed)
    with torch.no_grad():
        for leaf in [*graph.parameters.values(), *student.technique.parameters().values()]:
            unit = leaf.square().mean().sqrt() if leaf.ndim > 1 else torch.ones(())
            leaf.add_(size * unit * torch.from_numpy(np.array(rng.standard_normal(tuple(leaf.shape)), np.float32)))
    student.technique.advance(dict(graph.parameters), 0.5)
    return graph


def untrained(student):
    graph = TorchGraph(student.model)
    student.technique.advance(dict(graph.parameters), 0.0)
    return graph


def steps_apart(student, graph, int8, feeds):
    """Between the student and the file in onnxruntime, in steps of each output's grid (of its largest, where float)."""
    session = run.session(int8.write("u8"), threads=1)
    names = [str(output.name) for output in student.model.graph.outputs]
    found = []
    for feed in feeds:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
            got = graph(tensors, names, student.technique.transforms())
        for name, expected in zip(names, session.run(names, feed), strict=True):
            grid = int8.plan.activations.get(name)
            step = np.abs(expected).max() if grid is None else grid.scale
            found.append((np.abs(got[name].numpy() - expected) / step).ravel())
    return np.concatenate(found)


def faults(int8):
    return {verdict.node: verdict.fault for verdict in certify(int8.model, int8.plan) if verdict.fault}


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.CASES)
def test_the_student_computes_the_same_as_the_file(name):
    """Before training, and after weights, biases and scales have moved; no operator is lost, and no proof.

    Not one step apart: sums of so few terms are exact in float, too.
    """
    before = case(name)
    feeds = nets.draw_feeds(before.source, 3, seed=9)
    student = qat.qat_student(before)
    graph = untrained(student)
    assert steps_apart(student, graph, before, feeds).max() < 1e-3
    graph = perturbed(student)
    after = qat.trained_plan(student, graph.write_back())
    assert steps_apart(student, graph, after, feeds).max() < 1e-3
    assert after.plan.int8_nodes() == before.plan.int8_nodes()
    assert after.plan.overflow_free
    assert faults(after) == faults(before)
    moved = [n for n, grid in before.plan.activations.items() if after.plan.activations[n] != grid]
    assert moved or before.plan.activations.keys() <= {"y"}


@pytest.mark.parametrize("name", ["shortcut", "gate", "depthwise, clip, pointwise"])
def test_the_trained_file_computes_the_same_as_numpy_from_the_plan(name):
    """The plan's oracle knows nothing of torch."""
    before = case(name)
    student = qat.qat_student(before)
    after = qat.trained_plan(student, perturbed(student).write_back())
    written = after.write("u8")
    for feed in nets.draw_feeds(before.source, 3, seed=9):
        expected = by_hand.simulate(after.model, after.plan, feed)
        [got], [name] = run.run(written, [feed])[0], [str(o.name) for o in written.graph.outputs]
        assert np.abs(got - expected[name]).max() < 1e-3 * after.plan.activations[name].scale


def test_without_training_the_integers_are_those_of_the_plan():
    before = case("shortcut")
    student = qat.qat_student(before)
    after = qat.trained_plan(student, untrained(student).write_back())
    assert after.plan.activations == before.plan.activations
    for name, product in before.plan.products.items():
        again = after.plan.products[name]
        assert np.array_equal(again.weight.values, product.weight.values)
        assert np.array_equal(again.weight.scales, product.weight.scales)
        assert np.array_equal(again.bias, product.bias)


def test_constraints_of_grids_hold():
    """A Sigmoid's stated range; tensors of one grid; a Clip's limit, which is where its grid has to end."""
    before = case("gate")
    student = qat.qat_student(before)
    assert "log scale of s" not in student.technique.parameters()
    assert "log scale of c" in student.technique.parameters()
    after = qat.trained_plan(student, perturbed(student).write_back())
    assert after.plan.activations["s"] == before.plan.activations["s"]

    moved = case("integers moved about")
    student = qat.qat_student(moved)
    after = qat.trained_plan(student, perturbed(student).write_back())
    shared = [name for name in after.plan.activations if scale_source(name, after.basis.selection) == "c"]
    assert len(shared) == 4
    assert len({after.plan.activations[name] for name in shared}) == 1

    clipped = case("depthwise, clip, pointwise")
    student = qat.qat_student(clipped)
    with torch.no_grad():
        student.technique.parameters()["log scale of r"].fill_(1.0)
    after = qat.trained_plan(student, untrained(student).write_back())
    assert after.plan.activations["r"].scale <= clipped.plan.activations["r"].scale


def test_pruned_weights_stay_zero():
    constants = weights(w=(4, 4, 3, 3), v=(4, 4, 1, 1))
    constants["w"][:, 1] = 0
    body = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) y = Conv(r, v)"
    model = by_hand.named(body, nets.IMAGE, "y", constants)
    student = qat.qat_student(quantized(model))
    after = qat.trained_plan(student, perturbed(student, 0.5).write_back())
    assert not after.plan.products["c"].weight.values[:, 1].any()
    assert after.plan.products["c"].weight.values[:, 0].any()


def test_frozen_scales_leave_all_grids_alone():
    before = case("shortcut")
    student = qat.qat_student(before, scales=False)
    assert not student.technique.parameters()
    after = qat.trained_plan(student, perturbed(student).write_back())
    assert after.plan.activations == before.plan.activations
    for name, product in before.plan.products.items():
        assert np.array_equal(after.plan.products[name].weight.scales, product.weight.scales)
        assert not np.array_equal(after.plan.products[name].weight.values, product.weight.values)


def test_an_operator_can_be_left_float_after_training():
    """Leaving an operator float later keeps the trained weights of the others."""
    before = case("shortcut")
    student = qat.qat_student(before)
    after = qat.trained_plan(student, perturbed(student).write_back())
    mixed = after.leaving_float({"d": "a test"})
    assert "d" not in mixed.plan.int8_nodes()
    assert "y" in mixed.plan.int8_nodes()
    assert np.array_equal(mixed.plan.products["y"].weight.values, after.plan.products["y"].weight.values)
    assert mixed.plan.activations["t"] in after.plan.activations.values()


def test_float_nodes_are_chosen_by_time_once(tmp_path):
    source = optimize(nets.build("float island"), verify=False).model
    data = open_data(nets.draw_feeds(source, 4), io.inputs(source))
    recipes = []

    def seen(model, data, recipe, **more):
        recipes.append(recipe.quantize)
        return quantize_model(model, data, recipe.model_copy(update={"quantize": RECIPE.quantize}), **more)

    for _ in range(2):
        qat.static_plan(source, data, data, tmp_path / "float-nodes.json", silent, quantize=seen)
    assert [settings.measure for settings in recipes] == [True, False, False]
    assert recipes[1] == recipes[2]
    assert set(recipes[1].keep_float) == {node.name for node in source.graph if node.op_type in ("Tanh", "Mul")}


@pytest.mark.parametrize("axis", [0, 1])
def test_integers_at_given_scales(axis):
    weight = weights(w=(6, 8, 3, 3) if axis == 0 else (30, 7))["w"]
    known = quantize_weight(weight, axis, exact=True)
    assert np.array_equal(round_at(weight, known.scales, axis, exact=True), known.values)
    larger = round_at(3 * weight, known.scales, axis, exact=True)
    assert is_overflow_free(as_rows(larger, axis))
    assert np.abs(larger).max() <= 127
    assert not is_overflow_free(as_rows(round_at(3 * weight, known.scales, axis, exact=False), axis))
