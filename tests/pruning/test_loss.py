"""Limits of what a pruned model may lose: the floor of pruning, the user's metric, and the user's own limit."""

import numpy as np
import pytest
import small_models

from toolchain.evaluation.judge import Judge
from toolchain.formats.results import Score
from toolchain.formats.verdict import PartFidelity, Verdict
from toolchain.pruning.loss import MIN_AGREEMENT, MIN_FIDELITY_DB, LossLimit, floor_fault


def linear(matrix):
    return small_models.model("y = MatMul(x, w)", "float[1, 4] x", "float[1, 4] y", {"w": matrix.astype(np.float32)})


@pytest.fixture(scope="module")
def judge():
    rng = np.random.default_rng(0)
    return Judge(linear(np.eye(4)), [{"x": rng.standard_normal((1, 4)).astype(np.float32)} for _ in range(40)])


class GivenAgreement:
    """A judge whose verdict has another agreement."""

    def __init__(self, judge, value):
        self.verdict = lambda model: judge.verdict(model).model_copy(update={"agreement": value})


def limit(judge, before, after, max_drop):
    judge = GivenAgreement(judge, after.value) if after.kind == "agreement" else judge
    return LossLimit(judge, lambda model: after, before, max_drop)


def agreement(value):
    return Score(kind="agreement", value=value, samples=40)


def metric(value):
    return Score(kind="evaluate", value=value)


@pytest.mark.parametrize(
    ("score", "fidelity_db", "said"),
    [
        (1.0, MIN_FIDELITY_DB, None),
        (MIN_AGREEMENT, 30.0, None),
        (MIN_AGREEMENT - 0.01, 30.0, "agreement is"),
        (1.0, MIN_FIDELITY_DB - 0.1, "scores has"),
    ],
)
def test_the_floor(score, fidelity_db, said):
    part = PartFidelity(name="scores", tensor="scores", fidelity_db=fidelity_db)
    fault = floor_fault(agreement(score), Verdict(samples=40, parts=(part,)))
    assert fault is None if said is None else fault.startswith(said)


@pytest.mark.parametrize(
    ("before", "after", "max_drop", "accepted"),
    [
        (agreement(1.0), agreement(1.0), None, True),
        (agreement(1.0), agreement(0.5), None, False),
        (agreement(1.0), agreement(0.5), 0.6, True),
        (agreement(1.0), agreement(0.5), 0.4, False),
        (agreement(1.0), agreement(0.5), "off", True),
        (metric(0.8), metric(0.77), None, True),
        (metric(0.8), metric(0.75), None, False),
        (metric(0.8), metric(0.75), 0.06, True),
        (metric(-2.0), metric(-2.05), None, True),
        (metric(-2.0), metric(-2.2), None, False),
    ],
)
def test_the_score_decides(judge, before, after, max_drop, accepted):
    loss = limit(judge, before, after, max_drop).loss(linear(np.eye(4)))
    assert (loss.fault is None) == accepted


def test_a_dead_part_is_refused_by_default_and_told_otherwise(judge):
    dead = linear(np.diag([1.0, 1.0, 1.0, 0.0]))
    refused = limit(judge, agreement(1.0), agreement(1.0), None).loss(dead)
    assert "index 3: nothing is left" in refused.fault
    for before, max_drop in ((metric(0.8), None), (agreement(1.0), "off")):
        accepted = limit(judge, before, before, max_drop).loss(dead)
        assert accepted.fault is None
        assert "index 3: nothing is left" in accepted.told[0]


def test_what_falls_under_the_floor_is_told_where_it_is_accepted(judge):
    loss = limit(judge, agreement(1.0), agreement(0.5), "off").loss(linear(np.eye(4)))
    assert loss.fault is None
    assert loss.told == (f"agreement is 0.500, and at least {MIN_AGREEMENT:g} is wanted",)
