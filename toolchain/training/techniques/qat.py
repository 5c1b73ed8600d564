"""Quantization-aware training: from an int8 plan to a student that computes with its numbers, and back.

    static int8 plan ─► student ───────────────► training ─► trained plan
                        the plan's numbers                   with the trained integers and scales,
                        and its rounding                     audited again

Training starts from the plan. The student's weights are the model's own, moved as little as possible so that they round
to the planned integers. Its biases are those of the plan, with every accuracy step applied. So a checkpoint that is
better than the first is a better int8 model.

Beside weights and biases, the scales that the plan could choose are trained. A scale whose range is fixed (that of
a Sigmoid) stays, and one that ends at the limit of a Clip, which is removed for that reason, can only shrink. After
every step all scales are aligned as the planner aligns them (:func:`~toolchain.quantization.plan.align_grids`), and
weights are rounded so that no kernel saturates. So the integers are the same on every processor, trained or not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F32, I8, Bool
from toolchain.core.files import write_text
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.graph import edit, query
from toolchain.ops.cells import Kernel
from toolchain.ops.table import rule
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.plan import (
    Plan,
    ProductQuant,
    align_grids,
    ceiling,
    constant_weight,
    is_depthwise,
    scale_source,
    stated_range,
)
from toolchain.quantization.qdq.writer import int8_values
from toolchain.quantization.quantized import Quantized
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import Selection, data_inputs
from toolchain.quantization.weights import round_at
from toolchain.training.techniques.fake_quant import FakeQuant, Grid, QuantizedProduct

LOGGER = logging.getLogger(__name__)

MAX_OFFSET_STEPS = 0.49
"""Largest distance of a start weight from its integer, in steps; below half a step, it is rounded to that integer."""


@dataclass(frozen=True)
class QatStudent:
    """A student for quantization-aware training.

    Attributes:
        model: the float model to train.
        technique: its fake quantization, for one objective.
        quantized: the int8 model it was made from. Every product of its float model has constants of its own, with the
            names they have in `model`.
    """

    model: ir.Model
    technique: FakeQuant
    quantized: Quantized


def static_plan(
    model: ir.Model,
    data: CalibrationData,
    check: CalibrationData,
    float_nodes: Path,
    progress: Progress,
    *,
    quantize: Callable[..., Quantized] = quantize_model,
) -> Quantized:
    """Make a static int8 model by the default recipe, reproducibly.

    The nodes that stay float are chosen by measured times, which differ from run to run. So the choice is stored in a
    file, and nothing is measured where the file exists. Where int8 is slower as a whole, it is made nevertheless,
    because it was asked for, and a note says so.

    Args:
        model: an optimized float model.
        data: samples for statistics, without labels.
        check: samples that accuracy steps are evaluated on, without labels.
        float_nodes: a JSON file, written if it does not exist.
        progress: called at every step.
        quantize: makes an int8 model; as :func:`toolchain.quantization.loop.quantize_model`.
    """
    if not float_nodes.exists():
        raced = quantize(model, data, Recipe(), check=check, progress=progress)
        left = [choice.node for choice in raced.plan.choices if not choice.int8] if raced.plan.products else []
        write_text(float_nodes, json.dumps({"float": left, "notes": raced.notes}))
    stored = json.loads(float_nodes.read_text(encoding="utf-8"))
    names = {query.label(node) for node in model.graph}
    kept = tuple(name for name in stored["float"] if name in names)
    LOGGER.info("%d nodes stay float", len(kept))
    recipe = Recipe(quantize=Quantize(keep_float=kept, measure=False))
    return replace(quantize(model, data, recipe, check=check, progress=progress), notes=tuple(stored["notes"]))


def qat_student(quantized: Quantized, *, scales: bool = True) -> QatStudent:
    """Make a student whose training improves an int8 model.

    Before the first step it computes the same as the int8 model. Weights that are zero stay zero: they were pruned.

    Args:
        quantized: a static int8 model. Its `source` has outputs of the same names, and is the best teacher.
        scales: train the scales as well, not weights and biases alone.
    """
    basis, plan = quantized.basis, quantized.plan
    base = _with_own_constants(quantized)
    values = {str(value.name): value for value in query.activations(base)}
    sources = {name: scale_source(name, basis.selection) for name in basis.selection.tensors}
    grids = {name: _grid(values[name], plan.activations[name], scales) for name in dict.fromkeys(sources.values())}
    align = partial(_align, base, basis.selection, grids) if basis.settings.exact else dict
    model = base.clone()
    _store_rows(model, plan)
    read_as = _set_int8_readers_apart(model, plan)
    # The output of an operator that only moves integers is on the grid already.
    tensors = {read_as.get(name, name): sources[name] for name in sources if name not in basis.selection.same}
    products = [_product(node, quantized, sources) for node in _kernels(base, plan)]
    technique = FakeQuant(tensors, grids, products, align, learn_weight_scales=scales)
    planned = replace(quantized.planned, basis=replace(basis, model=base))
    return QatStudent(model, technique, replace(quantized, planned=planned))


def trained_plan(qat_student: QatStudent, trained: ir.Model) -> Quantized:
    """Make the int8 model of a trained student.

    Args:
        qat_student: the student; its technique holds the integers and the scales.
        trained: its model with the trained weights, not rounded.
    """
    quantized, basis = qat_student.quantized, qat_student.quantized.basis
    model = quantized.model.clone()
    for name, value in model.graph.initializers.items():
        value.const_value = trained.graph.initializers[name].const_value
    weights = {}
    for node in _kernels(model, quantized.plan):
        integers, scales = qat_student.technique.integers(_name(node.inputs[1]))
        known = quantized.plan.products[query.label(node)].weight
        weights[query.label(node)] = replace(known, values=integers, scales=scales)
    now = qat_student.technique.grids()
    sources = {name: now[scale_source(name, basis.selection)] for name in basis.selection.tensors}
    grids = {name: Affine(grid.scale, grid.zero_point) for name, grid in sources.items()}
    settings = basis.settings.model_copy(update={"bias_correction": False})  # the biases were trained
    return quantized.planned_from(replace(basis, model=model, settings=settings, weights=weights, grids=grids))


def _with_own_constants(quantized: Quantized) -> ir.Model:
    """Clone the float model; every int8 product gets a weight and bias of its own that round to the plan's integers."""
    clone = quantized.model.clone()
    names = edit.Names(clone.graph)
    for node in _kernels(clone, quantized.plan):
        quant, label = quantized.plan.products[query.label(node)], query.label(node)
        weight = _near_integers(constant_weight(node), quant)
        edit.set_constant(clone.graph, names, node, 1, f"{label}_weight", weight)
        if quant.bias is not None and quant.bias_scales is not None:
            bias = (quant.bias * quant.bias_scales.astype(np.float64)).astype(np.float32)
            edit.set_constant(clone.graph, names, node, 2, f"{label}_bias", bias)
    edit.remove_unused(clone)
    return clone


def _near_integers(weight: F32, quant: ProductQuant) -> F32:
    """Move a weight as little as possible so that it rounds to the planned integers."""
    middle = quant.weight.dequantized()
    half = MAX_OFFSET_STEPS * replace(quant.weight, values=np.ones_like(quant.weight.values)).dequantized()
    return np.clip(weight, middle - half, middle + half)


def _kernels(model: ir.Model, plan: Plan) -> list[ir.Node]:
    return [node for node in model.graph if query.label(node) in plan.products]


def _name(value: ir.Value | None) -> str:
    if value is None:
        raise ValueError("an input is left off")
    return str(value.name)


def _grid(value: ir.Value, grid: Affine, learned: bool) -> Grid:
    max_scale = grid.scale if np.isfinite(ceiling(value)) else float("inf")
    return Grid(grid.scale, grid.zero_point, learned and stated_range(value) is None, max_scale)


def _align(
    model: ir.Model, selection: Selection, first: Mapping[str, Grid], scales: Mapping[str, float]
) -> Mapping[str, float] | None:
    """Align scales as the planner does; None where some operator would not be exact."""
    grids = {name: Affine(scale, first[name].zero_point) for name, scale in scales.items()}
    refused = align_grids(model, selection, grids)
    return None if refused else {name: grid.scale for name, grid in grids.items()}


def _product(node: ir.Node, quantized: Quantized, sources: Mapping[str, str]) -> QuantizedProduct:
    quant, cell = quantized.plan.products[query.label(node)], rule(node).int8
    if not isinstance(cell, Kernel):
        raise ValueError(f"{query.label(node)} has no int8 kernel")
    weight = constant_weight(node)
    exact = quantized.basis.settings.exact and not is_depthwise(node, weight.shape)
    round_weight = partial(_round_weight, kept=weight != 0, axis=quant.weight.axis, exact=exact)
    bias = None if quant.bias is None else _name(node.inputs[2])
    source = sources[_name(node.inputs[cell.act])]
    return QuantizedProduct(_name(node.inputs[1]), bias, source, quant.weight.scales, quant.weight.axis, round_weight)


def _round_weight(weight: F32, scales: F32, kept: Bool, axis: int, exact: bool) -> I8:
    return round_at(weight * kept, scales, axis, exact=exact)


def _store_rows(model: ir.Model, plan: Plan) -> None:
    """Replace embedding tables by their quantized rows, as the file reads them."""
    names = edit.Names(model.graph)
    for node in model.graph:
        if query.label(node) in plan.tables:
            rows = plan.tables[query.label(node)].dequantized()
            edit.set_constant(model.graph, names, node, 0, "rows", rows)


def _set_int8_readers_apart(model: ir.Model, plan: Plan) -> dict[str, str]:
    """Insert an Identity for the int8 readers of every tensor that is computed in float; the copy is rounded.

    The other readers get the float tensor, as in the file.

    Returns:
        Names of the new tensors, by those of the old ones.
    """
    chosen, names = plan.int8_nodes(), edit.Names(model.graph)
    copies: dict[str, str] = {}
    in_int8 = int8_values(model, chosen)
    for value in [v for v in query.activations(model) if v.name in plan.activations and v not in in_int8]:
        readers = [
            node for node in query.consumers(value) if query.label(node) in chosen and value in data_inputs(node)
        ]
        copy = ir.node("Identity", [value], name=names.fresh(f"{value.name}_int8"))
        copy.outputs[0].name = copies[str(value.name)] = names.fresh(f"{value.name}_rounded")
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), copy)
        else:
            model.graph.insert_after(producer, copy)
        edit.redirect(value, copy.outputs[0], readers)
    return copies
