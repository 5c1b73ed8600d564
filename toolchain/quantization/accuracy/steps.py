"""Accuracy steps: make a plain int8 plan more accurate at the same speed; a step is kept only where it helps.

    plain: min-max ranges, weights rounded to nearest
    1. range search               ranges of least squared error instead of min-max    `ranges`
    2. cross-layer equalization   channels rescaled to similar ranges                 `cross_layer_equalization`
    3. SmoothQuant                the same in front of a transformer's products       `smooth_quant`
    4. bias correction            mean error of the weights removed from the bias     `plan`
    5. GPTQ rounding              weights rounded by second moments                   `gptq`

The gain of a step depends on the model. Equalization gains 4 dB on MobileNetV2, and loses as much where rarely active
channels happen to be small on the calibration samples. So every step is measured at the model's outputs, on samples
that were not used for the statistics. Range search alone is measured on samples that were: it clips the largest values,
which few samples have, and these are among them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir

from toolchain.calibration.moments import joint_moments
from toolchain.calibration.observation import Observation, TensorStats
from toolchain.calibration.statistics import observe
from toolchain.core.arrays import F64
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.fidelity import power_to_db
from toolchain.evaluation.judge import Judge
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.recipe import Calibrate, Quantize, Recipe
from toolchain.graph import query
from toolchain.ops.cost import total_macs
from toolchain.quantization.accuracy.cross_layer_equalization import apply_equalization, plan_equalization
from toolchain.quantization.accuracy.gptq import round_by_moments
from toolchain.quantization.accuracy.rounding_switches import add_rounding_switches, switch_feed
from toolchain.quantization.accuracy.scale_groups import ScaleGroup, scale_groups
from toolchain.quantization.accuracy.smooth_quant import apply_smooth_quant, smooth_quant_groups
from toolchain.quantization.plan import (
    Plan,
    constant_weight,
    int8_products,
    is_depthwise,
    nearest_weights,
    plan_quantization,
    sharing_weights,
)
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import Selection
from toolchain.quantization.weights import WeightQuant

Select = Callable[[ir.Model], Selection]

# Names of the accuracy steps, as reports and manifests show them.
RANGE_SEARCH = "range search"
EQUALIZATION = "cross-layer equalization"
SMOOTH_QUANT = "SmoothQuant"
BIAS_CORRECTION = "bias correction"
GPTQ = "GPTQ rounding"
MIXED_PRECISION = "mixed precision"

TRYING = "trying accuracy steps"
"""Name of the stage."""
MIN_GAIN_DB = 0.1
"""A step that gains less is left out: such a gain is noise, and every step makes the model harder to understand."""
MIN_SMOOTH_QUANT_GAIN_DB = 1.0
"""SmoothQuant has to gain more, because it costs a multiplication in front of the products."""
MIN_SIGNAL_GAIN_DB = 3.0
"""Range search has to gain more where the answer is a picture or a signal. Values outside the ranges are clipped in one
direction, which following layers do not average out as they do rounding: on brighter photographs than those of the
calibration, ranges that gained 0.2 to 1.2 dB on all samples lost 2 to 10 dB."""
MAX_RANGE_MACS = 4e10
"""Range search is judged on as many calibration samples as take this number of multiply-accumulates, ..."""
MIN_RANGE_SAMPLES, MAX_RANGE_SAMPLES = 16, 64
"""... but at least and at most on these numbers."""
MOMENT_SAMPLES = 64
"""Largest number of samples that the second moments for GPTQ rounding are taken from."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantBasis:
    """Everything a plan is made from.

    Attributes:
        model: the float model.
        selection: int8 or float for every node.
        observation: statistics of the selection's tensors.
        settings: how ranges, weights and biases are quantized.
        weights: rounded weights by node name.
        grids: by tensor name, grids that are already fixed, such as those that training found.
    """

    model: ir.Model
    selection: Selection
    observation: Observation
    settings: Quantize
    weights: Mapping[str, WeightQuant]
    grids: Mapping[str, Affine] = field(default_factory=dict)

    @classmethod
    def plain(cls, model: ir.Model, selection: Selection, observation: Observation, settings: Quantize) -> QuantBasis:
        """Make the basis of a plain plan, without any optional step of the recipe."""
        ranges = "minmax" if settings.ranges == "auto" else settings.ranges
        settings = settings.model_copy(update={"ranges": ranges, "bias_correction": False})
        return cls(model, selection, observation, settings, nearest_weights(int8_products(model, selection), settings))

    def plan(self) -> Plan:
        """Choose the scales, and round the weights that are not rounded yet."""
        return plan_quantization(self.model, self.selection, self.observation, self.settings, self.weights, self.grids)


Rebuild = Callable[[ir.Model, QuantBasis, Collection[str]], QuantBasis]
"""Makes a basis for a changed model, with the settings of the given basis; takes the names of the changed tensors."""


@dataclass(frozen=True)
class _CandidateStep:
    """An accuracy step to try.

    Attributes:
        name: name of the step in reports.
        allowed: the recipe allows the step.
        apply: makes the changed basis, or None where there is nothing to change.
        min_gain_db: fidelity that the step must gain to be kept.
        limit_db: measures the fidelity that the step cannot exceed; None where that is not known.
    """

    name: str
    allowed: bool
    apply: Callable[[QuantBasis], QuantBasis | None]
    min_gain_db: float = MIN_GAIN_DB
    limit_db: Callable[[QuantBasis], float] | None = None


def observe_selection(
    model: ir.Model,
    selection: Selection,
    data: CalibrationData,
    calibrate: Calibrate,
    progress: Progress,
    known: Mapping[str, TensorStats] | None = None,
) -> Observation:
    """Observe the selection's tensors, by channel where equalization may rescale them.

    Args:
        model: the float model.
        selection: says which tensors need statistics.
        data: samples that statistics are taken from.
        calibrate: settings of observing.
        progress: called for every sample.
        known: statistics of the same data, of tensors that need not be observed again.
    """
    axes = {name: group.axis for group in scale_groups(model) for name in group.tensors}
    tensors = {name: axes.get(name) if axis is None else axis for name, axis in selection.tensors.items()}
    kept = {name: s for name, axis in tensors.items() if (s := (known or {}).get(name)) and covers(s, axis)}
    missing = {name: axis for name, axis in tensors.items() if name not in kept}
    seen = observe(model, data, missing, bins=calibrate.bins, group_mib=calibrate.group_mib, progress=progress)
    return replace(seen, tensors={**seen.tensors, **kept})


def covers(stats: TensorStats, axis: int | None) -> bool:
    """True where statistics are by channel, if an axis is asked for."""
    return axis is None or stats.channels is not None


def improve_accuracy(
    basis: QuantBasis,
    select: Select,
    data: CalibrationData,
    judge: Judge,
    recipe: Recipe,
    progress: Progress,
    wanted: Collection[str] = (RANGE_SEARCH, EQUALIZATION, SMOOTH_QUANT, BIAS_CORRECTION, GPTQ),
) -> tuple[QuantBasis, tuple[AccuracyStep, ...]]:
    """Try the steps of the recipe one after the other, and keep those that raise the fidelity.

    Args:
        basis: the basis of a plain plan, see :meth:`QuantBasis.plain`.
        select: chooses which nodes of a changed model are int8.
        data: samples that statistics are taken from.
        judge: measures fidelity. Where it has no float output to measure, every step is kept unmeasured.
        recipe: which steps may be tried.
        progress: called for every step.
        wanted: names of the steps.

    Returns:
        The best basis, and the steps that were tried.
    """
    steps = [step for step in _candidate_steps(select, data, judge, recipe, progress) if step.name in wanted]
    tried: list[AccuracyStep] = []
    progress(TRYING, 0, len(steps))
    if recipe.quantize.ranges == "auto" and RANGE_SEARCH in wanted:
        basis, searched = _with_range_search(basis, data, judge)
        tried.append(searched)
        log_step(searched)
    best_db = _fidelity_db(basis, judge) if steps else 0.0
    for number, step in enumerate(steps):
        progress(TRYING, number, len(steps))
        if step.allowed and step.limit_db is not None and step.limit_db(basis) < best_db + step.min_gain_db:
            _log.info("accuracy step %s: left out, it could not gain enough", step.name)
            continue
        changed = step.apply(basis) if step.allowed else None
        if changed is None:
            _log.debug("accuracy step %s: %s", step.name, "nothing to change" if step.allowed else "not in the recipe")
            continue
        progress(TRYING, number, len(steps))  # the step may have reported stages of its own
        changed_db = _fidelity_db(changed, judge)
        used = not judge.usable or changed_db >= best_db + step.min_gain_db
        tried.append(AccuracyStep(name=step.name, without_db=best_db, with_db=changed_db, used=used))
        log_step(tried[-1])
        if used:
            basis, best_db = changed, changed_db
    return basis, tuple(tried)


def log_step(step: AccuracyStep) -> None:
    """Log an accuracy step: the fidelity without and with it, and the decision."""
    decision = "kept" if step.used else "left out"
    _log.info("accuracy step %s: %.2f dB -> %.2f dB, %s", step.name, step.without_db, step.with_db, decision)


def _candidate_steps(
    select: Select, data: CalibrationData, judge: Judge, recipe: Recipe, progress: Progress
) -> list[_CandidateStep]:
    """List the steps in the order in which they are tried."""
    settings = recipe.quantize

    def rebuild(model: ir.Model, old: QuantBasis, changed: Collection[str]) -> QuantBasis:
        selection = select(model)
        known = {name: stats for name, stats in old.observation.tensors.items() if name not in changed}
        observation = observe_selection(model, selection, data, recipe.calibrate, progress, known)
        return QuantBasis(
            model, selection, observation, old.settings, nearest_weights(int8_products(model, selection), old.settings)
        )

    return [
        _CandidateStep(EQUALIZATION, settings.equalize, partial(_equalized, rebuild=rebuild)),
        _CandidateStep(SMOOTH_QUANT, settings.equalize, partial(_smoothed, rebuild=rebuild), MIN_SMOOTH_QUANT_GAIN_DB),
        _CandidateStep(BIAS_CORRECTION, settings.bias_correction, partial(_with_settings, bias_correction=True)),
        _CandidateStep(
            GPTQ,
            settings.rounding,
            partial(_rounded_by_moments, data=data, progress=progress),
            limit_db=partial(_unrounded_db, judge=judge) if judge.usable else None,
        ),
    ]


def _fidelity_db(basis: QuantBasis, judge: Judge) -> float:
    if not judge.usable:
        return 0.0
    return judge.fidelity_db(_written(basis))


def _with_range_search(basis: QuantBasis, data: CalibrationData, judge: Judge) -> tuple[QuantBasis, AccuracyStep]:
    """Search ranges, and keep them where all samples together gain; a signal must gain much, its worst sample too."""
    searched = _with_settings(basis, ranges="mse")
    if not judge.usable:
        return searched, AccuracyStep(name=RANGE_SEARCH, without_db=0.0, with_db=0.0, used=True)
    affordable = MAX_RANGE_MACS // max(1, total_macs(basis.model, data.shapes))
    samples = int(min(max(affordable, MIN_RANGE_SAMPLES), MAX_RANGE_SAMPLES))
    everywhere = Judge(basis.model, data.take(samples))
    noises = [everywhere.noise_by_sample(_written(each)) for each in (basis, searched)]
    before_db, after_db = (power_to_db(float(noise.mean())) for noise in noises)
    if judge.gives_signal:
        used = after_db >= before_db + MIN_SIGNAL_GAIN_DB and bool(noises[1].max() <= noises[0].max())
    else:
        used = after_db >= before_db + MIN_GAIN_DB
    step = AccuracyStep(name=RANGE_SEARCH, without_db=before_db, with_db=after_db, used=used)
    return searched if used else basis, step


def _written(basis: QuantBasis) -> ir.Model:
    return apply_quantization(basis.model, basis.plan(), "u8")


def _unrounded_db(basis: QuantBasis, judge: Judge) -> float:
    """Measure the fidelity with all activations rounded and no weight: no better rounding of weights gets beyond it."""
    grids = basis.plan().activations
    switched = add_rounding_switches(basis.model, tuple(grids))
    return judge.fidelity_function(switched)(switch_feed(tuple(grids), grids))


def _with_settings(basis: QuantBasis, **settings: object) -> QuantBasis:
    return replace(basis, settings=basis.settings.model_copy(update=settings))


def _equalized(basis: QuantBasis, rebuild: Rebuild) -> QuantBasis | None:
    return _rescaled(basis, scale_groups(basis.model), apply_equalization, rebuild)


def _smoothed(basis: QuantBasis, rebuild: Rebuild) -> QuantBasis | None:
    groups = smooth_quant_groups(basis.model, basis.selection.int8_nodes())
    return _rescaled(basis, groups, apply_smooth_quant, rebuild)


def _rescaled(
    basis: QuantBasis,
    groups: Sequence[ScaleGroup],
    apply: Callable[[ir.Model, Mapping[ScaleGroup, F64]], ir.Model],
    rebuild: Rebuild,
) -> QuantBasis | None:
    """Rescale the groups that gain by it, and observe their tensors again; None where no group gains."""
    scales = plan_equalization(basis.model, groups, basis.observation, basis.selection.tensors)
    if not scales:
        return None
    return rebuild(apply(basis.model, scales), basis, [name for group in scales for name in group.tensors])


def _rounded_by_moments(basis: QuantBasis, data: CalibrationData, progress: Progress) -> QuantBasis:
    products = int8_products(basis.model, basis.selection)
    weights: dict[str, WeightQuant] = {}
    moments_of = joint_moments(basis.model, data.take(MOMENT_SAMPLES), sharing_weights(products), progress=progress)
    for readers, moments in moments_of:
        progress("rounding weights", len(weights), len(products))
        weight, nearest = constant_weight(readers[0]), basis.weights[query.label(readers[0])]
        exact = basis.settings.exact and not is_depthwise(readers[0], weight.shape)
        rounded = round_by_moments(weight, nearest, moments.blocks, moments.positions, exact=exact)
        weights.update(dict.fromkeys(map(query.label, readers), rounded))
    return replace(basis, weights=weights)
