"""Fragments: every int8 node is in one, they are connected, and each computes alone what it computes in the model."""

import numpy as np
import onnx_ir as ir
import pytest
import quantize_by_hand as by_hand
import small_models
from hypothesis import given, settings
from quantizable_nets import build, draw_feeds, networks

from toolchain.graph import check
from toolchain.quantization.qdq.fragments import fragments


def split(model, feeds, encoding="u8"):
    plan = by_hand.planned(model, feeds, ranges="minmax")
    return plan, fragments(model, plan, encoding)


def neighbours(model, chosen):
    """Pairs of chosen nodes with a tensor between them, from the graph's own edges."""
    return {
        (node.name, use.node.name)
        for node in model.graph
        for output in node.outputs
        for use in output.uses()
        if node.name in chosen and use.node.name in chosen
    }


def test_a_float_node_separates_two_fragments():
    model = build("float island")
    _, parts = split(model, draw_feeds(model))
    assert [part.nodes for part in parts] == [("conv",), ("y",)]
    assert [part.name for part in parts] == ["conv", "y"]


def test_branches_that_meet_are_one_fragment():
    model = build("shortcut")
    _, parts = split(model, draw_feeds(model))
    assert [part.nodes for part in parts] == [("conv", "r", "d", "s", "t", "y")]


@given(networks())
@settings(max_examples=25, deadline=None)
def test_every_fragment_alone_computes_what_it_does_in_the_whole(model):
    feeds = draw_feeds(model, 2)
    plan, parts = split(model, feeds)
    chosen = plan.int8_nodes()
    assert sorted(name for part in parts for name in part.nodes) == sorted(chosen), "each once"
    home = {name: part for part in parts for name in part.nodes}
    assert all(home[a] is home[b] for a, b in neighbours(model, chosen)), "neighbours stay together"
    known = small_models.every_value(ir.to_proto(model), feeds[0])
    for part in parts:
        for variant in (part.float_model, part.int8_model):
            check.check(variant)
            assert [v.name for v in variant.graph.outputs] == [v.name for v in part.float_model.graph.outputs]
        feed = {v.name: known[v.name] for v in part.float_model.graph.inputs}
        for name, array in small_models.plain(part.float_model, feed).items():
            np.testing.assert_array_equal(array, known[name])
        for name, array in small_models.plain(part.int8_model, feed).items():
            expected = by_hand.simulate(part.float_model, plan, feed)[name]
            assert np.mean(np.abs(array - expected)) <= 2e-3 * max(np.abs(expected).max(), 1e-6)


@pytest.mark.parametrize("encoding", ["u8", "s8"])
def test_a_fragment_is_written_in_the_given_encoding(encoding):
    model = build("float island")
    _, parts = split(model, draw_feeds(model), encoding)
    for part in parts:
        zero_points = [n.inputs[2].const_value.numpy() for n in part.int8_model.graph if n.op_type == "QuantizeLinear"]
        assert {zero.dtype.name for zero in zero_points} == {"uint8" if encoding == "u8" else "int8"}


def test_no_int8_nodes_give_no_fragments():
    model = by_hand.named("y = Tanh(x)", "float[2, 3] x", "y")
    assert split(model, [{"x": np.ones((2, 3), np.float32)}])[1] == []
