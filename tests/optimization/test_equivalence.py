"""The sizes of the random inputs on which two models are compared."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.graph import io, run
from toolchain.optimization import equivalence


@pytest.mark.parametrize(
    ("inputs", "largest"),
    [
        ("float[N, 3, H, W] x", {"x": (1, 3, 64, 64)}),
        ("float[T, 3, 40, 40] x", {"x": (64, 3, 40, 40)}),
        ("float[?, 3, ?, 40] x", {"x": (1, 3, 64, 40)}),
        ("float[N, 3, H, 40] x, float[N, 3, 40, 40] z", {"x": (1, 3, 64, 40), "z": (1, 3, 40, 40)}),
    ],
)
def test_the_batch_stays_small_where_other_axes_grow(inputs, largest):
    """An axis that is alone may count places, so it grows; one that is the batch of another input does not."""
    specs = io.inputs(small_models.model("y = Relu(x)", inputs, "y"))
    sized = equivalence._sized(specs, 1, 64)
    assert {spec.name: spec.dims for spec in sized} == largest


def test_a_model_that_needs_a_large_image_is_compared_on_one(monkeypatch):
    """A convolution of 20 x 20 runs neither on 2 x 2 nor on 8 x 8; images of 32 x 32 come one at a time."""
    body, constants = "c = Conv(x, w) y = Relu(c)", weights(w=(2, 3, 20, 20))
    model = small_models.model(body, "float[N, 3, H, W] x", "y", constants)
    shapes = []
    plain = run.random_feed

    def drawn(*args):
        feed = plain(*args)
        shapes.append(feed["x"].shape)
        return feed

    monkeypatch.setattr(equivalence.run, "random_feed", drawn)
    found = equivalence.compare(model, model)
    assert found.difference is not None
    assert shapes[-1] == (1, 3, 32, 32)
    assert max(np.prod(shape) for shape in shapes) == 3 * 32 * 32
