"""Decibels, and the fidelity of one sample, for errors that are made on purpose."""

import numpy as np
import pytest
import quantize_by_hand as by_hand

from toolchain.evaluation.fidelity import MAX_FIDELITY_DB, db_to_power, decibels, power_to_db, saturating_tail


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
    model = by_hand.named(f"m = Add(x, k) {tail}", "float[N, 4] x", "y", {"k": np.float32(0)})
    assert [node.op_type for node in saturating_tail(model.graph.outputs[0])] == operators


@pytest.mark.parametrize(("factor", "db"), [(1.1, 20), (0.9, 20), (1.01, 40), (2.0, 0), (0.0, 0), (11.0, -20)])
def test_a_known_error_has_known_decibels(factor, db):
    x = np.random.default_rng(0).standard_normal((2, 4))
    assert decibels([x], [factor * x]) == pytest.approx(db, abs=0.01)
    assert decibels([x, x], [factor * x, x]) == pytest.approx(db + 10 * np.log10(2), abs=0.01)


def test_another_shape_and_nan_are_as_bad_as_zeros():
    x = np.ones((2, 4))
    assert decibels([x], [x[:1]]) == 0
    assert decibels([x], [np.full((2, 4), np.nan)]) == 0
