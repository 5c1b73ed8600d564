"""Inner tensors read out of a model that stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import model, weights

from toolchain.graph import tap
from toolchain.graph.text import dump

NET = ("h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)", "float[2, 3] x", "float[2, 3] y", weights(w=(3, 3)))


def test_exposed_tensors_are_the_only_outputs_in_the_order_asked_for():
    source = model(*NET)
    before = dump(source)
    exposed = tap.expose(source, ["r", "h"])
    assert [value.name for value in exposed.graph.outputs] == ["r", "h"]
    assert [node.op_type for node in exposed.graph] == ["MatMul", "Relu"]
    assert dump(source) == before


def test_captured_values_are_those_the_model_computes_input_included():
    source = model(*NET)
    feeds = [{"x": np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)} for seed in range(2)]
    found = tap.capture(source, ["r", "x", "r"], feeds)
    assert [list(one) for one in found] == [["r", "x"]] * 2
    w = weights(w=(3, 3))["w"]
    for feed, one in zip(feeds, found, strict=True):
        np.testing.assert_array_equal(one["x"], feed["x"])
        np.testing.assert_allclose(one["r"], np.maximum(feed["x"] @ w, 0), rtol=1e-6)


def test_a_name_that_is_not_in_the_model():
    with pytest.raises(KeyError, match="nothing"):
        tap.expose(model(*NET), ["nothing"])
