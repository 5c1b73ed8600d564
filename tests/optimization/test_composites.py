"""Normalizations and activations by their parts: what they become, compute, and take in onnxruntime."""

import decomposed
import numpy as np
import onnx
import pytest
import small_models
from decomposed import WIDTH, Parts, kernels

from toolchain.conversion.source import convert
from toolchain.optimization import composites
from toolchain.optimization.passes import optimize

STATIC, DYNAMIC = [2, 5, WIDTH], ["N", "S", WIDTH]
NORMS = ("layer_norm", "layer_norm_by_reciprocal", "rms_norm")
ACTIVATIONS = ("gelu", "gelu_half_first", "gelu_half_inside", "gelu_by_tanh", "silu", "hard_swish")


def between_products(opset, part):
    """A model of one part between two linear layers."""
    parts = Parts(opset)
    hidden = getattr(parts, part)(parts.linear("x", WIDTH, WIDTH))
    return parts, parts.linear(hidden, WIDTH, WIDTH)


def blocks(opset, norm, activation, form="block"):
    parts, value = Parts(opset), "x"
    for _ in range(2):
        value = getattr(parts, form)(value, getattr(parts, norm), getattr(parts, activation))
    return parts, value


def cleaned(proto, tmp_path):
    """Path of the source, and the cleaned-up model after asserting that it computes the same on fresh inputs."""
    path = tmp_path / "source.onnx"
    onnx.save(proto, path)
    result = optimize(convert(path).model).model
    feed = {"x": np.random.default_rng(7).standard_normal(STATIC).astype(np.float32)}
    expected, found = small_models.plain(proto, feed)["y"], small_models.plain(result, feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # sums of 32 terms, in another order
    return path, result


@pytest.mark.parametrize("shape", [STATIC, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("part", [*NORMS, *ACTIVATIONS])
def test_a_part_never_takes_more_kernels_than_in_the_source(part, opset, shape, tmp_path):
    parts, value = between_products(opset, part)
    path, result = cleaned(parts.model(value, shape), tmp_path)
    assert len(kernels(result)) <= len(kernels(path))


@pytest.mark.parametrize("shape", [STATIC, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("form", ["block", "block_normalized_last"])
@pytest.mark.parametrize(("norm", "activation"), [("layer_norm", "gelu_half_inside"), ("rms_norm", "silu")])
def test_a_transformer_never_takes_more_kernels_than_in_the_source(norm, activation, form, shape, tmp_path):
    parts, value = blocks(13, norm, activation, form)
    path, result = cleaned(parts.model(value, shape), tmp_path)
    assert len(kernels(result)) <= len(kernels(path))


@pytest.mark.parametrize("part", ["layer_norm", "layer_norm_by_reciprocal"])
def test_layer_normalization_becomes_the_operator(part, tmp_path):
    parts, value = between_products(13, part)
    _, result = cleaned(parts.model(value, DYNAMIC), tmp_path)
    assert small_models.ops(result) == ["MatMul", "Add", "LayerNormalization", "MatMul", "Add"]


@pytest.mark.parametrize("part", ["gelu", "gelu_half_first", "gelu_half_inside"])
def test_gelu_gets_the_form_that_onnxruntime_runs_as_one(part, tmp_path):
    parts, value = between_products(13, part)
    _, result = cleaned(parts.model(value, DYNAMIC), tmp_path)
    assert "Erf" not in kernels(result)
    assert small_models.ops(result).count("Mul") == 2


def test_normalization_over_two_axes():
    body = """m = ReduceMean<axes = [1, 2]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-2, -1]>(q)
    e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gain) y = Add(g, offset)"""
    numbers = {**small_models.weights(gain=(3, 4), offset=(4,)), "eps": np.float32(0.1)}
    model = small_models.model(body, "float[2, 3, 4] x", "float[2, 3, 4] y", numbers)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
    expected = small_models.reference(model, feed)["y"]
    composites.join_layer_normalization(model)
    assert small_models.ops(model) == ["LayerNormalization"]
    np.testing.assert_allclose(small_models.plain(model, feed)["y"], expected, rtol=1e-5, atol=1e-5)


HEAD = "m = ReduceMean<axes = [2]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [2]>(q) e = Add(v, eps)"
OTHER_NORMALIZATIONS = {
    "a part is read elsewhere": f"{HEAD} s = Sqrt(e) n = Div(d, s) y = Add(n, m)",
    "the means have other axes": HEAD.replace("m = ReduceMean<axes = [2]>", "m = ReduceMean<axes = [1]>")
    + " s = Sqrt(e) y = Div(d, s)",
    "another value is divided": f"{HEAD} s = Sqrt(e) y = Div(x, s)",
    "a middle axis": HEAD.replace("axes = [2]", "axes = [1]") + " s = Sqrt(e) y = Div(d, s)",
    "a number for each position": f"{HEAD} s = Sqrt(e) n = Div(d, s) y = Mul(n, places)",
}


@pytest.mark.parametrize("case", OTHER_NORMALIZATIONS)
def test_other_normalizations_compute_what_they_did(case):
    numbers = {**small_models.weights(places=(3, 1)), "eps": np.float32(0.1)}
    model = small_models.model(OTHER_NORMALIZATIONS[case], "float[2, 3, 4] x", "float[2, 3, 4] y", numbers)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
    expected = small_models.reference(model, feed)["y"]
    composites.join_layer_normalization(model)
    assert ("LayerNormalization" in small_models.ops(model)) == (case == "a number for each position")
    np.testing.assert_allclose(small_models.plain(model, feed)["y"], expected, rtol=1e-5, atol=1e-5)


def test_the_mean_of_squeeze_and_excitation_is_still_a_pool():
    body = "m = ReduceMean<axes = [2, 3]>(x) s = Sigmoid(m) y = Mul(x, s)"
    model = small_models.model(body, "float[N, 4, 6, 6] x", "float[N, 4, 6, 6] y")
    assert small_models.ops(optimize(model).model) == ["GlobalAveragePool", "Sigmoid", "Mul"]


def test_halvings_that_are_no_gelu_are_not_changed():
    body = "d = Div(x, two) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(x, h)"
    numbers = {"two": np.float32(2), "one": np.float32(1), "half": np.float32(0.5)}
    model = small_models.model(body, "float[3, 8] x", "float[3, 8] y", numbers)
    composites.normalize_gelu(model)
    assert [value.name for node in model.graph for value in node.inputs] == [
        *("x", "two"), "d", *("e", "one"), *("a", "half"), *("x", "h")
    ]  # fmt: skip


def test_onnxruntime_runs_a_normalization_by_parts_as_one_operator():
    """The comparisons above count nothing if onnxruntime ceases to join the parts."""
    parts, value = between_products(13, "layer_norm")
    with_parts = decomposed.kernels(small_models.ir.from_proto(parts.model(value, DYNAMIC)))
    assert "LayerNormalization" in with_parts
