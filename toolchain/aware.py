"""Quantization-aware training: a plan's rounding as a technique of training, and trained weights as a plan again.

`pupil` makes of a quantized model the float graph to train, and the fake quantization it is trained under. It computes
what the int8 model computes from the first step on: grids, scales and integers are the plan's, and weights begin at
the numbers nearest to the float ones that the plan's integers are the rounding of. So what training begins with *is*
the untrained int8 model, and whatever scores better than that is a better int8 model.

`graduated` writes trained weights into the plan by the way all plans are made: the same grids, the same scales of
weights, integers that cannot overflow, biases without correction, since training has seen the mean errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.data import CalibrationData
from toolchain.files import write_text
from toolchain.graph import edit, query
from toolchain.int8 import Quantized, quantize_model
from toolchain.observe import Progress
from toolchain.ops import rule
from toolchain.quantize import Plan
from toolchain.quantize.plan import ProductQuant, constant_weight, is_depthwise
from toolchain.quantize.select import data_inputs
from toolchain.quantize.weights import WeightQuant, round_at
from toolchain.recipe import Quantize, Recipe
from toolchain.rules import Kernel
from toolchain.train.fake_quant import FakeQuant, Rounding

INSIDE = 0.49
"""Of a step: a weight that lies so far from an integer is rounded to it."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pupil:
    """model: what is trained. technique: what it is trained under; for one lesson.

    quantized: what it was made from, of a float model in which every product has constants of its own, by the names
    they have in `model`. roundings: of each product's weight, by node name.
    """

    model: ir.Model
    technique: FakeQuant
    quantized: Quantized
    roundings: Mapping[str, Callable[[Floats], WeightQuant]]


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


def pupil(quantized: Quantized) -> Pupil:
    """The graph to train, which computes what the int8 model does. Zeros among weights stay zeros: they were pruned."""
    base = quantized.model.clone()
    names = edit.Names(base.graph)
    roundings: dict[str, Callable[[Floats], WeightQuant]] = {}
    weights: dict[str, Rounding] = {}
    for node in base.graph:
        if query.label(node) in quantized.plan.products:
            rounding = _rounding(node, quantized)
            _give_constants(node, quantized.plan.products[query.label(node)], names)
            roundings[query.label(node)] = rounding
            weights[str(node.inputs[1].name)] = partial(_dequantized, rounding)  # type: ignore[union-attr]
            weights |= _bias_rounding(node, quantized.plan.products[query.label(node)])
    edit.remove_unused(base)
    student = base.clone()
    points = _int8_readers_apart(student, quantized.plan)
    for node in student.graph:
        if query.label(node) in quantized.plan.tables:
            rows = quantized.plan.tables[query.label(node)].dequantized()
            edit.set_input(node, 0, edit.add_constant(student.graph, edit.Names(student.graph).fresh("rows"), rows))
    same = quantized.basis.selection.same  # whose integers are passed on, and are on the grid already
    grids = {
        points[name]: (grid.scale, grid.zero_point)
        for name, grid in quantized.plan.activations.items()
        if name not in same
    }
    owner = replace(quantized, basis=replace(quantized.basis, model=base))
    return Pupil(student, FakeQuant(grids, weights), owner, roundings)


def graduated(pupil: Pupil, trained: ir.Model) -> Quantized:
    """The int8 model of trained weights.

    Args:
        pupil: what was trained.
        trained: its model with other weights.
    """
    quantized, model = pupil.quantized, pupil.quantized.model.clone()
    for name, value in model.graph.initializers.items():
        value.const_value = trained.graph.initializers[name].const_value
    weights = {
        query.label(node): pupil.roundings[query.label(node)](constant_weight(node))
        for node in model.graph
        if query.label(node) in pupil.roundings
    }
    settings = quantized.basis.settings.model_copy(update={"bias_correction": False})
    basis = replace(quantized.basis, model=model, weights=weights, settings=settings)
    return replace(quantized, basis=basis, plan=basis.plan())


def _rounding(node: ir.Node, quantized: Quantized) -> Callable[[Floats], WeightQuant]:
    """How the weight of a product of the plan's model is rounded, and whatever it will be."""
    known, start = quantized.plan.products[query.label(node)].weight, constant_weight(node)
    exact = quantized.basis.settings.exact and not is_depthwise(node, start.shape)

    def rounded(weight: Floats) -> WeightQuant:
        values = round_at(weight * (start != 0), known.scales, known.axis, exact=exact)
        return replace(known, values=values)

    return rounded


def _dequantized(rounding: Callable[[Floats], WeightQuant], weight: Floats) -> Floats:
    return rounding(weight).dequantized()


def _bias_rounding(node: ir.Node, quant: ProductQuant) -> dict[str, Rounding]:
    """To the steps of int32, by the bias's name; nothing where there is none."""
    if quant.bias_scales is None:
        return {}
    scales = quant.bias_scales

    def rounded(bias: Floats) -> Floats:
        return np.asarray(np.rint(bias / scales) * scales, np.float32)

    return {str(node.inputs[2].name): rounded}  # type: ignore[union-attr]


def _give_constants(node: ir.Node, quant: ProductQuant, names: edit.Names) -> None:
    """A weight of its own, which is rounded to the plan's, and the plan's bias."""
    graph, cell = node.graph, rule(node).int8
    if graph is None or not isinstance(cell, Kernel):
        raise ValueError(f"{query.label(node)} is no product of a graph")
    known = quant.weight
    step = replace(known, values=np.ones_like(known.values)).dequantized()
    middle = known.dequantized()
    weight = np.clip(constant_weight(node), middle - INSIDE * step, middle + INSIDE * step)
    label = query.label(node)
    edit.set_input(node, cell.weight, edit.add_constant(graph, names.fresh(f"{label}_weight"), weight))
    if cell.bias is not None and quant.bias is not None and quant.bias_scales is not None:
        bias = (quant.bias * quant.bias_scales.astype(np.float64)).astype(np.float32)
        edit.set_input(node, cell.bias, edit.add_constant(graph, names.fresh(f"{label}_bias"), bias))


def _int8_readers_apart(model: ir.Model, plan: Plan) -> dict[str, str]:
    """By quantized tensor, the one whose readers are those that read it as int8.

    What an int8 node computes is rounded for all; of another tensor, float operators go on reading the float numbers,
    so that its int8 readers get a copy.
    """
    chosen, names = plan.int8_nodes(), edit.Names(model.graph)
    found: dict[str, str] = {}
    for value in list(query.activations(model)):
        name = str(value.name)
        if name not in plan.activations:
            continue
        found[name] = name
        producer, readers = value.producer(), query.consumers(value)
        reading = [node for node in readers if query.label(node) in chosen and value in data_inputs(node)]
        computed = producer is not None and query.label(producer) in chosen
        if computed or (len(reading) == len(readers) and not value.is_graph_output()):
            continue
        copy = ir.node("Identity", [value], name=names.fresh(f"{name}_int8"))
        output = copy.outputs[0]
        output.name, output.type, output.shape = names.fresh(f"{copy.name}_out"), value.type, value.shape
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), copy)
        else:
            model.graph.insert_after(producer, copy)
        edit.redirect(value, output, reading)
        found[name] = str(output.name)
    return found
