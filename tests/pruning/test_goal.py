"""Pruning to a goal: goals that are met or out of reach, models that get slower, and models that cannot be cut."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.benchmark.stats import Estimate
from toolchain.core.errors import GateError, ModelError
from toolchain.data.calibration import open_data
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Prune
from toolchain.formats.results import Score
from toolchain.graph import io, query
from toolchain.latency.race import Race
from toolchain.ops.cost import total_macs
from toolchain.optimization.passes import optimize
from toolchain.pruning.goal import prune_model
from toolchain.pruning.latency import counted_clock
from toolchain.pruning.loss import LossLimit, PruningLossError
from toolchain.pruning.speed import Speed, SpeedMeter

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
    """One multiply-accumulate takes a millisecond: no noise, and no waiting."""
    return Race(*(((total_macs(model) / 1e3,) * 7) for model in (before, after)))


def counted_speed(before, after, feed):
    first, second = (float(total_macs(model)) for model in (before, after))
    return Speed(first, Estimate(first / second, 0.99 * first / second, 1.01 * first / second))


COUNTED_METER = SpeedMeter(counted_race, counted_speed)
COUNTED = {"clock": counted_clock(8), "meter": COUNTED_METER}


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
    meter = SpeedMeter(
        lambda before, after, feed: Race((1.0,) * 7, (1.1,) * 7),
        lambda before, after, feed: Speed(1.0, Estimate(0.9, 0.89, 0.91)),
    )
    slower = {**COUNTED, "meter": meter}
    pruned = prune_model(model, data, Prune(speedup=1.2), multiple=8, **slower)
    assert not pruned.record.helped
    assert "slower" in pruned.record.reason
    assert sum(query.elements(v) or 0 for v in pruned.model.graph.initializers.values()) >= pruned.record.parameters[0]


def limit(model, data, max_drop=None, score=None):
    """Without a score, it is the agreement with the dense model."""

    def measure(other):
        return Score(kind="evaluate", value=score(other))

    before = Score(kind="agreement", value=1.0) if score is None else measure(model)
    return LossLimit(Judge(model, data), measure, before, max_drop)


def test_a_goal_that_costs_too_much_is_refused_with_the_most_that_can_be_spared(model, data):
    """The score is the number of multiply-accumulates, so 20 % of them may be lost."""
    whole = total_macs(model.clone())
    allowed = limit(model, data, 0.2, lambda other: total_macs(other.clone()) / whole)
    with pytest.raises(PruningLossError, match=r"a speed-up of 1\.50 times costs too much: it scores 0\.\d+") as error:
        prune_model(model, data, Prune(speedup=1.5), check=data, multiple=1, limit=allowed, **COUNTED)
    curve = error.value.curve
    assert [point.factor for point in curve] == sorted(point.factor for point in curve)
    assert curve[-1].factor >= 1.5
    for point in curve:
        assert bool(point.fault) == (point.factor > 1 / 0.8)
    best = max(point.factor for point in curve if not point.fault)
    assert f"{best:.2f} times is the most that keeps enough; give --speedup {int(100 * best) / 100:g}" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("settings", "option"), [(Prune(latency_ms=1e6), "--latency-ms "), (Prune(keep=0.6), "--keep ")]
)
def test_a_refusal_names_the_option_that_was_used(model, data, settings, option):
    whole = total_macs(model.clone())
    if settings.latency_ms:
        settings = Prune(latency_ms=whole / 1.5)
    allowed = limit(model, data, 0.2, lambda other: total_macs(other.clone()) / whole)
    with pytest.raises(PruningLossError) as error:
        prune_model(model, data, settings, check=data, multiple=1, limit=allowed, **COUNTED)
    value = float(error.value.hint.split(option)[1].split(",")[0])
    assert value >= 0.8 * (1 if settings.keep else whole)


def test_a_loss_within_the_users_limit_is_accepted_and_told(model, data):
    off = limit(model, data, "off")
    pruned = prune_model(model, data, Prune(speedup=3.0), check=data, multiple=8, limit=off, **COUNTED)
    assert pruned.record.lost
    assert pruned.record.verdict.worst.fidelity_db < 10
    assert pruned.score.value == pruned.record.verdict.agreement


@pytest.mark.parametrize(("measured", "said"), [(1.4, "1.40 times (95 %: 1.39 to 1.41) was measured"), (1.49, None)])
def test_a_goal_that_is_missed_is_told(model, data, measured, said):
    meter = SpeedMeter(counted_race, lambda *models: Speed(1.0, Estimate(measured, measured - 0.01, measured + 0.01)))
    pruned = prune_model(model, data, Prune(speedup=1.5), multiple=8, clock=counted_clock(8), meter=meter)
    assert pruned.record.speedup == measured
    assert pruned.record.speedup_interval == (measured - 0.01, measured + 0.01)
    assert [said in note for note in pruned.record.notes] == ([True] if said else [])


def test_a_goal_that_is_clearly_missed_is_an_error(model, data):
    meter = SpeedMeter(counted_race, lambda *models: Speed(1.0, Estimate(1.2, 1.19, 1.21)))
    with pytest.raises(GateError, match=r"1\.50 times was asked for, and 1\.20 times"):
        prune_model(model, data, Prune(speedup=1.5), multiple=8, clock=counted_clock(8), meter=meter)


def test_more_is_cut_where_a_race_promised_too_much(model, data):
    def optimistic(before, after, feed):
        return Race((1.2 * total_macs(before),) * 7, (total_macs(after),) * 7)

    meter = SpeedMeter(optimistic, counted_speed)
    pruned = prune_model(model, data, Prune(speedup=1.5), multiple=8, clock=counted_clock(8), meter=meter)
    assert pruned.record.speedup_interval[1] >= 1.5
    assert not pruned.record.notes


def test_a_goal_out_of_reach_is_an_error(model, data):
    with pytest.raises(
        GateError, match=r"a speed-up of 50\.00 times is out of reach; \d+\.\d\d is the most before outputs degrade"
    ):
        prune_model(model, data, Prune(speedup=50.0), multiple=8, **COUNTED)


def test_a_goal_out_of_reach_comes_with_the_curve_where_there_is_a_limit(model, data):
    allowed = limit(model, data)
    with pytest.raises(PruningLossError, match=r"a speed-up of 50\.00 times is out of reach") as error:
        prune_model(model, data, Prune(speedup=50.0), check=data, multiple=8, limit=allowed, **COUNTED)
    assert 1 < error.value.curve[-1].factor < 50


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
