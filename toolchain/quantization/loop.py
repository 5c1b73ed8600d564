"""`quantize_model`: from a float model and data to a plan that was audited and raced on this machine.

    select → observe → plan ─► apply ─► audit: is everything planned as int8 run as int8?
       ▲                                  │
       └── what is not stays float ◄──────┤
       └── fragments slower than float ◄──┘ race, fragment by fragment, then the whole model
                                          │
           what remains is made more accurate, step by step (`refine`), and audited again

What is decided here holds for every target: the plan is one, so the integers are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.evaluation.fidelity import Probe
from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.recipe import Recipe
from toolchain.graph import query, run, tap
from toolchain.latency.race import Race, race
from toolchain.ops.table import TABLE
from toolchain.quantization.accuracy.dynamic_check import inaccurate
from toolchain.quantization.accuracy.sensitivity import clusters, noises
from toolchain.quantization.accuracy.steps import QuantBasis, observed, refine
from toolchain.quantization.exactness.certificate import certify
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.fragments import Fragment, fragments
from toolchain.quantization.qdq.fusion_audit import Audit, audit, optimized_graph
from toolchain.quantization.qdq.writer import Encoding, apply_quantization
from toolchain.quantization.selection import Selection, select
from toolchain.storage.fp16 import halve_weights

CHECK_SAMPLES = 32
"""So many samples at most judge a step."""
SENSITIVITY_SAMPLES = 8
LOUD = 0.1
"""A tensor that makes so much of all noise is worth a try in float ..."""
LEAST_RELIEF_DB = 0.5
"""... and stays float if that helps so much."""
MOST_RELIEVED = 4


@dataclass(frozen=True)
class Quantized:
    """basis: what the plan was made from; its float model's channels may be rescaled. plan: the numbers.
    audit: what onnxruntime runs of them. source: the float model as it was given. loop: makes the plan again with more
    left float. check: the samples that steps were judged by. steps: what was tried for accuracy. notes: what was left
    float as a whole, and why.
    """

    basis: QuantBasis
    plan: Plan
    audit: Audit
    source: ir.Model
    loop: Loop
    check: CalibrationData
    steps: tuple[AccuracyStep, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> ir.Model:
        """The float model the plan is for."""
        return self.basis.model

    @property
    def observation(self) -> Observation:
        """What the plan's numbers come from."""
        return self.basis.observation

    @property
    def encoding(self) -> Encoding:
        """How this machine takes activations."""
        return self.loop.encoding

    def write(self, encoding: Encoding) -> ir.Model:
        """The quantized model for targets of this encoding."""
        written = apply_quantization(self.model, self.plan, encoding)
        return halve_weights(written).model if self.loop.recipe.quantize.fp16_weights else written

    def noises(self) -> tuple[NoiseSource, ...]:
        """What the rounding of each tensor and weight does to the outputs, the worst first."""
        probe = Probe(self.model, list(self.check.take(SENSITIVITY_SAMPLES)))
        return noises(self.model, self.plan, probe, self.check.fingerprint, self.loop.progress) if probe.usable else ()

    def leaving_float(self, reasons: Mapping[str, str]) -> Quantized:
        """Planned and audited again with the nodes of `reasons` float, too; everything else as it was decided."""
        loop = replace(self.loop, reasons={**self.loop.reasons, **reasons})
        attempt = loop.audited(self.model, self.basis)
        return replace(self, basis=attempt.basis, plan=attempt.plan, audit=attempt.audit, loop=loop)


@dataclass(frozen=True)
class _Attempt:
    """One turn of the loop. basis: what the plan was made from."""

    basis: QuantBasis
    plan: Plan
    audit: Audit


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
        recipe: how.
        check: samples that steps are judged by; None holds a quarter of `data` out for that.
        progress: told about every step.

    Raises:
        ConfigError: the recipe keeps something float that is neither an operator nor a node.
        DataError: a sample cannot be run or makes a tensor NaN.
    """
    _check_names(model, recipe)
    if check is None:
        data, check = data.split()
    encoding: Encoding = detect_host().int8.activations
    reasons: dict[str, str] = {}
    loop = Loop(data, recipe, encoding, reasons, progress)
    attempt = loop.audited(model)
    if off := inaccurate(model, attempt.plan, encoding, data):
        reasons.update(off)
        attempt = loop.audited(model, attempt.basis)
    notes: list[str] = []
    if recipe.quantize.measure and attempt.plan.computes_int8:
        feed = next(iter(data))
        slower = _race_fragments(model, attempt.plan, encoding, feed, progress)
        if slower:
            reasons.update(slower)
            attempt = loop.audited(model, attempt.basis)
        if attempt.plan.computes_int8 and (note := _slower_as_a_whole(model, attempt.plan, encoding, feed)):
            notes.append(note)
            reasons.update({c.node: note for c in attempt.plan.choices if c.precision in ("int8", "int8 dynamic")})
            attempt = loop.audited(model, attempt.basis)
    done = Quantized(attempt.basis, attempt.plan, attempt.audit, model, loop, check, notes=tuple(notes))
    if attempt.plan.products:
        done = _improved(done, recipe, feed=next(iter(data)))
    if recipe.quantize.fp16_weights:
        halved = halve_weights(apply_quantization(done.model, done.plan, encoding))
        done = replace(done, notes=(*done.notes, str(halved)))
    return done


def _improved(quantized: Quantized, recipe: Recipe, feed: Feed) -> Quantized:
    """Refined step by step, and relieved of its loudest operators where that is free."""
    loop = quantized.loop
    probe = Probe(quantized.source, list(quantized.check.take(CHECK_SAMPLES)))
    basis, steps = refine(quantized.basis, loop.select, loop.data, probe, recipe, loop.progress)
    attempt = loop.audited(basis.model, basis)
    done = replace(quantized, basis=attempt.basis, plan=attempt.plan, audit=attempt.audit, steps=steps)
    free = recipe.quantize.mixed and recipe.quantize.measure and attempt.plan.products and probe.usable
    return _relieved(done, probe, feed) if free and not _is_exact(done) else done


def _is_exact(quantized: Quantized) -> bool:
    """Whether every processor gives the same bits; a float operator would put an end to that."""
    return not any(verdict.fault for verdict in certify(quantized.model, quantized.plan))


def _relieved(quantized: Quantized, probe: Probe, feed: Feed) -> Quantized:
    """With the few operators float that make most of the error, where the model is not slower for it."""
    current = quantized.write(quantized.encoding)
    best = before = probe.fidelity_db(current)
    used = False
    worst = [
        cluster for cluster in clusters(quantized.model, quantized.plan, quantized.noises()) if cluster.share >= LOUD
    ]
    for cluster in worst[:MOST_RELIEVED]:
        reason = f"rounding {cluster.tensor!r} is {cluster.share:.0%} of the error, and float is no slower here"
        tried = quantized.leaving_float(dict.fromkeys(cluster.nodes, reason))
        written = tried.write(quantized.encoding)
        found = probe.fidelity_db(written)
        if found < best + LEAST_RELIEF_DB:
            continue
        if not _race(current, written, feed, seconds=0.5).second_is_slower():
            quantized, current, best, used = tried, written, found, True
    if not worst:
        return quantized
    return replace(
        quantized, steps=(*quantized.steps, AccuracyStep(name="precision", without_db=before, with_db=best, used=used))
    )


def _check_names(model: ir.Model, recipe: Recipe) -> None:
    """A recipe is for many models, so an operator that is not in this one is fine; a misspelt name is not."""
    known = {*TABLE, *(query.op(node) for node in model.graph), *(query.label(node) for node in model.graph)}
    for name in recipe.quantize.keep_float:
        if name not in known:
            what = f"names {name!r}, which is neither an operator nor a node of the model"
            raise ConfigError(what, where="recipe: quantize.keep_float", hint=did_you_mean(name, known))


@dataclass(frozen=True)
class Loop:
    """Plan, look at what onnxruntime fuses, and leave float what it does not; `reasons` grows."""

    data: CalibrationData
    recipe: Recipe
    encoding: Encoding
    reasons: dict[str, str]
    progress: Progress

    def audited(self, model: ir.Model, basis: QuantBasis | None = None) -> _Attempt:
        """`basis` was used before, perhaps for more nodes than are int8 now."""
        while True:  # ends: every turn leaves at least one node more float
            basis = self._observed(model, basis)
            self.progress("planning")
            plan = basis.plan()
            found = audit(optimized_graph(apply_quantization(model, plan, self.encoding)), plan.int8_nodes())
            stray = {name: "onnxruntime does not fuse it here" for name in found.unfused if name not in self.reasons}
            stray.update(plan.inexact)
            if not stray:
                return _Attempt(basis, plan, found)
            self.reasons.update(stray)

    def select(self, model: ir.Model) -> Selection:
        """Without what has stayed float so far."""
        return select(model, self.recipe.quantize.keep_float, self.reasons)

    def _observed(self, model: ir.Model, basis: QuantBasis | None) -> QuantBasis:
        """What is known where that is enough. The first time even nothing is observed, so that every sample is run."""
        selection = self.select(model)
        if basis is not None and _covers(basis.observation, selection):
            return replace(basis, selection=selection)
        seen = observed(model, selection, self.data, self.recipe.calibrate, self.progress)
        if basis is None:
            return QuantBasis.plain(model, selection, seen, self.recipe.quantize)
        return replace(basis, selection=selection, observation=seen)


def _covers(observation: Observation, selection: Selection) -> bool:
    known = observation.tensors
    return all(
        name in known and (axis is None or known[name].channels is not None) for name, axis in selection.tensors.items()
    )


# ------------------------------------------------------------------------------------------------- races


def _race_fragments(model: ir.Model, plan: Plan, encoding: Encoding, feed: Feed, progress: Progress) -> dict[str, str]:
    """Reasons for the nodes of fragments that are slower as int8."""
    parts = fragments(model, plan, encoding)
    if len(parts) == 1 and len(parts[0].nodes) * 2 > len(plan.choices):
        return {}  # the whole model but for its edges: the race of the whole decides
    inputs = _capture(model, parts, feed)
    reasons: dict[str, str] = {}
    for number, part in enumerate(parts):
        wanted = {str(value.name) for value in part.float_model.graph.inputs}
        feeds = {name: array for name, array in inputs.items() if name in wanted}
        found = _race(part.float_model, part.int8_model, feeds)
        if found.second_is_slower():
            float_s, int8_s = found.medians_s
            reason = f"measured slower as int8: {int8_s * 1e6:.1f} µs against {float_s * 1e6:.1f} µs float"
            if len(part.nodes) > 1:
                reason += f" for its fragment of {len(part.nodes)} nodes"
            reasons.update(dict.fromkeys(part.nodes, reason))
        progress("racing int8 against float", number + 1, len(parts))
    return reasons


def _capture(model: ir.Model, parts: list[Fragment], feed: Feed) -> Feed:
    """The tensors that enter the fragments, for one feed of the model."""
    names = [str(value.name) for part in parts for value in part.float_model.graph.inputs]
    return tap.capture(model, names, [feed], threads=1)[0]


def _slower_as_a_whole(model: ir.Model, plan: Plan, encoding: Encoding, feed: Feed) -> str | None:
    found = _race(model, apply_quantization(model, plan, encoding), feed, seconds=0.5)
    if not found.second_is_slower():
        return None
    float_s, int8_s = found.medians_s
    return f"the whole model is slower as int8 here: {int8_s * 1e3:.2f} ms against {float_s * 1e3:.2f} ms float"


def _race(first: ir.Model, second: ir.Model, feed: Feed, seconds: float = 0.1) -> Race:
    return race(run.session(first, threads=1), run.session(second, threads=1), feed, seconds=seconds)
