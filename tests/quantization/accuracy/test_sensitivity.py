"""The noise of single roundings, the clusters to leave float, and the search within an allowed drop."""

import json

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.core.cache import cache_dir
from toolchain.core.progress import silent
from toolchain.data.calibration import open_data
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Recipe
from toolchain.graph import io, tap
from toolchain.optimization.passes import optimize
from toolchain.quantization.accuracy import sensitivity
from toolchain.quantization.accuracy.rounding_switches import (
    add_rounding_switches,
    make_weights_inputs,
    switch_feed,
    weight_feed,
)
from toolchain.quantization.accuracy.sensitivity import measure_noise, noise_clusters
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.ranges import Affine

CHAIN = "[a] a = Conv(x, u) [ra] p = Relu(a) [b] b = Conv(p, v) [rb] q = Relu(b) [c] y = Conv(q, w)"
PLAIN = Recipe.parse({"quantize": {"measure": False, "equalize": False, "rounding": False}})


@pytest.fixture
def net():
    """Three convolutions; the last weighs two small channels of `q` most, so rounding `q` makes the most noise."""
    constants = weights(u=(8, 4, 1, 1), v=(8, 8, 1, 1), w=(8, 8, 1, 1))
    constants["v"][:2] *= 0.01
    constants["w"][:, :2] *= 100
    return optimize(small_models.model(CHAIN, "float[1, 4, 6, 6] x", "y", constants), verify=False).model


@pytest.fixture
def samples(net):
    rng = np.random.default_rng(3)
    specs = io.inputs(net)
    return open_data([{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(8)], specs)


@pytest.fixture
def quantized(net, samples):
    return quantize_model(net, samples, PLAIN)


def test_a_switch_is_off_or_rounds_as_numpy_does(net, samples):
    feed = next(iter(samples))
    names = ["x", "p"]
    switched = add_rounding_switches(net, names)
    plain = small_models.plain(net, feed)["y"]
    off = small_models.plain(switched, {**feed, **switch_feed(names, {})})["y"]
    np.testing.assert_array_equal(off, plain)
    grid = Affine(0.05, 100)
    on = small_models.plain(switched, {**feed, **switch_feed(names, {"x": grid})})["y"]
    rounded = (np.clip(np.rint(feed["x"] / np.float32(grid.scale)) + 100, 0, 255) - 100).astype(np.float32)
    expected = small_models.plain(net, {"x": rounded * np.float32(grid.scale)})["y"]
    np.testing.assert_allclose(on, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(on - plain).max() > 1e-3


def test_a_graph_output_is_rounded_under_its_name(net, samples):
    switched = add_rounding_switches(net, ["y"])
    feed, plain = next(iter(samples)), small_models.plain(net, next(iter(samples)))["y"]
    np.testing.assert_array_equal(small_models.plain(switched, {**feed, **switch_feed(["y"], {})})["y"], plain)
    grid = Affine(0.25, 128)
    found = small_models.plain(switched, {**feed, **switch_feed(["y"], {"y": grid})})["y"]
    np.testing.assert_array_equal(found, (np.clip(np.rint(plain / 0.25), -128, 127) * 0.25).astype(np.float32))


def test_weights_that_are_inputs_can_be_rounded_one_by_one(net, quantized, samples):
    feed, products = next(iter(samples)), quantized.plan.products
    open_weights = make_weights_inputs(net, products)
    float_weights = weight_feed(net, dict.fromkeys(products))
    plain = small_models.plain(net, feed)["y"]
    np.testing.assert_allclose(small_models.plain(open_weights, feed | float_weights)["y"], plain, rtol=1e-5, atol=1e-5)
    rounded = weight_feed(net, {"c": products["c"].weight})
    got = small_models.plain(open_weights, feed | float_weights | rounded)["y"]
    activation = small_models.plain(tap.expose(net, ["q"]), feed)["q"]
    expected = np.einsum("oi,bihw->bohw", products["c"].weight.dequantized()[:, :, 0, 0], activation)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_too_many_roundings_are_measured_in_groups_and_the_noisiest_are_divided():
    noise = {f"t{i:02}": 1.0 for i in range(64)} | {"t17": 50.0, "t40": 20.0}
    asked = []

    def measure(group):
        asked.append(group)
        return sum(noise[name] for name in group)

    found = sensitivity._divided(list(noise), measure, 24)
    assert len(asked) <= 24
    assert sum(found.values()) == pytest.approx(sum(noise.values()))
    assert {name: found[name] for name in ("t17", "t40")} == {"t17": 50.0, "t40": 20.0}
    assert sensitivity._divided(list(noise), measure, 64) == noise, "one by one where that is allowed"


def test_the_number_of_measurements_is_bounded(quantized, net, samples, monkeypatch):
    monkeypatch.setattr(sensitivity, "MAX_MACS", 0)
    monkeypatch.setattr(sensitivity, "MIN_MEASUREMENTS", 4)
    told = []
    found = measure_noise(quantized.model, quantized.plan, Judge(net, list(samples)), "few", lambda *n: told.append(n))
    assert max(done for _, done, _ in told) <= 5 < len(found)
    assert sum(noise.share for noise in found) == pytest.approx(1.0)


def test_shares_sum_to_one_and_the_largest_comes_first(quantized):
    found = quantized.noise_sources()
    assert sum(noise.share for noise in found) == pytest.approx(1.0)
    assert [noise.fidelity_db for noise in found] == sorted(noise.fidelity_db for noise in found)
    assert {(noise.kind, noise.at) for noise in found} >= {("activation", "q"), ("weight", "b")}
    assert found[0].at == "q", "its small channels are what the last weights look at"


def test_the_noises_add_up_to_that_of_the_whole(quantized, net, samples):
    judge = Judge(net, list(samples))
    whole = judge.fidelity_db(quantized.write("u8"))
    found = measure_noise(quantized.model, quantized.plan, judge, "sum", silent)
    alone = -10 * np.log10(sum(10 ** (-noise.fidelity_db / 10) for noise in found))
    assert abs(whole - alone) < 3.0  # decibels; independent errors, but only eight samples of few numbers


def test_what_was_measured_is_kept_and_a_broken_file_is_measured_again(quantized, net, samples, monkeypatch):
    judge = Judge(net, list(samples))
    first = measure_noise(quantized.model, quantized.plan, judge, "kept", silent)

    class NoJudge:
        samples = judge.samples

        def fidelity_function(self, model):
            raise AssertionError("measured again")

    assert measure_noise(quantized.model, quantized.plan, NoJudge(), "kept", silent) == first
    with pytest.raises(AssertionError, match="measured again"):
        measure_noise(quantized.model, quantized.plan, NoJudge(), "other samples", silent)
    [path] = cache_dir("sensitivity").glob("*.json")
    assert len(json.loads(path.read_text())) == len(first)
    path.write_text("{")
    assert measure_noise(quantized.model, quantized.plan, judge, "kept", silent) == first


def test_a_cluster_is_all_int8_around_its_tensor_and_none_is_in_two(quantized):
    found = noise_clusters(quantized.model, quantized.plan, quantized.noise_sources())
    nodes = [name for cluster in found for name in cluster.nodes]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == quantized.plan.int8_nodes()
    [around] = [cluster for cluster in found if cluster.tensor == "q"]
    assert found[0] is around
    assert {"b", "rb", "c"} <= set(around.nodes)


# --- the search ---
