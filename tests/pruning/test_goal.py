"""Pruning to a goal: goals that are met or out of reach, models that get slower, and models that cannot be cut."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.core.errors import GateError, ModelError
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Prune
from toolchain.graph import io, query
from toolchain.latency.race import Race
from toolchain.ops.cost import total_macs
from toolchain.optimization.passes import optimize
from toolchain.pruning.goal import prune_model
from toolchain.pruning.latency import counted_clock

CONSTANTS = weights(
    w1=(32, 3, 3, 3), b1=(32,), w2=(64, 32, 3, 3), b2=(64,), w3=(64, 64, 3, 3), b3=(64,), w4=(10, 64), b4=(10,)
)
BODY = """
    c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2) r2 = Relu(c2)
    c3 = Conv<pads = [1, 1, 1, 1]>(r2, w3, b3) s = Add(c3, c2) r3 = Relu(s)
    g = GlobalAveragePool(r3) f = Flatten(g) y = Gemm<transB = 1>(f, w4, b4)
"""


@pytest.fixture(scope="module")
def model():
    source = small_models.model(BODY, "float[1, 3, 16, 16] x", "float[1, 10] y", CONSTANTS)
    return optimize(source, verify=False).model


@pytest.fixture(scope="module")
def data(model):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]
    return open_data(feeds, io.inputs(model))


def counted_race(before, after, feed):
    """Time is the number of multiply-accumulates: no noise, and no waiting."""
    return Race(*(((total_macs(model),) * 7) for model in (before, after)))


COUNTED = {"clock": counted_clock(8), "race_models": counted_race}


def test_a_goal_is_met_and_the_cut_is_proved(model, data):
    pruned = prune_model(model, data, Prune(speedup=1.5), multiple=8, **COUNTED)
    assert pruned.record.helped
    assert pruned.record.speedup >= 1.5
    assert not pruned.record.proof.mismatches
    assert pruned.record.proof.identical
    assert pruned.record.fidelity_db.repaired > pruned.record.fidelity_db.cut
    assert pruned.record.macs[1] < pruned.record.macs[0]
    assert pruned.record.parameters[1] < pruned.record.parameters[0]
    assert [cut.kept % 8 for cut in pruned.record.groups] == [0] * len(pruned.record.groups)


@pytest.mark.slow
def test_a_share_of_the_macs_is_kept(model, data):
    pruned = prune_model(model, data, Prune(keep=0.6), multiple=8)
    assert 0.3 < pruned.record.macs[1] / pruned.record.macs[0] <= 0.6


def test_uniform_widths(model, data):
    pruned = prune_model(model, data, Prune(keep=0.6, uniform=True, criterion="l2"), multiple=8)
    assert pruned.record.macs[1] / pruned.record.macs[0] <= 0.6
    assert len({round(cut.kept / cut.size, 1) for cut in pruned.record.groups}) <= 2


def test_obs_beats_random_channels(model, data):
    best = prune_model(model, data, Prune(keep=0.5, uniform=True), multiple=8, **COUNTED)
    settings = Prune(keep=0.5, uniform=True, criterion="random", repair=False)
    chance = [
        prune_model(model, data, settings.model_copy(update={"seed": seed}), multiple=8, **COUNTED) for seed in range(3)
    ]
    assert best.record.fidelity_db.repaired > max(pruned.record.fidelity_db.repaired for pruned in chance)


def test_a_model_that_is_slower_when_pruned_is_returned_unchanged(model, data):
    slower = {**COUNTED, "race_models": lambda before, after, feed: Race((1.0,) * 7, (1.1,) * 7)}
    pruned = prune_model(model, data, Prune(speedup=1.2), multiple=8, **slower)
    assert not pruned.record.helped
    assert "slower" in pruned.record.reason
    assert sum(query.elements(v) or 0 for v in pruned.model.graph.initializers.values()) >= pruned.record.parameters[0]


def test_a_goal_out_of_reach_is_an_error(model, data):
    with pytest.raises(
        GateError, match=r"a speed-up of 50\.00 times is out of reach; \d+\.\d\d is the most before outputs degrade"
    ):
        prune_model(model, data, Prune(speedup=50.0), multiple=8, **COUNTED)


def test_a_model_without_free_channels_says_why(data):
    source = small_models.model(
        "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(c)",
        "float[1, 3, 16, 16] x",
        "float[1, 8, 16, 16] y",
        weights(w=(8, 3, 3, 3), b=(8,)),
    )
    with pytest.raises(ModelError, match="it is an output of the model"):
        prune_model(optimize(source, verify=False).model, data, Prune(speedup=1.2))


@pytest.mark.parametrize(
    "goal", [{"speedup": 1.0}, {"keep": 1.0}, {"speedup": 1.2, "keep": 0.5}, {"criterion": "best"}]
)
def test_goals_that_make_no_sense(goal):
    with pytest.raises(ValueError, match=r"speedup|keep|criterion|goal"):
        Prune(**goal)
