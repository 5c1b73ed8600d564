"""Fidelity in decibels, for errors that are made on purpose."""

import numpy as np
import pytest
import quantize_by_hand as by_hand

from toolchain.evaluation.fidelity import MAX_FIDELITY_DB, Probe, db_to_power, power_to_db, saturating_tail


def scaled(factor, body="y = Mul(x, k)", inputs="float[N, 4] x", outputs="y", **constants):
    return by_hand.named(body, inputs, outputs, {"k": np.float32(factor), **constants})


def feeds(n=3, size=4):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, size)).astype(np.float32)} for _ in range(n)]


@pytest.mark.parametrize(("factor", "db"), [(1.1, 20), (0.9, 20), (1.01, 40), (2.0, 0), (0.0, 0), (11.0, -20)])
def test_a_known_error_has_known_decibels(factor, db):
    assert Probe(scaled(1), feeds()).fidelity_db(scaled(factor)) == pytest.approx(db, abs=0.01)


def test_no_error_is_the_best_there_is():
    assert Probe(scaled(1), feeds()).fidelity_db(scaled(1)) == MAX_FIDELITY_DB
    assert Probe(scaled(1), feeds()).fidelity_db(scaled(1 + 1e-6)) == MAX_FIDELITY_DB


def test_logarithms_are_averaged_over_samples_and_shares_over_outputs():
    """Errors of 1 on energies of 4 · 10², 4 · 100²: 20 and 40 dB. One output of two is exact: 3 dB more."""

    def shifted(shift):
        return by_hand.named("y = Add(x, k) z = Neg(x)", "float[1, 4] x", "y, z", {"k": np.float32(shift)})

    samples = [{"x": np.full((1, 4), size, np.float32)} for size in (10, 100)]
    half = 10 * np.log10(2)
    assert Probe(shifted(0), samples).fidelity_db(shifted(1)) == pytest.approx(30 + half, abs=1e-3)


@pytest.mark.parametrize(("power", "db"), [(1.0, 0), (0.1, 10), (1e-4, 40), (100.0, -20)])
def test_power_and_decibels_convert_into_each_other(power, db):
    assert power_to_db(power) == pytest.approx(db)
    assert db_to_power(db) == pytest.approx(power)


@pytest.mark.parametrize("power", [0.0, 1e-30, 1e-11])
def test_decibels_are_limited(power):
    assert power_to_db(power) == MAX_FIDELITY_DB


@pytest.mark.parametrize(
    ("tail", "operators"),
    [
        ("y = Softmax(m)", ["Softmax"]),
        ("s = Softmax(m) y = Sigmoid(s)", ["Sigmoid", "Softmax"]),
        ("s = Softmax(m) y = Neg(s)", []),
    ],
)
def test_the_saturating_tail_starts_at_the_output(tail, operators):
    model = scaled(0, SCORES.format(tail))
    assert [node.op_type for node in saturating_tail(model.graph.outputs[0])] == operators


SCORES = "m = Add(x, k) {}"


@pytest.mark.parametrize(
    "tail",
    ["y = Softmax(m)", "y = Sigmoid(m)", "y = LogSoftmax<axis = 0>(m)", "s = Softmax(m) y = Sigmoid(s)"],
)
def test_saturating_outputs_are_measured_before_they_saturate(tail):
    """A shift of all scores does not change a Softmax, and is measured nevertheless."""
    body = SCORES.format(tail)
    samples = [{"x": np.full((1, 4), 20, np.float32)}]
    probe = Probe(scaled(0, body), samples)
    assert probe.fidelity_db(scaled(2, body)) == pytest.approx(20, abs=1e-3)


def test_an_ordinary_operator_behind_a_softmax_is_measured_itself():
    body = SCORES.format("s = Softmax(m) y = Neg(s)")
    samples = [{"x": np.full((1, 4), 20, np.float32)}]
    assert Probe(scaled(0, body), samples).fidelity_db(scaled(2, body)) == MAX_FIDELITY_DB


@pytest.mark.parametrize("outputs", ["m, y", "y, m", "y, z", "y, z, m"])
def test_scores_may_leave_the_graph_beside_their_probabilities(outputs):
    body = SCORES.format("y = Softmax(m) z = Sigmoid(m)")
    samples = [{"x": np.full((1, 4), 20, np.float32)}]
    probe = Probe(scaled(0, body, outputs=outputs), samples)
    assert probe.fidelity_db(scaled(2, body, outputs=outputs)) == pytest.approx(20, abs=1e-3)


def test_a_softmax_of_what_is_fed():
    body = "y = Softmax(x) z = Mul(x, k)"
    probe = Probe(scaled(1, body, outputs="y, z"), feeds())
    assert probe.fidelity_db(scaled(1.1, body, outputs="y, z")) == pytest.approx(20 + 10 * np.log10(2), abs=0.01)


def test_integer_outputs_do_not_count():
    body = "z = Mul(x, k) i = ArgMax(z)"
    probe = Probe(scaled(1, body, outputs="z, i"), feeds())
    assert probe.usable
    assert probe.fidelity_db(scaled(-1, body, outputs="z, i")) == pytest.approx(10 * np.log10(1 / 4), abs=1e-3)
    assert not Probe(scaled(1, body, outputs="i"), feeds()).usable
    assert not Probe(scaled(1), []).usable


def test_another_shape_is_as_bad_as_zeros():
    """A detector that finds another number of boxes has such an output."""

    def above(limit):
        body = "b = Greater(x, k) n = NonZero(b) y = Cast<to = 1>(n)"
        return by_hand.named(body, "float[N, 4] x", "float[2, M] y", {"k": np.float32(limit)})

    assert Probe(above(0), feeds()).fidelity_db(above(1)) == 0


def test_an_output_of_zeros_does_not_outweigh_all_other_samples():
    """A final Relu can give zeros: there is no energy to relate an error to."""
    samples = [{"x": np.zeros((1, 4), np.float32)}, {"x": np.full((1, 4), 10, np.float32)}]

    def shifted(shift):
        return scaled(shift, "y = Add(x, k)")

    found = Probe(shifted(0), samples).fidelity_db(shifted(1))
    assert found == pytest.approx((0 + 20) / 2, abs=1e-3)
    assert Probe(shifted(0), samples[:1]).fidelity_db(shifted(0)) == MAX_FIDELITY_DB


def test_nan_is_no_perfect_answer():
    """NaN and infinity are as bad as zeros where the float model computes numbers."""
    body = "d = Div(x, k) y = Mul(d, k)"
    probe = Probe(scaled(1, body), [{"x": np.float32([[0, 1, 2, 3]])}])
    assert probe.fidelity_db(scaled(0, body)) == 0


def test_masked_scores_are_left_out():
    """Minus infinity, as attention masks write it, is in both."""

    def masked(shift):
        constants = {"b": np.array([True, False, False, False]), "low": np.float32(-np.inf)}
        return scaled(shift, "m = Add(x, k) y = Where(b, low, m)", **constants)

    samples = [{"x": np.full((1, 4), 10, np.float32)}]
    assert Probe(masked(0), samples).fidelity_db(masked(1)) == pytest.approx(20, abs=1e-3)


def test_an_int8_clone_is_measured_by_the_names_of_its_nodes():
    """Written in either spelling, with the Softmax itself in float."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32), "f": np.array([1, -1])}
    model = by_hand.named("c = Conv(x, w) r = Reshape(c, f) y = Softmax(r)", "float[1, 4, 8, 8] x", "y", constants)
    samples = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]
    probe = Probe(model, samples)
    for encoding in ("u8", "s8"):
        _, written = by_hand.quantized(model, samples, encoding)
        assert 20 < probe.fidelity_db(written) < 60
