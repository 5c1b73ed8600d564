"""`refine`: from a plain int8 plan to a more accurate one of the same speed, each step kept only where it helps.

    plain: min-max ranges, weights rounded to nearest
    1. ranges           histogram MSE instead of min-max            quantize/ranges.py
    2. equalization     channels rescaled to like ranges            quantize/equalize.py
    3. migration        the same in front of a transformer's products  quantize/migrate.py
    4. bias correction  mean error of the weights taken out         quantize/plan.py
    5. rounding         weights rounded by second moments           quantize/rounding.py

What a step gains depends on the model: equalization wins 4 dB on MobileNetV2 and loses as much where rarely active
channels look small on the samples at hand. So every step is measured, at the model's outputs, on samples that the
statistics were not taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from toolchain.calibration.moments import second_moments
from toolchain.calibration.observation import Observation
from toolchain.calibration.statistics import observe
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.fidelity import Probe
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.recipe import Calibrate, Quantize, Recipe
from toolchain.graph import query
from toolchain.ops.cells import Kernel
from toolchain.ops.table import rule
from toolchain.quantization.accuracy.cross_layer_equalization import apply_equalization, plan_equalization, scale_groups
from toolchain.quantization.accuracy.gptq import round_by_moments
from toolchain.quantization.accuracy.smooth_quant import apply_smooth_quant, smooth_quant_groups
from toolchain.quantization.plan import Plan, constant_weight, is_depthwise, nearest_weight, plan_quantization
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import Selection
from toolchain.quantization.weights import WeightQuant

Select = Callable[[ir.Model], Selection]

LEAST_GAIN_DB = 0.1
"""A step that gains less is left out: it is noise, and every step makes the model harder to understand."""
LEAST_MIGRATION_DB = 1.0
"""Migration costs a multiplication in front of the products."""
MOMENT_SAMPLES = 64


@dataclass(frozen=True)
class QuantBasis:
    """What a plan is made from. weights: rounded, by node name. grids: of tensors where they are settled, by name."""

    model: ir.Model
    selection: Selection
    observation: Observation
    settings: Quantize
    weights: Mapping[str, WeightQuant]
    grids: Mapping[str, Affine] = field(default_factory=dict)

    @classmethod
    def plain(cls, model: ir.Model, selection: Selection, observation: Observation, settings: Quantize) -> QuantBasis:
        """With every optional step of the recipe left out."""
        ranges = "minmax" if settings.ranges == "auto" else settings.ranges
        settings = settings.model_copy(update={"ranges": ranges, "bias_correction": False})
        return cls(model, selection, observation, settings, _nearest(model, selection, settings))

    def plan(self) -> Plan:
        """The numbers."""
        return plan_quantization(self.model, self.selection, self.observation, self.settings, self.weights, self.grids)


Change = Callable[[ir.Model, QuantBasis], QuantBasis]
"""A basis like another one, for a changed model."""


def observed(
    model: ir.Model, selection: Selection, data: CalibrationData, calibrate: Calibrate, progress: Progress
) -> Observation:
    """Statistics of the selection's tensors, by channel for all that equalization may rescale."""
    axes = {name: group.axis for group in scale_groups(model) for name in group.tensors}
    tensors = {name: axes.get(name) if axis is None else axis for name, axis in selection.tensors.items()}
    return observe(model, data, tensors, bins=calibrate.bins, group_mib=calibrate.group_mib, progress=progress)


def refine(
    basis: QuantBasis, select: Select, data: CalibrationData, probe: Probe, recipe: Recipe, progress: Progress
) -> tuple[QuantBasis, tuple[AccuracyStep, ...]]:
    """Try every step of the recipe; returns the best basis found and what each step gained.

    Args:
        basis: a plain one, see :meth:`QuantBasis.plain`.
        select: which nodes of a changed model are int8.
        data: what statistics are taken from.
        probe: measures; without a float output to measure, every step is taken on trust.
        recipe: which steps may be taken.
        progress: told about every step.
    """
    wanted = recipe.quantize

    def changed_to(model: ir.Model, old: QuantBasis) -> QuantBasis:
        chosen = select(model)
        seen = observed(model, chosen, data, recipe.calibrate, progress)
        return QuantBasis(model, chosen, seen, old.settings, _nearest(model, chosen, old.settings))

    steps: list[tuple[str, bool, Callable[[QuantBasis], QuantBasis | None]]] = [
        ("ranges", wanted.ranges == "auto", lambda b: _set(b, ranges="mse")),
        ("equalization", wanted.equalize, lambda b: _equalized(b, changed_to)),
        ("migration", wanted.equalize, lambda b: _migrated(b, changed_to)),
        ("bias correction", wanted.bias_correction, lambda b: _set(b, bias_correction=True)),
        ("rounding", wanted.rounding, lambda b: _rounded(b, data, progress)),
    ]
    taken: list[AccuracyStep] = []
    best = _measure(basis, probe)
    for number, (name, allowed, step) in enumerate(steps):
        progress("refining", number, len(steps))
        changed = step(basis) if allowed else None
        if changed is None:
            continue
        found = _measure(changed, probe)
        least = LEAST_MIGRATION_DB if name == "migration" else LEAST_GAIN_DB
        used = not probe.usable or found >= best + least
        taken.append(AccuracyStep(name=name, without_db=best, with_db=found, used=used))
        if used:
            basis, best = changed, found
    return basis, tuple(taken)


def _measure(basis: QuantBasis, probe: Probe) -> float:
    if not probe.usable:
        return 0.0
    return probe.fidelity_db(apply_quantization(basis.model, basis.plan(), "u8"))


def _set(basis: QuantBasis, **settings: object) -> QuantBasis:
    return replace(basis, settings=basis.settings.model_copy(update=settings))


def _equalized(basis: QuantBasis, changed_to: Change) -> QuantBasis | None:
    groups = scale_groups(basis.model)
    scales = plan_equalization(basis.model, groups, basis.observation, basis.selection.tensors)
    return changed_to(apply_equalization(basis.model, scales), basis) if scales else None


def _migrated(basis: QuantBasis, changed_to: Change) -> QuantBasis | None:
    groups = smooth_quant_groups(basis.model, basis.selection.int8_nodes())
    scales = plan_equalization(basis.model, groups, basis.observation, basis.selection.tensors)
    return changed_to(apply_smooth_quant(basis.model, scales), basis) if scales else None


def _rounded(basis: QuantBasis, data: CalibrationData, progress: Progress) -> QuantBasis:
    products = _products(basis.model, basis.selection)
    weights: dict[str, WeightQuant] = {}
    for node, moments in second_moments(basis.model, data.take(MOMENT_SAMPLES), products, progress=progress):
        name = query.label(node)
        weight, nearest = constant_weight(node), basis.weights[name]
        exact = basis.settings.exact and not is_depthwise(node, weight.shape)
        weights[name] = round_by_moments(weight, nearest, moments.blocks, moments.positions, exact=exact)
        progress("rounding weights", len(weights), len(products))
    return replace(basis, weights=weights)


def _nearest(model: ir.Model, selection: Selection, settings: Quantize) -> dict[str, WeightQuant]:
    return {query.label(node): nearest_weight(node, settings) for node in _products(model, selection)}


def _products(model: ir.Model, selection: Selection) -> list[ir.Node]:
    chosen = selection.int8_nodes()
    return [node for node in model.graph if query.label(node) in chosen and isinstance(rule(node).int8, Kernel)]
