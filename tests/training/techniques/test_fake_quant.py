"""Rounding with gradients: values by NumPy, gradients by the formulas written out for autograd, state to the bit."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import model, weights

from toolchain.quantization.weights import as_rows, is_overflow_free, round_at

torch = pytest.importorskip("torch")

from toolchain.training.engine.torch_graph import TorchGraph
from toolchain.training.techniques.fake_quant import FakeQuant, Grid, QuantizedProduct, round_to_grid

BODY = "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v)"


def net():
    return model(BODY, "float[n, 3, 6, 6] x", "float[n, 4, 6, 6] y", weights(w=(4, 3, 3, 3), b=4, v=(4, 4, 1, 1)))


def technique(align=dict, **options):
    """Weights of about ten steps, so that rounding matters."""

    def product(name, bias, source):
        scales = np.full(4, 0.1, np.float32)
        return QuantizedProduct(name, bias, source, scales, 0, partial(round_at, axis=0, exact=True))

    grids = {"x": Grid(0.03, 128), "r": Grid(0.05, 0), "y": Grid(0.4, 130, learned=False)}
    products = [product("w", "b", "x"), product("v", None, "r")]
    return FakeQuant({name: name for name in grids}, grids, products, align, **options)


def started(**options):
    graph, made = TorchGraph(net()), technique(**options)
    made.advance(dict(graph.parameters), 0.0)
    return graph, made


def image(seed=0, n=2):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3, 6, 6)).astype(np.float32))


def output(graph, made, x):
    return graph({"x": x}, ["y"], made.transforms())["y"]


def moved(made, size=0.1):
    """Change the scales of a technique, as training does."""
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for leaf in made.parameters().values():
            leaf.copy_(torch.from_numpy(np.array(size * rng.standard_normal(tuple(leaf.shape)), np.float32)))


@given(st.floats(1e-3, 10), st.integers(0, 255), st.integers(0, 1000))
def test_a_tensor_is_rounded_as_onnx_defines_it(scale, zero, seed):
    scale = float(np.float32(scale))
    x = np.random.default_rng(seed).standard_normal(200).astype(np.float32) * np.float32(100 * scale)
    x[:50] = (np.arange(50) - 24.5).astype(np.float32) * np.float32(scale)  # ties, or nearly
    expected = (np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)
    assert np.array_equal(round_to_grid(torch.from_numpy(x), scale, zero).numpy(), expected.astype(np.float32))


def test_gradients_of_activations_are_those_of_learned_step_sizes():
    """Esser et al., equations 3 and 5, written out for autograd, which knows no gradient of rounding."""
    scale, zero = 0.07, 100
    x = image(1).double() * 8  # some beyond both ends
    assert (x < -100 * scale).any()
    assert (x > 155 * scale).any()
    goal = image(2).double()

    theirs, theta = x.clone().requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    s = scale * theta.exp()
    v = theirs / s
    levels = (v + (v.round() - v).detach()).clamp(-zero, 255 - zero)
    (s * levels * goal).sum().backward()

    ours, move = x.clone().requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    (round_to_grid(ours, scale, zero, move) * goal).sum().backward()
    # Between the last step and half of one behind it the written-out form rounds first and clips after, as ours.
    v = x / scale
    sure = ((v > -zero) & (v < 255 - zero)) | (v < -zero - 0.5) | (v > 255 - zero + 0.5)
    assert torch.allclose(ours.grad[sure], theirs.grad[sure])
    assert sure.double().mean() > 0.95
    per_sample = x.numel() / 2
    assert move.grad * (per_sample * 255) ** 0.5 == pytest.approx(float(theta.grad), rel=1e-9)


def test_a_fixed_scale_gets_no_gradient():
    x = image().requires_grad_()
    round_to_grid(x, 0.1, 0).sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


def test_gradients_of_a_weight_and_its_scales():
    """∂ŵ/∂w = 1; ∂ŵ/∂s by hand where q is round(w / s), and where it is held at the top."""
    graph, made = started()
    with torch.no_grad():
        graph.parameters["w"][0, 0, 0, 0] = 20.0  # 127 steps are 12.7
    made.advance(dict(graph.parameters), 0.1)
    w, goal = graph.parameters["w"], torch.from_numpy(weights(g=(4, 3, 3, 3))["g"])
    (made.transforms()["w"](w) * goal).sum().backward()
    assert torch.equal(w.grad, goal)
    integers, scales = made.integers("w")
    dense, steps = w.detach().numpy(), scales.reshape(-1, 1, 1, 1)
    free = integers == np.rint(dense / steps)
    assert integers[0, 0, 0, 0] == 127
    assert not free[0, 0, 0, 0]
    assert free.sum() > free.size / 2
    by_scale = np.where(free, integers - dense / steps, integers)
    expected = (goal.numpy() * by_scale * steps).sum(axis=(1, 2, 3)) / np.sqrt(27 * 127)
    assert np.allclose(made.parameters()["log scales of w"].grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_readers_get_integers_times_scales():
    graph, made = started()
    through = made.transforms()
    for name in ("w", "v"):
        integers, scales = made.integers(name)
        assert integers.dtype == np.int8
        expected = integers * scales.reshape(-1, 1, 1, 1)
        assert np.array_equal(through[name](graph.parameters[name]).detach().numpy(), expected)
    steps = np.float32(0.03) * np.full(4, 0.1, np.float32)
    bias = through["b"](graph.parameters["b"]).detach().numpy() / steps
    assert np.abs(bias - np.rint(bias)).max() < 1e-3


@given(st.integers(0, 1000), st.floats(0.1, 30))
def test_no_pair_overflows_whatever_was_trained(seed, size):
    graph, made = started()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight in graph.parameters.values():
            weight.copy_(torch.from_numpy(size * rng.standard_normal(weight.shape).astype(np.float32)))
    moved(made)
    made.advance(dict(graph.parameters), 0.5)
    assert all(is_overflow_free(as_rows(made.integers(name)[0], 0)) for name in ("w", "v"))


def test_scales_are_aligned_once_one_has_moved_and_stay_if_none_can_be_exported():
    asked = []

    def align(scales):
        asked.append(dict(scales))
        return {name: 2 * scale for name, scale in scales.items()} if len(asked) == 1 else None

    graph, made = started(align=align)
    assert not asked
    assert made.grids()["x"] == Grid(0.03, 128)
    moved(made)
    for _ in range(2):
        made.advance(dict(graph.parameters), 0.5)
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert made.grids()["x"].scale == 2 * asked[0]["x"]
    assert asked[0]["x"] != 0.03
    assert made.grids()["y"].scale == 2 * np.float32(0.4)
    assert "log scale of y" not in made.parameters()


def test_a_capped_scale_does_not_grow():
    made = FakeQuant({"x": "x"}, {"x": Grid(0.5, 0, max_scale=0.5)}, [])
    for move, expected in ((0.3, 0.5), (-0.3, float(np.float32(0.5 * np.exp(np.float32(-0.3)))))):
        with torch.no_grad():
            made.parameters()["log scale of x"].fill_(move)
        made.advance({}, 0.5)
        assert made.grids()["x"].scale == pytest.approx(expected, rel=1e-6)


def test_with_fixed_scales_only_weights_are_trained():
    grids = {"x": Grid(0.03, 128, learned=False)}
    assert FakeQuant({"x": "x"}, grids, [], learn_weight_scales=False).parameters() == {}


def test_state_gives_the_same_bits():
    graph, made = started()
    x = image()
    moved(made)
    made.advance(dict(graph.parameters), 0.5)
    before, state = output(graph, made, x), copy.deepcopy(made.state())
    leaves = {name: leaf.detach().clone() for name, leaf in made.parameters().items()}

    again = technique()
    with torch.no_grad():
        for name, leaf in again.parameters().items():
            leaf.copy_(leaves[name])
    again.restore(state)
    assert torch.equal(output(graph, again, x), before)
    made.advance({name: weight * 2 for name, weight in graph.parameters.items()}, 0.6)
    assert not torch.equal(output(graph, made, x), before)
    made.restore(state)
    assert torch.equal(output(graph, made, x), before)


def test_the_finished_model_has_the_rounded_weights():
    graph, made = started()
    finished = TorchGraph(made.finish(graph.write_back()))
    x, through = image(), made.transforms()
    only = {name: through[name] for name in ("x", "r", "y")}
    assert torch.equal(finished({"x": x}, ["y"], only)["y"], output(graph, made, x))


def test_training_lowers_the_loss_and_moves_scales():
    """Adam on everything: the output gets nearer to the float net's, in the mean of three sets of images."""
    ratios = []
    for seed in range(3):
        losses, made = trained_on(image(seed, n=16))
        ratios.append(np.mean(losses[-5:]) / np.mean(losses[:5]))
        assert made.grids()["r"].scale != 0.05
    assert np.mean(ratios) < 0.8


def trained_on(x):
    """Train for 60 steps; the losses and the technique."""
    graph, made = started()
    goal = TorchGraph(net())({"x": x}, ["y"])["y"].detach()
    leaves = [*graph.parameters.values(), *made.parameters().values()]
    adam = torch.optim.Adam(leaves, 3e-3)
    losses = []
    for _ in range(60):
        adam.zero_grad()
        loss = (output(graph, made, x) - goal).square().mean()
        loss.backward()
        adam.step()
        made.advance(dict(graph.parameters), 0.5)
        losses.append(float(loss.detach()))
    return losses, made
