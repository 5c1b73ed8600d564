"""Fake quantization against QuantizeLinear's definition in NumPy, its gradients, and what a checkpoint keeps."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import model, weights

torch = pytest.importorskip("torch")

from toolchain.train import TorchGraph  # noqa: E402
from toolchain.train.fake_quant import FakeQuant, on_grid  # noqa: E402


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([0.5, 0.25, 0.0625]),  # powers of two: x / s is exact, and ties are ties
    st.integers(0, 255),
)
def test_on_grid_is_quantize_and_dequantize(x, scale, zero):
    expected = scale * (np.clip(np.rint(x / scale) + zero, 0, 255) - zero)
    assert np.array_equal(on_grid(torch.from_numpy(x), scale=scale, zero=zero).numpy(), expected.astype(np.float32))


def test_gradients_pass_inside_and_end_where_it_clips():
    x = torch.tensor([-1.3, -1.0, 0.2, 24.5, 24.6, 30.0], requires_grad=True)
    on_grid(x, scale=0.1, zero=10).sum().backward()  # -1.0 to 24.5
    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


def halves(weight):
    return np.rint(weight * 2) / 2


def test_readers_get_rounded_weights_and_the_weights_get_the_gradient():
    graph = TorchGraph(model("y = MatMul(x, w)", "float[2, 3] x", "float[2, 4] y", weights(w=(3, 4))))
    technique = FakeQuant({"y": (0.5, 128)}, {"w": halves})
    technique.advance(graph.parameters, 0.0)
    x = torch.ones(2, 3)
    y = graph({"x": x}, ["y"], technique.through())["y"]
    weight = graph.parameters["w"]
    assert np.array_equal(y.detach().numpy(), np.ones((2, 3)) @ halves(weight.detach().numpy()))
    y.sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 4), 2.0))


def test_a_weight_crosses_to_the_next_level_when_it_has_moved_there():
    technique = FakeQuant({}, {"w": halves})
    seen = []
    for value in (0.2, 0.24, 0.26):
        technique.advance({"w": torch.tensor([value])}, 0.0)
        seen.append(float(technique.through()["w"](torch.tensor([value]))))
    assert seen == [0.0, 0.0, 0.5]


def test_a_checkpoint_keeps_the_weights_as_they_were_rounded():
    first, other = FakeQuant({}, {"w": halves}), FakeQuant({}, {"w": halves})
    first.advance({"w": torch.tensor([0.6])}, 0.0)
    kept = first.state()
    first.advance({"w": torch.tensor([1.1])}, 0.5)
    other.restore(kept)
    assert float(other.through()["w"](torch.tensor([0.0]))) == 0.5
