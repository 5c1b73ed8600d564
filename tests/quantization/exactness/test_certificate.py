"""The certificate is true of a plan's integers, and reports when a condition is broken."""

from dataclasses import replace

import numpy as np
import pytest
import quantize_by_hand as by_hand
from small_models import weights

from toolchain.graph import query
from toolchain.quantization.exactness import certificate
from toolchain.quantization.exactness.certificate import certify, clauses, exactness, worst_sum
from toolchain.quantization.qdq.fragments import int8_part
from toolchain.quantization.ranges import Affine
from toolchain.quantization.weights import WeightQuant

BODY = """[conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b) [relu] r = Relu(c) [depth] d = Conv<group = 6>(r, k)
          [sum] s = Add(d, d) [leaky] l = LeakyRelu(s) [join] j = Concat<axis = 1>(l, d)
          [pool] p = GlobalAveragePool(j) [flat] f = Flatten(p) [gemm] g = Gemm(f, v, e) [soft] o = Softmax(g)
          [twice] y = Add(o, o)"""
NET = (BODY, "float[1, 3, 8, 8] x", "float[1, 5] y", weights(w=(6, 3, 3, 3), b=(6,), k=(6, 1, 1, 1), v=(12, 5), e=(5,)))


def planned(**recipe):
    model = by_hand.named(*NET)
    rng = np.random.default_rng(0)
    return model, by_hand.planned(model, [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}], **recipe)


def by_node(model, plan):
    return {verdict.node: verdict for verdict in certify(model, plan)}


def changed(plan, node, values, bias=None):
    """The plan with another integer weight, and bias, of one node."""
    product = plan.products[node]
    weight = WeightQuant(values, product.weight.scales, product.weight.axis, product.weight.overflow_free)
    bias = product.bias if bias is None else bias
    return replace(plan, products={**plan.products, node: replace(product, weight=weight, bias=bias)})


def test_every_int8_node_has_its_proof_and_kernel():
    model, plan = planned()
    found = by_node(model, plan)
    assert plan.int8_nodes() <= set(found)
    assert {name: found[name].kernel for name in plan.int8_nodes()} == {
        "conv": "QLinearConv", "relu": "Relu", "depth": "QLinearConv", "sum": "QLinearAdd", "leaky": "QLinearLeakyRelu",
        "join": "QLinearConcat", "pool": "QLinearGlobalAveragePool", "flat": "Flatten", "gemm": "QGemm",
    }  # fmt: skip
    assert all(found[name].proof and found[name].fault is None for name in plan.int8_nodes())
    assert all(v.used is None or 0 < v.used < 1 for v in found.values())
    assert found["depth"].proof == certificate.EXACT_DEPTHWISE
    assert found["gemm"].proof == certificate.EXACT_FLOAT_RESULT  # its only reader is float


def test_of_float_nodes_only_those_that_round_many_times_are_named():
    model, plan = planned()
    found = by_node(model, plan)
    assert found["soft"].fault == certificate.FLOAT
    assert "twice" not in found  # one IEEE addition an element
    assert clauses(found.values()) == ("1 Softmax runs in float, so its last digits may differ between processors",)


def test_the_bound_of_a_sum_is_reached_by_no_input():
    """By brute force: every activation at an end, and the zero point's share beside it."""
    _, plan = planned()
    product = plan.products["conv"]
    rows = product.weight.values.reshape(6, -1).astype(np.int64)
    worst = np.abs(255 * np.clip(rows, 0, None).sum(1)) + np.abs(255 * rows.sum(1)) + np.abs(product.bias)
    assert worst.max() <= worst_sum(product)
    assert worst_sum(product) == (510 * np.abs(rows).sum(1) + np.abs(product.bias.astype(np.int64))).max()


def test_pairs_that_saturate_are_found():
    model, plan = planned()
    heavy = np.full_like(plan.products["conv"].weight.values, 127)
    found = by_node(model, changed(plan, "conv", heavy))["conv"]
    assert (found.proof, found.fault) == (None, "pairs of products may saturate on x86 without VNNI")
    heavy = np.full_like(plan.products["depth"].weight.values, 127)
    assert by_node(model, changed(plan, "depth", heavy))["depth"].fault is None


def test_the_last_odd_weight_is_paired_with_nothing():
    model, plan = planned()
    values = np.zeros_like(plan.products["conv"].weight.values)
    values[:, -1, -1, -1] = 127  # 27 weights a channel
    assert by_node(model, changed(plan, "conv", values))["conv"].fault is None


def test_a_weight_of_minus_128_is_found():
    model, plan = planned()
    values = np.zeros_like(plan.products["depth"].weight.values)
    values[0] = -128
    assert "-128" in by_node(model, changed(plan, "depth", values))["depth"].fault


def test_an_int32_overflow_is_found():
    model, plan = planned()
    product = plan.products["conv"]
    bias = np.full_like(product.bias, 2**31 - 1)
    assert "int32" in by_node(model, changed(plan, "conv", product.weight.values, bias))["conv"].fault


def test_a_tie_is_found_and_named():
    model, plan = planned()
    grids = {**plan.activations, "d": Affine(0.01, 100), "s": Affine(0.02, 100)}
    verdicts = certify(model, replace(plan, activations=grids))
    assert "steps from a rounding tie" in next(v.fault for v in verdicts if v.node == "sum")
    assert "1 Add (QLinearAdd) has no proof that all processors compute the same integers" in clauses(verdicts)


def test_without_the_recipes_exactness_doubts_are_stated():
    model, plan = planned(exact=False)
    assert any(verdict.kernel and verdict.fault for verdict in certify(model, plan))


def test_an_unknown_int8_operator_has_no_proof(monkeypatch):
    model, plan = planned()
    monkeypatch.setattr(certificate, "PROVEN_BY_TABLE", frozenset())
    assert by_node(model, plan)["leaky"].fault == certificate.UNPROVEN


@pytest.mark.parametrize(("behind", "steps"), [("y = Gemm(o, k)", True), ("y = Add(o, o)", False)])
def test_integers_after_float_operators_may_differ(behind, steps):
    body = f"[gemm] g = Gemm(x, w) [soft] o = Softmax(g) [last] {behind}"
    model = by_hand.named(body, "float[3, 8] x", "float[3, 6] y", weights(w=(8, 6), k=(6, 6)))
    plan = by_hand.planned(model, [{"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}])
    found = exactness(model, certify(model, plan), "s8")
    assert (found.steps, found.overflow_free, found.activations) == (steps, True, "s8")
    assert [doubt.nodes for doubt in found.doubts] == [("soft",)]
    assert found.exceptions == ("1 Softmax runs in float, so its last digits may differ between processors",)


@pytest.mark.parametrize("encoding", ["u8", "s8"])
def test_the_int8_part_is_all_int8_nodes_and_no_other(encoding):
    model, plan = planned()
    part = int8_part(model, plan, encoding)
    assert set(part.nodes) == plan.int8_nodes()
    assert "soft" not in {query.label(node) for node in part.int8_model.graph}
    assert [value.name for value in part.int8_model.graph.inputs] == ["x"]
