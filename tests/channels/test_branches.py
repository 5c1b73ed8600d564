"""Residual branches: which nodes form one, and the model that is left after its removal."""

import numpy as np
import pytest
from small_models import model, plain, weights

from toolchain.channels.branches import branches, drop_branches
from toolchain.core.errors import ModelError

BODY = """
    s = Conv(x, w0) a = Conv(s, w1) r = Relu(a) b = Conv(r, w2) t = Add(s, b)
    c = Conv(t, w3) u = Add(c, t) y = Relu(u)
"""
CONSTANTS = weights(w0=(4, 3, 1, 1), w1=(8, 4, 1, 1), w2=(4, 8, 1, 1), w3=(4, 4, 1, 1))


def net(body=BODY, constants=None):
    named = model(body, "float[1, 3, 5, 5] x", "float[1, 4, 5, 5] y", constants or CONSTANTS)
    for node in named.graph:
        node.name = f"make_{node.outputs[0].name}"
    return named


def test_branches_are_found_with_the_stream_on_either_side():
    found = branches(net())
    assert [(b.name, b.stream, b.nodes) for b in found] == [
        ("make_t", "s", ("make_a", "make_r", "make_b")),
        ("make_u", "t", ("make_c",)),
    ]


@pytest.mark.parametrize("name", ["make_t", "make_u"])
def test_a_removed_branch_equals_a_branch_of_zeros(name):
    last = {"make_t": "w2", "make_u": "w3"}[name]
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)}
    silent = net(constants={**CONSTANTS, last: np.zeros_like(CONSTANTS[last])})
    np.testing.assert_allclose(
        plain(drop_branches(net(), [name]), feed)["y"], plain(silent, feed)["y"], rtol=1e-6, atol=1e-6
    )


def test_the_stream_takes_the_name_of_the_sum():
    left = drop_branches(net(), ["make_t"])
    assert [node.outputs[0].name for node in left.graph] == ["t", "c", "u", "y"]


def test_nodes_with_other_readers_are_no_branch():
    body = "s = Conv(x, w0) a = Conv(s, w3) t = Add(s, a) y = Mul(t, a)"
    assert branches(net(body)) == ()


def test_an_unknown_branch_is_an_error():
    with pytest.raises(ModelError, match="no such residual branch"):
        drop_branches(net(), ["make_y"])
