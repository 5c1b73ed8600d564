"""From a float model and data to a smaller one: goals, honesty about speed, and what cannot be cut."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.core.errors import GateError, ModelError
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Prune
from toolchain.graph import io, query
from toolchain.latency.race import Race
from toolchain.optimization.passes import optimize
from toolchain.pruning import goal as pruning
from toolchain.pruning.goal import prune_model

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


def counting(monkeypatch):
    """Time is work: no noise, and no waiting."""
    monkeypatch.setattr(pruning, "measured", lambda *, int8: pruning.counted(8))

    def race(before, after, feed):
        return Race(*(((pruning.total_macs(model),) * 7) for model in (before, after)))

    monkeypatch.setattr(pruning, "_race", race)


def test_a_goal_is_met_and_the_cut_is_proved(model, data, monkeypatch):
    counting(monkeypatch)
    found = prune_model(model, data, Prune(speedup=1.5), multiple=8)
    assert found.record.helped
    assert found.record.speedup >= 1.5
    assert not found.record.proof.mismatches
    assert found.record.proof.identical
    assert found.record.fidelity_db.repaired > found.record.fidelity_db.cut
    assert found.record.macs[1] < found.record.macs[0]
    assert found.record.parameters[1] < found.record.parameters[0]
    assert [cut.kept % 8 for cut in found.record.groups] == [0] * len(found.record.groups)


def test_a_part_of_the_work_stays(model, data):
    found = prune_model(model, data, Prune(keep=0.6), multiple=8)
    assert 0.3 < found.record.macs[1] / found.record.macs[0] <= 0.6


def test_uniform_widths(model, data):
    found = prune_model(model, data, Prune(keep=0.6, uniform=True, criterion="l2"), multiple=8)
    assert found.record.macs[1] / found.record.macs[0] <= 0.6
    assert len({round(cut.kept / cut.size, 1) for cut in found.record.groups}) <= 2


def test_the_surgeon_beats_chance(model, data, monkeypatch):
    counting(monkeypatch)
    best = prune_model(model, data, Prune(keep=0.5, uniform=True), multiple=8)
    chance = [
        prune_model(model, data, Prune(keep=0.5, uniform=True, criterion="random", seed=seed, repair=False), multiple=8)
        for seed in range(3)
    ]
    assert best.record.fidelity_db.repaired > max(found.record.fidelity_db.repaired for found in chance)


def test_what_is_slower_pruned_comes_back_as_it_was(model, data, monkeypatch):
    counting(monkeypatch)
    monkeypatch.setattr(pruning, "_race", lambda before, after, feed: Race((1.0,) * 7, (1.1,) * 7))
    found = prune_model(model, data, Prune(speedup=1.2), multiple=8)
    assert not found.record.helped
    assert "slower" in found.record.reason
    assert sum(query.elements(v) or 0 for v in found.model.graph.initializers.values()) >= found.record.parameters[0]


def test_a_goal_out_of_reach_is_told(model, data, monkeypatch):
    counting(monkeypatch)
    with pytest.raises(GateError, match="cannot be pruned so far"):
        prune_model(model, data, Prune(speedup=50.0), multiple=8)


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
