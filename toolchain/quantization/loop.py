"""`quantize_model`: make an int8 plan from a float model and data; the plan is audited, raced and made more accurate.

    1. plan and audit            what onnxruntime does not run as int8 stays float     (`planner`)
    2. check dynamic operators   an LSTM that is too inaccurate stays float            (`accuracy.dynamic_check`)
    3. race                      what is slower as int8 stays float                    (`races`)
    4. accuracy steps            each is kept where it makes the outputs more accurate (`accuracy.steps`)
    5. mixed precision           a few operators stay float for more accuracy          (`accuracy.relief`)

Mixed precision goes in front of the accuracy steps where little is left of the answer, else in front of the last one.
After each of the steps 2 to 5 the model is planned and audited again. There is one plan for all targets, so the
integers are the same everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.devices.detect import detect_host
from toolchain.evaluation.floor import PART_FLOOR_DB
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Recipe
from toolchain.formats.target import Encoding
from toolchain.graph import query, shapes
from toolchain.ops.table import TABLE
from toolchain.quantization import races
from toolchain.quantization.accuracy.dynamic_check import inaccurate_dynamic_nodes
from toolchain.quantization.accuracy.relief import relieve
from toolchain.quantization.accuracy.steps import (
    BIAS_CORRECTION,
    EQUALIZATION,
    GPTQ,
    RANGE_SEARCH,
    SMOOTH_QUANT,
    TRYING,
    improve_accuracy,
)
from toolchain.quantization.exactness.certificate import certify
from toolchain.quantization.planner import Planner, log_left_float
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.quantized import Quantized
from toolchain.storage.fp16 import halve_weights

MAX_CHECK_SAMPLES = 32
"""Largest number of samples that an accuracy step is judged by."""

_log = logging.getLogger(__name__)


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
    """Try the accuracy steps of the recipe, and mixed precision where it costs neither time nor exactness.

    Where the answer is nearly lost, a few operators make almost all of the error, and hide what the steps gain. They
    become float first. Otherwise they are chosen when equalization has done what it can.
    """
    planner = quantized.planner
    planner.progress(TRYING)
    judge = Judge(quantized.source, quantized.check.take(MAX_CHECK_SAMPLES))
    quantized = _improved(quantized, judge, [RANGE_SEARCH])
    lost = judge.usable and judge.fidelity_db(quantized.write(quantized.encoding)) < PART_FLOOR_DB
    if lost:
        quantized = _relieved(quantized, judge)
    quantized = _improved(quantized, judge, [EQUALIZATION, SMOOTH_QUANT, BIAS_CORRECTION])
    if not lost:
        quantized = _relieved(quantized, judge)
    return _improved(quantized, judge, [GPTQ])


def _improved(quantized: Quantized, judge: Judge, wanted: Sequence[str]) -> Quantized:
    if not quantized.plan.products:
        return quantized
    planner = quantized.planner
    select = partial(planner.select, reasons=quantized.planned.reasons)
    basis, steps = improve_accuracy(
        quantized.basis, select, planner.data, judge, planner.recipe, planner.progress, wanted
    )
    planned = quantized if basis is quantized.basis else quantized.planned_from(basis)
    return replace(planned, steps=(*quantized.steps, *steps))


def _relieved(quantized: Quantized, judge: Judge) -> Quantized:
    recipe = quantized.planner.recipe.quantize
    if not (recipe.mixed and recipe.measure and quantized.plan.products and judge.usable) or _is_exact(quantized):
        return quantized
    return relieve(quantized, judge, feed=next(iter(quantized.planner.data)))


def _is_exact(quantized: Quantized) -> bool:
    """True where every processor computes the same bits, which would not hold with an operator left float."""
    return not any(verdict.fault for verdict in certify(quantized.model, quantized.plan))
