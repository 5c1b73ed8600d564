"""`quantize_model`: make an int8 plan from a float model and data; the plan is audited, raced and made more accurate.

    1. plan and audit            what onnxruntime does not run as int8 stays float     (`planner`)
    2. check dynamic operators   an LSTM that is too inaccurate stays float            (`accuracy.dynamic_check`)
    3. race                      what is slower as int8 stays float                    (`races`)
    4. accuracy steps            each is kept where it makes the outputs more accurate (`accuracy.steps`)
    5. mixed precision           the noisiest operators stay float where that costs neither time nor exactness

After each of the steps 2 to 5 the model is planned and audited again. There is one plan for all targets, so the
integers are the same everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import ClippedTensor, NoiseSource
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.recipe import Recipe
from toolchain.formats.target import Encoding
from toolchain.graph import io, query, shapes
from toolchain.ops.cost import total_macs
from toolchain.ops.table import TABLE
from toolchain.quantization import races
from toolchain.quantization.accuracy.clipping import count_clipped
from toolchain.quantization.accuracy.dynamic_check import inaccurate_dynamic_nodes
from toolchain.quantization.accuracy.sensitivity import measure_noise, noise_clusters
from toolchain.quantization.accuracy.steps import (
    MIXED_PRECISION,
    TRYING,
    QuantBasis,
    improve_accuracy,
    log_step,
)
from toolchain.quantization.exactness.certificate import certify
from toolchain.quantization.plan import Plan
from toolchain.quantization.planner import AuditedPlan, Planner, log_left_float
from toolchain.quantization.qdq.fusion_audit import Audit
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import Reasons
from toolchain.storage.fp16 import halve_weights

MAX_CHECK_SAMPLES = 32
"""Largest number of samples that an accuracy step is judged by."""
SENSITIVITY_SAMPLES = 4
"""Number of samples that noise is measured on."""
CLIPPING_SAMPLES = 16
"""Number of samples whose values outside the ranges are counted."""
RELIEF_BELOW_DB = 30.0
"""Operators become float for accuracy below this fidelity, where the error is a thousandth of the outputs' variance."""
MIN_FLOAT_NOISE_SHARE = 0.1
"""A cluster of operators is tried in float if it makes at least this share of all noise ..."""
MIN_FLOAT_GAIN_DB = 0.5
"""... and stays float if that raises the fidelity by at least this much."""
MAX_FLOAT_CLUSTERS = 4
"""At most this many clusters are tried in float."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """An int8 plan and everything needed to write it or to plan again.

    Attributes:
        planned: the audited plan; the channels of its float model may be rescaled.
        source: the float model as it was given.
        planner: makes other plans for the same data and recipe.
        check: the samples that accuracy steps were judged by.
        steps: the accuracy steps that were tried.
        notes: facts about the whole model that a user should read.
    """

    planned: AuditedPlan
    source: ir.Model
    planner: Planner
    check: CalibrationData
    steps: tuple[AccuracyStep, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def basis(self) -> QuantBasis:
        """Model, statistics, settings and weights that the plan was made from."""
        return self.planned.basis

    @property
    def plan(self) -> Plan:
        """The scales and integers."""
        return self.planned.plan

    @property
    def audit(self) -> Audit:
        """The part of the plan that onnxruntime runs."""
        return self.planned.audit

    @property
    def model(self) -> ir.Model:
        """The float model that the plan is for; its channels may be rescaled."""
        return self.basis.model

    @property
    def observation(self) -> Observation:
        """The statistics that the plan's ranges come from."""
        return self.basis.observation

    @property
    def encoding(self) -> Encoding:
        """Encoding of activations that this machine has fast kernels for."""
        return self.planner.encoding

    @property
    def computing(self) -> list[str]:
        """Names of the nodes that compute in int8, static or dynamic."""
        return [choice.node for choice in self.plan.choices if choice.precision in ("int8", "int8 dynamic")]

    def with_note(self, note: str) -> Quantized:
        """Return a copy with another fact about the whole model."""
        return replace(self, notes=(*self.notes, note))

    def write(self, encoding: Encoding) -> ir.Model:
        """Write the quantized model for targets of this encoding."""
        written = apply_quantization(self.model, self.plan, encoding)
        return halve_weights(written).model if self.planner.recipe.quantize.fp16_weights else written

    def noise_sources(self) -> tuple[NoiseSource, ...]:
        """Measure the effect of rounding each tensor and each weight on the outputs, the largest first."""
        judge = Judge(self.model, self.check.take(SENSITIVITY_SAMPLES))
        if not judge.usable:
            return ()
        samples = f"{judge.samples} of {self.check.fingerprint}"
        shapes = {name: array.shape for name, array in next(iter(self.check)).items()}
        macs = total_macs(self.model, shapes)
        return measure_noise(self.model, self.plan, judge, samples, self.planner.progress, macs=macs)

    def clipped(self) -> tuple[ClippedTensor, ...]:
        """Count the values of the check samples that lie outside the ranges, tensor by tensor."""
        inputs = [spec.name for spec in io.inputs(self.model)]
        feeds = ({name: feed[name] for name in inputs} for feed in self.check.take(CLIPPING_SAMPLES))
        return count_clipped(self.model, self.plan.activations, feeds)

    def leaving_float(self, reasons: Mapping[str, str]) -> Quantized:
        """Plan and audit again with the nodes of `reasons` float too; all other decisions stay."""
        return self.planned_from(self.basis, {**self.planned.reasons, **reasons})

    def planned_from(self, basis: QuantBasis, reasons: Reasons | None = None) -> Quantized:
        """Plan and audit again from another basis.

        Args:
            basis: model, statistics and weights to plan from.
            reasons: nodes that stay float, and why; by default those of this plan.
        """
        known = self.planned.reasons if reasons is None else reasons
        return replace(self, planned=self.planner.audited_plan(basis.model, known, basis))


def quantize_model(
    model: ir.Model,
    data: CalibrationData,
    recipe: Recipe,
    *,
    check: CalibrationData | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Plan static int8 for an optimized float model.

    Args:
        model: as :func:`toolchain.optimization.passes.optimize` leaves it.
        data: samples that statistics are taken from.
        recipe: settings of calibration and quantization.
        check: samples that accuracy steps are judged by; None sets a quarter of `data` aside for that.
        progress: called for every stage.

    Raises:
        ConfigError: the recipe keeps something float that is neither an operator nor a node.
        DataError: a sample cannot be run or makes a tensor NaN.
    """
    _check_names(model, recipe)
    if check is None:
        data, check = data.split()
    if shapes.has_unknown(model):  # parts of the model are run alone, which takes the shapes of their inputs
        model = model.clone()
        shapes.infer_shapes(model, next(iter(data)))
    encoding: Encoding = detect_host().int8.activations
    planner = Planner(data, recipe, encoding, progress)
    quantized = Quantized(planner.audited_plan(model, {}), model, planner, check)
    quantized = _without_inaccurate_dynamic_nodes(quantized)
    if recipe.quantize.measure and quantized.plan.computes_int8:
        quantized = _without_slower_nodes(quantized)
    if quantized.plan.products:
        quantized = _with_accuracy_steps(quantized)
    if recipe.quantize.fp16_weights:
        halved = halve_weights(apply_quantization(quantized.model, quantized.plan, encoding))
        quantized = quantized.with_note(str(halved))
    return quantized


def _check_names(model: ir.Model, recipe: Recipe) -> None:
    """Refuse a misspelt name. A recipe is for many models, so an operator that this model does not have is allowed."""
    known = {*TABLE, *(query.op(node) for node in model.graph), *(query.label(node) for node in model.graph)}
    for name in recipe.quantize.keep_float:
        if name not in known:
            what = f"names {name!r}, which is neither an operator nor a node of the model"
            raise ConfigError(what, where="recipe: quantize.keep_float", hint=did_you_mean(name, known))


def _without_inaccurate_dynamic_nodes(quantized: Quantized) -> Quantized:
    reasons = inaccurate_dynamic_nodes(quantized.model, quantized.plan, quantized.encoding, quantized.planner.data)
    log_left_float(reasons)
    return quantized.leaving_float(reasons) if reasons else quantized


def _without_slower_nodes(quantized: Quantized) -> Quantized:
    """Race fragments and then the whole model, and leave float what is slower as int8."""
    planner, model, encoding = quantized.planner, quantized.model, quantized.encoding
    feed = next(iter(planner.data))
    slower = races.slower_fragments(model, quantized.plan, encoding, feed, planner.progress)
    if slower:
        log_left_float(slower)
        quantized = quantized.leaving_float(slower)
    if not quantized.plan.computes_int8:
        return quantized
    planner.progress("racing the whole model")
    reason = races.slower_whole_model(model, quantized.plan, encoding, feed)
    if reason is None:
        return quantized
    _log.info("left float as a whole: %s", reason)
    return quantized.leaving_float(dict.fromkeys(quantized.computing, reason)).with_note(reason)


def _with_accuracy_steps(quantized: Quantized) -> Quantized:
    """Try the accuracy steps of the recipe, then mixed precision where it costs neither time nor exactness."""
    planner = quantized.planner
    recipe = planner.recipe.quantize
    planner.progress(TRYING)
    judge = Judge(quantized.source, quantized.check.take(MAX_CHECK_SAMPLES))
    select = partial(planner.select, reasons=quantized.planned.reasons)
    basis, steps = improve_accuracy(quantized.basis, select, planner.data, judge, planner.recipe, planner.progress)
    quantized = replace(quantized.planned_from(basis), steps=steps)
    if not (recipe.mixed and recipe.measure and quantized.plan.products and judge.usable) or _is_exact(quantized):
        return quantized
    return _with_noisiest_operators_float(quantized, judge, feed=next(iter(planner.data)))


def _is_exact(quantized: Quantized) -> bool:
    """True where every processor computes the same bits, which would not hold with an operator left float."""
    return not any(verdict.fault for verdict in certify(quantized.model, quantized.plan))


def _with_noisiest_operators_float(quantized: Quantized, judge: Judge, feed: Feed) -> Quantized:
    """Leave the few clusters of operators float that cause most of the error, where the model gets no slower."""
    progress = quantized.planner.progress
    progress(TRYING)
    current = quantized.write(quantized.encoding)
    best_db = before_db = judge.fidelity_db(current)
    if before_db >= RELIEF_BELOW_DB:
        return quantized
    clusters = noise_clusters(quantized.model, quantized.plan, quantized.noise_sources())
    noisiest = [cluster for cluster in clusters if cluster.share >= MIN_FLOAT_NOISE_SHARE]
    if not noisiest:
        return quantized
    used = False
    for cluster in noisiest[:MAX_FLOAT_CLUSTERS]:
        progress(TRYING)
        reason = f"float is more accurate and not slower here: {cluster.error_share(0)}"
        tried = quantized.leaving_float(dict.fromkeys(cluster.nodes, reason))
        written = tried.write(quantized.encoding)
        tried_db = judge.fidelity_db(written)
        if tried_db < best_db + MIN_FLOAT_GAIN_DB:
            continue
        result = races.race_models(current, written, feed, seconds=races.WHOLE_MODEL_RACE_SECONDS, decide=True)
        if not result.second_is_slower():
            log_left_float(dict.fromkeys(cluster.nodes, reason))
            quantized, current, best_db, used = tried, written, tried_db, True
    step = AccuracyStep(name=MIXED_PRECISION, without_db=before_db, with_db=best_db, used=used)
    log_step(step)
    return replace(quantized, steps=(*quantized.steps, step))
