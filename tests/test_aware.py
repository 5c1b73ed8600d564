"""Pupils compute what the int8 file computes, before and after training, and what they become is as exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantizable_nets as nets
from small_models import model, weights

torch = pytest.importorskip("torch")

from toolchain import aware  # noqa: E402
from toolchain.data import open_data  # noqa: E402
from toolchain.graph import io, run  # noqa: E402
from toolchain.int8 import quantize_model  # noqa: E402
from toolchain.optimize import optimize  # noqa: E402
from toolchain.quantize import certify  # noqa: E402
from toolchain.quantize.certificate import clauses  # noqa: E402
from toolchain.quantize.weights import as_rows, is_overflow_free, quantize_weight, round_at  # noqa: E402
from toolchain.recipe import Quantize, Recipe  # noqa: E402
from toolchain.train import TorchGraph  # noqa: E402

PLAIN = Quantize(measure=False, ranges="minmax", equalize=False, bias_correction=False, rounding=False)
CHOSEN = [
    "depthwise, clip, pointwise", "two outputs a group", "Gemm, both ways round", "MatMul of a sequence", "shortcut",
    "concatenation", "pool then relu", "averages", "gate", "leaky and clipped", "integers moved about", "float island",
    "input read by both", "one weight for two", "output of a pool and what it reads",
]  # fmt: skip


def quantized(name, settings=PLAIN):
    source = optimize(nets.build(name), verify=False).model
    feeds = nets.draw_feeds(source, 8)
    data = open_data(feeds, io.inputs(source))
    return quantize_model(source, data, Recipe(quantize=settings), check=data), feeds


def differences(pupil, graph, written, feeds):
    """Between the fake model in torch and the file in onnxruntime, in steps of the output's grid."""
    names = [str(output.name) for output in pupil.model.graph.outputs]
    session, found = run.session(written, threads=1), []
    for feed in feeds:
        with torch.no_grad():
            got = graph({n: torch.from_numpy(a) for n, a in feed.items()}, names, pupil.technique.through())
        for name, expected in zip(names, session.run(None, feed), strict=True):
            grid = pupil.quantized.plan.activations.get(name)
            step = np.abs(expected).max() if grid is None else grid.scale
            found.append(np.abs(got[name].numpy() - expected).ravel() / step)
    return np.concatenate(found)


def moved(graph, seed=0):
    """Weights as training might leave them: a few steps of int8 away."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in graph.parameters.values():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=drawn)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_file_is_what_was_trained(name):
    source, feeds = quantized(name)
    pupil = aware.pupil(source)
    graph = TorchGraph(pupil.model)
    pupil.technique.advance(graph.parameters, 0.0)
    # A sum in float32 may fall on the other side of a tie than the integers' sum: rarely, and by one step.
    assert (before := differences(pupil, graph, source.write(source.encoding), feeds)).max() < 2
    assert np.mean(before > 0.01) < 0.005
    moved(graph)
    pupil.technique.advance(graph.parameters, 0.5)
    done = aware.graduated(pupil, graph.write_back())
    assert (after := differences(pupil, graph, done.write(done.encoding), feeds)).max() < 2
    assert np.mean(after > 0.01) < 0.005
    assert done.plan.overflow_free
    assert done.plan.activations == source.plan.activations
    assert not set(clauses(certify(done.model, done.plan))) - set(clauses(certify(source.model, source.plan)))
    values = [(done.plan.products[name].weight.values, old.weight.values) for name, old in source.plan.products.items()]
    assert any(not np.array_equal(new, old) for new, old in values)  # there was something to compare


def test_all_that_was_done_for_accuracy_is_where_training_begins():
    source, feeds = quantized("Gemm, both ways round", Quantize(measure=False))
    assert {step.name for step in source.steps if step.used} >= {"equalization", "rounding"}
    pupil = aware.pupil(source)
    same = aware.graduated(pupil, pupil.model)
    for feed in feeds:
        for a, b in zip(*(run.session(q.write("u8")).run(None, feed) for q in (source, same)), strict=True):
            assert np.array_equal(a, b)


def test_what_was_pruned_stays_zero():
    constants = weights(w=(8, 6), v=(6, 5))
    constants["w"][::2] = 0
    net = model("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", "float[4, 8] x", "float[4, 5] y", constants)
    source = optimize(net, verify=False).model
    data = open_data(nets.draw_feeds(source, 4), io.inputs(source))
    pupil = aware.pupil(quantize_model(source, data, Recipe(quantize=PLAIN), check=data))
    graph = TorchGraph(pupil.model)
    moved(graph)
    done = aware.graduated(pupil, graph.write_back())
    first = next(iter(done.plan.products.values())).weight.values
    assert not first[::2].any()
    assert first[1::2].all()


def test_what_is_left_float_is_raced_once(tmp_path, monkeypatch):
    source = optimize(nets.build("float island"), verify=False).model
    data = open_data(nets.draw_feeds(source, 4), io.inputs(source))
    recipes = []

    def seen(model, data, recipe, **more):
        recipes.append(recipe.quantize)
        return quantize_model(model, data, recipe.model_copy(update={"quantize": PLAIN}), **more)

    monkeypatch.setattr(aware, "quantize_model", seen)
    for _ in range(2):
        aware.planned(source, data, data, tmp_path / "choices.json", lambda what, done, total: None)
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


def test_weights_begin_as_near_to_the_float_ones_as_rounds_alike():
    source, _ = quantized("averages", Quantize(measure=False))
    pupil = aware.pupil(source)
    for node in pupil.quantized.model.graph:
        if node.name in source.plan.products:
            quant = source.plan.products[node.name].weight
            start = ir.to_proto(node.inputs[1].const_value)
            start = np.frombuffer(start.raw_data, np.float32).reshape(quant.values.shape)
            assert np.array_equal(round_at(start, quant.scales, quant.axis, exact=False), quant.values)
