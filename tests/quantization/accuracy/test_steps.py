"""Accuracy steps: which are tried, which are kept, and what is reported and logged about them."""

import numpy as np
import pytest
import small_models
from small_models import weights

from toolchain.core.progress import silent
from toolchain.data.calibration import open_data
from toolchain.evaluation.judge import Judge
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import io
from toolchain.optimization.passes import optimize
from toolchain.quantization.accuracy import steps as accuracy_steps
from toolchain.quantization.accuracy.steps import (
    BIAS_CORRECTION,
    EQUALIZATION,
    GPTQ,
    MIN_GAIN_DB,
    MIN_SMOOTH_QUANT_GAIN_DB,
    RANGE_SEARCH,
    SMOOTH_QUANT,
    QuantBasis,
    improve_accuracy,
    observe_selection,
)
from toolchain.quantization.selection import select

BODY = "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v, k)"
CONSTANTS = weights(w=(8, 4, 3, 3), b=(8,), v=(4, 8, 1, 1), k=(4,))
SLIM = {"ranges": RANGE_SEARCH, "bias_correction": BIAS_CORRECTION, "rounding": GPTQ}
"""Recipe key to step."""


def setup(body=BODY, constants=None, outputs="y", recipe=None, inputs="float[1, 4, 8, 8] x"):
    """A model, the plain basis for it, data and a judge."""
    model = optimize(small_models.model(body, inputs, outputs, constants or CONSTANTS), verify=False).model
    rng = np.random.default_rng(0)
    [spec] = io.inputs(model)
    feeds = [{"x": rng.standard_normal(spec.dims).astype(np.float32)} for _ in range(12)]
    data, recipe = open_data(feeds[:8], io.inputs(model)), recipe or Recipe()
    selection = select(model)
    seen = observe_selection(model, selection, data, recipe.calibrate, silent)
    basis = QuantBasis.plain(model, selection, seen, recipe.quantize)
    return basis, data, Judge(model, feeds[8:]), recipe


def run(basis, data, judge, recipe):
    return improve_accuracy(basis, select, data, judge, recipe, silent)


@pytest.fixture
def measured(monkeypatch):
    """Replaces the judge's numbers: ``measured([plain, after first step, ...])``; range search has its own judge."""

    def script(numbers):
        left = iter(numbers)
        monkeypatch.setattr(accuracy_steps, "_fidelity_db", lambda basis, judge: next(left))
        monkeypatch.setattr(accuracy_steps, "_unrounded_db", lambda basis, judge: 100.0)
        return left

    return script


def test_the_plain_basis_takes_no_step():
    basis, *_ = setup()
    assert basis.settings.ranges == "minmax"
    assert not basis.settings.bias_correction
    asked = setup(recipe=Recipe(quantize=Quantize(ranges="percentile")))[0]
    assert asked.settings.ranges == "percentile", "what was asked for is plain"


def step(name, without, with_it, *, used):
    return AccuracyStep(name=name, without_db=without, with_db=with_it, used=used)


def slim(**changes):
    return Recipe(quantize=Quantize(equalize=False, ranges="minmax", **changes))


def test_steps_report_both_fidelities_and_only_gains_are_kept(measured):
    basis, data, judge, recipe = setup(recipe=slim())
    measured([30.0, 29.0, 29.0 + MIN_GAIN_DB / 2])
    best, steps = run(basis, data, judge, recipe)
    assert steps == (
        step(BIAS_CORRECTION, 30.0, 29.0, used=False),
        step(GPTQ, 30.0, 29.0 + MIN_GAIN_DB / 2, used=False),
    )
    assert best is basis, "a step that does not help leaves nothing behind"
    measured([30.0, 31.0, 31.0 + MIN_GAIN_DB / 2])
    best, steps = run(basis, data, judge, recipe)
    assert steps == (
        step(BIAS_CORRECTION, 30.0, 31.0, used=True),
        step(GPTQ, 31.0, 31.0 + MIN_GAIN_DB / 2, used=False),
    )
    assert best.settings.bias_correction
    assert best.weights is basis.weights


def test_every_step_is_logged_with_its_decibels_and_the_decision(measured, caplog):
    caplog.set_level("INFO", logger="toolchain")
    measured([30.0, 31.0, 30.5])
    run(*setup(recipe=slim()))
    lines = [record.message for record in caplog.records if record.message.startswith("accuracy step")]
    assert lines == [
        "accuracy step bias correction: 30.00 dB -> 31.00 dB, kept",
        "accuracy step GPTQ rounding: 31.00 dB -> 30.50 dB, left out",
    ]


def test_a_nan_is_no_gain(measured):
    basis, data, judge, recipe = setup(recipe=slim())
    measured([30.0, *[float("nan")] * 2])
    best, steps = run(basis, data, judge, recipe)
    assert [step.used for step in steps] == [False] * 2
    assert best is basis


CLASSES = "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) p = GlobalAveragePool(r) y = Conv(p, v, k)"
"""Ends in numbers for a whole picture, so it gives no signal; BODY's output is as large as its input."""


@pytest.mark.parametrize(
    ("body", "plain", "searched", "used"),
    [
        pytest.param(CLASSES, [1.0, 3.0], [1.0, 2.0], True, id="all gain"),
        pytest.param(CLASSES, [3.0, 1.0], [0.97, 3.0], False, id="all gain too little"),
        pytest.param(CLASSES, [2.0, 2.0], [1.0, 2.1], True, id="one sample loses a decision"),
        pytest.param(BODY, [1.0, 3.0], [1.0, 2.0], False, id="a picture has to gain more"),
        pytest.param(BODY, [1.0, 3.0], [0.5, 1.4], True, id="a picture gains enough"),
        pytest.param(BODY, [3.0, 3.0, 3.0], [0.1, 0.1, 3.1], False, id="the worst picture loses"),
    ],
)
def test_range_search_is_judged_on_all_samples_and_for_pictures_on_the_worst(body, plain, searched, used, monkeypatch):
    basis, data, judge, recipe = setup(body)
    noises = iter([np.array(plain) / 100, np.array(searched) / 100])
    monkeypatch.setattr(Judge, "noise_by_sample", lambda self, model: next(noises))
    best, steps = run(basis, data, judge, recipe)
    assert steps[0].name == RANGE_SEARCH
    assert steps[0].used == used
    assert best.settings.ranges == ("mse" if used else "minmax")
    assert steps[0].without_db == pytest.approx(20 - 10 * np.log10(np.mean(plain)))
    assert steps[0].with_db == pytest.approx(20 - 10 * np.log10(np.mean(searched)))


def test_weights_are_not_rounded_again_where_they_make_no_error(monkeypatch):
    """Activations of eight bits and weights of whole numbers, which are stored without error."""
    constants = {name: np.rint(4 * array) for name, array in CONSTANTS.items()}
    constants["w"][:, 0, 0, 0] = constants["v"][:, 0] = 127
    basis, data, judge, recipe = setup(constants=constants, recipe=slim(exact=False))
    assert accuracy_steps._unrounded_db(basis, judge) == pytest.approx(
        accuracy_steps._fidelity_db(basis, judge), abs=0.1
    )
    monkeypatch.setattr(accuracy_steps, "joint_moments", None)
    _, steps = run(basis, data, judge, recipe)
    assert [step.name for step in steps] == [BIAS_CORRECTION]


def test_without_rounded_weights_more_is_left():
    basis, _, judge, _ = setup()
    assert accuracy_steps._unrounded_db(basis, judge) > accuracy_steps._fidelity_db(basis, judge) + 0.5


def test_only_wanted_steps_are_tried():
    basis, data, judge, recipe = setup()
    best, steps = improve_accuracy(basis, select, data, judge, recipe, silent, [GPTQ])
    assert [step.name for step in steps] == [GPTQ]
    assert best.settings == basis.settings


@pytest.mark.parametrize("unwanted", ["ranges", "bias_correction", "rounding"])
def test_a_step_that_the_recipe_forbids_is_not_tried(unwanted, monkeypatch):
    settings = {"ranges": "minmax"} if unwanted == "ranges" else {unwanted: False}
    basis, data, judge, recipe = setup(recipe=Recipe(quantize=Quantize(equalize=False, **settings)))
    if unwanted == "rounding":
        monkeypatch.setattr(accuracy_steps, "joint_moments", None)
    best, steps = run(basis, data, judge, recipe)
    assert [step.name for step in steps] == [name for key, name in SLIM.items() if key != unwanted]
    assert best.settings.ranges in ("minmax", "mse")
    if unwanted == "bias_correction":
        assert not best.settings.bias_correction


def test_without_equalization_no_channel_is_rescaled(monkeypatch):
    monkeypatch.setattr(accuracy_steps, "plan_equalization", None)
    basis, data, judge, recipe = setup(recipe=Recipe(quantize=Quantize(equalize=False)))
    best, _ = run(basis, data, judge, recipe)
    assert best.model is basis.model


def test_real_steps_never_end_below_the_plain_plan():
    basis, data, judge, recipe = setup()
    best, steps = run(basis, data, judge, recipe)
    searched, *others = steps
    assert searched.name == RANGE_SEARCH
    assert not searched.used, "a gain of less than three decibels on calibration samples; the output is a picture"
    plain, found = (accuracy_steps._fidelity_db(b, judge) for b in (basis, best))
    assert found >= plain
    fidelity = plain
    for step in others:
        assert step.without_db == pytest.approx(fidelity)
        assert step.used == (step.with_db >= step.without_db + MIN_GAIN_DB)
        fidelity = step.with_db if step.used else fidelity
    assert found == pytest.approx(fidelity)
    assert any(step.used for step in steps), "rounding alone wins more than a tenth of a decibel here"


def test_uneven_channels_are_equalized_and_observed_anew():
    sizes = np.geomspace(1, 1 / 100, 8).astype(np.float32)
    constants = {**CONSTANTS, "w": CONSTANTS["w"] * sizes[:, None, None, None], "b": CONSTANTS["b"] * sizes}
    constants["v"] = CONSTANTS["v"] / sizes[:, None, None]
    basis, data, judge, recipe = setup(constants=constants)
    best, steps = run(basis, data, judge, recipe)
    [step] = [step for step in steps if step.name == EQUALIZATION]
    assert step.used
    assert step.with_db > step.without_db + 3
    assert best.model is not basis.model
    assert best.observation is not basis.observation
    feed = next(iter(data))
    before, after = (small_models.plain(m, feed)["y"] for m in (basis.model, best.model))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_without_a_float_output_steps_are_kept_unmeasured():
    basis, data, judge, recipe = setup(f"{BODY.replace('y =', 'q =')} p = Greater(q, q) y = Cast<to = 7>(p)")
    assert not judge.usable
    best, steps = run(basis, data, judge, recipe)
    assert {step.name for step in steps} >= set(SLIM.values())
    assert all(step.used for step in steps)
    assert best.settings.ranges == "mse"
    assert best.settings.bias_correction
    assert best.weights is not basis.weights


@pytest.mark.parametrize(("gain", "used"), [(0.9, False), (1.1, True)])
def test_smooth_quant_has_to_gain_a_decibel(gain, used, measured):
    scale = np.where(np.arange(64) % 32 == 3, 50, 1).astype(np.float32)
    w = weights(w=(64, 32))["w"] / scale[:, None]
    constants = {"g": scale, "h": np.zeros(64, np.float32), "w": w}
    settings = Quantize(ranges="minmax", bias_correction=False, rounding=False)
    basis, data, judge, recipe = setup(
        "n = LayerNormalization(x, g, h) y = MatMul(n, w)",
        constants,
        recipe=Recipe(quantize=settings),
        inputs="float[4, 64] x",
    )
    measured([30.0, 30.0 + gain])
    best, steps = run(basis, data, judge, recipe)
    assert steps == (step(SMOOTH_QUANT, 30.0, 30.0 + gain, used=used),)
    assert (best is not basis) == used
    assert MIN_SMOOTH_QUANT_GAIN_DB == 1.0


def test_only_rescaled_tensors_are_observed_again(monkeypatch):
    """The second convolution and what follows keep their statistics; the float model's own outputs show the changes."""
    sizes = np.geomspace(1, 1 / 100, 8).astype(np.float32)
    constants = {**CONSTANTS, "w": CONSTANTS["w"] * sizes[:, None, None, None], "b": CONSTANTS["b"] * sizes}
    constants["v"] = CONSTANTS["v"] / sizes[:, None, None]
    basis, data, judge, _ = setup(constants=constants)
    asked = []
    observe = accuracy_steps.observe
    monkeypatch.setattr(
        accuracy_steps, "observe", lambda m, d, tensors, **k: asked.append(tensors) or observe(m, d, tensors, **k)
    )
    recipe = Recipe(quantize=Quantize(ranges="minmax", bias_correction=False, rounding=False))
    best, [step] = run(basis, data, judge, recipe)
    assert step.used
    [tensors] = asked
    assert set(tensors) < set(basis.observation.tensors)
    afresh = observe_selection(best.model, best.selection, data, recipe.calibrate, silent)
    assert set(best.observation.tensors) == set(afresh.tensors)
    for name, stats in afresh.tensors.items():
        assert best.observation.tensors[name].maximum == pytest.approx(stats.maximum, rel=1e-5), name
