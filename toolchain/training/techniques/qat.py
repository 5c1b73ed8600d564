"""Quantization-aware training: from an int8 plan to a pupil that computes with its numbers, and back.

    planned ─► pupil ─────────────► training, where and how one likes ─► graduated
               the plan's numbers                                         plan of the trained integers
               and its roundings                                          and scales, audited again

Training starts where the plan ends: the pupil's weights are the float numbers nearest to the model's own that the
plan's integers are the rounding of, its biases are the plan's, with all that was done for accuracy before. So whatever
scores better than its first look is a better int8 model.

What learns beside weights and biases are the scales that the plan was free to choose. One whose range is stated (a
Sigmoid's) stays, and one that ends at the limit of a Clip, which vanishes because of that, can only shrink. After every
step all are aligned as the planner aligns them (:func:`~toolchain.quantization.plan.align_grids`) and weights are
rounded such that no kernel saturates, so the integers are the same on every processor, trained or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from toolchain.quantization.loop import Quantized, quantize_model
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
from toolchain.quantization.ranges import Affine
from toolchain.quantization.selection import Selection, data_inputs
from toolchain.quantization.weights import round_at
from toolchain.training.techniques.fake_quant import FakeQuant, Grid, QuantizedProduct

INSIDE = 0.49
"""Of a step: a weight that lies so far from an integer is rounded to it."""


@dataclass(frozen=True)
class QatStudent:
    """model: what is trained, with normalizations as they are. technique: what it is trained under; for one lesson.

    quantized: what it was made from, of a float model in which every product has constants of its own, by the names
    they have in `model`.
    """

    model: ir.Model
    technique: FakeQuant
    quantized: Quantized


def planned(
    model: ir.Model, data: CalibrationData, check: CalibrationData, choices: Path, progress: Progress
) -> Quantized:
    """Static int8 by the default recipe, and the same every time.

    What is left float is decided by races against the clock; where int8 is slower as a whole it is carried out all the
    same, for it was asked for, and noted. `choices` is a file (JSON) that keeps who won: where it exists nothing is
    raced.

    Args:
        model: an optimized float model.
        data: samples that statistics are taken from, without labels.
        check: samples that steps are judged by, without labels.
        choices: written if it does not exist.
        progress: told about every step.
    """
    if not choices.exists():
        found = quantize_model(model, data, Recipe(), check=check, progress=progress)
        left = [choice.node for choice in found.plan.choices if not choice.int8] if found.plan.products else []
        write_text(choices, json.dumps({"float": left, "notes": found.notes}))
    known = json.loads(choices.read_text(encoding="utf-8"))
    names = {query.label(node) for node in model.graph}
    kept = tuple(name for name in known["float"] if name in names)
    recipe = Recipe(quantize=Quantize(keep_float=kept, measure=False))
    return replace(quantize_model(model, data, recipe, check=check, progress=progress), notes=tuple(known["notes"]))


def qat_student(quantized: Quantized, *, scales: bool = True) -> QatStudent:
    """What to train, and how, so that the int8 model gets better.

    Before the first step it computes what the int8 model does. Zeros among weights stay zeros: they were pruned.

    Args:
        quantized: a static int8 model. Its `source` has outputs of the same names, and is the best teacher.
        scales: learn as well; otherwise weights and biases alone.
    """
    basis, plan = quantized.basis, quantized.plan
    base = _with_own_constants(quantized)
    values = {str(value.name): value for value in query.activations(base)}
    sources = {name: scale_source(name, basis.selection) for name in basis.selection.tensors}
    grids = {name: _grid(values[name], plan.activations[name], scales) for name in dict.fromkeys(sources.values())}
    aligned = partial(_aligned, base, basis.selection, grids) if basis.settings.exact else dict
    model = base.clone()
    _store_rows(model, plan)
    read_as = _set_int8_readers_apart(model, plan)
    # What passes integers on gives what is on the grid already.
    tensors = {read_as.get(name, name): sources[name] for name in sources if name not in basis.selection.same}
    products = [_product(node, quantized, sources) for node in _kernels(base, plan)]
    technique = FakeQuant(tensors, grids, products, aligned, learn_weight_scales=scales)
    planned = replace(quantized.planned, basis=replace(basis, model=base))
    return QatStudent(model, technique, replace(quantized, planned=planned))


def trained_plan(qat_student: QatStudent, trained: ir.Model) -> Quantized:
    """The int8 model of what was learnt.

    Args:
        qat_student: what was trained; its technique knows the integers and the scales.
        trained: its model with the weights it has now, not rounded.
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
    settings = basis.settings.model_copy(update={"bias_correction": False})  # biases have learnt it
    return quantized.planned_from(replace(basis, model=model, settings=settings, weights=weights, grids=grids))


def _with_own_constants(quantized: Quantized) -> ir.Model:
    """A clone whose int8 products have weights and biases of their own, which are rounded to the plan's integers."""
    clone = quantized.model.clone()
    names = edit.Names(clone.graph)
    for node in _kernels(clone, quantized.plan):
        quant, label = quantized.plan.products[query.label(node)], query.label(node)
        weight = edit.add_constant(clone.graph, names.fresh(f"{label}_weight"), _inside(constant_weight(node), quant))
        edit.set_input(node, 1, weight)
        if quant.bias is not None and quant.bias_scales is not None:
            bias = (quant.bias * quant.bias_scales.astype(np.float64)).astype(np.float32)
            edit.set_input(node, 2, edit.add_constant(clone.graph, names.fresh(f"{label}_bias"), bias))
    edit.remove_unused(clone)
    return clone


def _inside(weight: F32, quant: ProductQuant) -> F32:
    """The weight, or what is nearest to it and rounded to its integers."""
    middle = quant.weight.dequantized()
    half = INSIDE * replace(quant.weight, values=np.ones_like(quant.weight.values)).dequantized()
    return np.clip(weight, middle - half, middle + half)


def _kernels(model: ir.Model, plan: Plan) -> list[ir.Node]:
    return [node for node in model.graph if query.label(node) in plan.products]


def _name(value: ir.Value | None) -> str:
    if value is None:
        raise ValueError("an input is left off")
    return str(value.name)


def _grid(value: ir.Value, grid: Affine, learned: bool) -> Grid:
    most = grid.scale if np.isfinite(ceiling(value)) else float("inf")
    return Grid(grid.scale, grid.zero_point, learned and stated_range(value) is None, most)


def _aligned(
    model: ir.Model, selection: Selection, first: Mapping[str, Grid], scales: Mapping[str, float]
) -> Mapping[str, float] | None:
    """As the planner does it; None where some operator would not be exact."""
    grids = {name: Affine(scale, first[name].zero_point) for name, scale in scales.items()}
    refused = align_grids(model, selection, grids)
    return None if refused else {name: grid.scale for name, grid in grids.items()}


def _product(node: ir.Node, quantized: Quantized, sources: Mapping[str, str]) -> QuantizedProduct:
    quant, cell = quantized.plan.products[query.label(node)], rule(node).int8
    if not isinstance(cell, Kernel):
        raise ValueError(f"{query.label(node)} has no int8 kernel")
    weight = constant_weight(node)
    exact = quantized.basis.settings.exact and not is_depthwise(node, weight.shape)
    rounded = partial(_rounded, kept=weight != 0, axis=quant.weight.axis, exact=exact)
    bias = None if quant.bias is None else _name(node.inputs[2])
    source = sources[_name(node.inputs[cell.act])]
    return QuantizedProduct(_name(node.inputs[1]), bias, source, quant.weight.scales, quant.weight.axis, rounded)


def _rounded(weight: F32, scales: F32, kept: Bool, axis: int, exact: bool) -> I8:
    return round_at(weight * kept, scales, axis, exact=exact)


def _store_rows(model: ir.Model, plan: Plan) -> None:
    """Tables as the file reads them."""
    names = edit.Names(model.graph)
    for node in model.graph:
        if query.label(node) in plan.tables:
            rows = plan.tables[query.label(node)].dequantized()
            edit.set_input(node, 0, edit.add_constant(model.graph, names.fresh("rows"), rows))


def _set_int8_readers_apart(model: ir.Model, plan: Plan) -> dict[str, str]:
    """Give int8 readers of a tensor that is computed in float an Identity to read it through, where it is rounded.

    Its other readers get the float tensor, as in the file. Returns the new tensors by the old ones' names.
    """
    chosen, names = plan.int8_nodes(), edit.Names(model.graph)
    found: dict[str, str] = {}
    in_int8 = int8_values(model, chosen)
    for value in [v for v in query.activations(model) if v.name in plan.activations and v not in in_int8]:
        readers = [
            node for node in query.consumers(value) if query.label(node) in chosen and value in data_inputs(node)
        ]
        copy = ir.node("Identity", [value], name=names.fresh(f"{value.name}_int8"))
        copy.outputs[0].name = found[str(value.name)] = names.fresh(f"{value.name}_rounded")
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), copy)
        else:
            model.graph.insert_after(producer, copy)
        edit.redirect(value, copy.outputs[0], readers)
    return found
