"""`plan_quantization`: every number of the int8 model, as data that can be printed, compared and stored.

Nothing here touches a graph. A plan is independent of the target: activations are planned as unsigned with
zero point z, and a target of signed activations writes the very same numbers with z - 128.

Bias     b_q = round(b / (s_x s_w)), int32. Where |b| / (s_x s_w) would leave ±2³⁰ the channel's weight scale is
         raised until it does not (onnxruntime#11415: tiny weight scales overflow the bias silently).
Correction   rounding weights shifts a layer's mean output by ΔW·E[x]; with the channel means μ of the layer's
         input, b' = b - Σ_k ΔW_k μ_k takes it out (Nagel et al., 2019, arXiv:1906.04721, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.core.arrays import F32, I32
from toolchain.formats.manifest import NodePrecision
from toolchain.formats.recipe import Quantize
from toolchain.graph import query
from toolchain.ops.cells import Kernel, OwnScale
from toolchain.ops.table import rule
from toolchain.ops.weights import weight_axes
from toolchain.quantization.exactness import lattice_scales, tie_margins
from toolchain.quantization.qdq import dynamic_lstm, embedding_tables
from toolchain.quantization.ranges import Affine, affine, choose_range
from toolchain.quantization.selection import Selection, clip_limits, output_point
from toolchain.quantization.weights import WeightQuant, quantize_weight

BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class ProductQuant:
    """The constants of one Conv, Gemm or MatMul. bias: int32 [channels] and its scales, or None."""

    weight: WeightQuant
    bias: I32 | None
    bias_scales: F32 | None


@dataclass(frozen=True)
class Plan:
    """The whole int8 model as numbers.

    choices: every node's precision. activations: tensor name to its grid. products: node name to constants.
    inexact: int8 nodes that may round differently on different processors, and why; select them float instead.
    tables: node name to the rows it looks up. recurrent: dynamic node's name to its weights, row by row.
    """

    choices: tuple[NodePrecision, ...]
    activations: Mapping[str, Affine]
    products: Mapping[str, ProductQuant]
    inexact: Mapping[str, str]
    tables: Mapping[str, WeightQuant] = field(default_factory=dict)
    recurrent: Mapping[str, tuple[WeightQuant, ...]] = field(default_factory=dict)

    @property
    def overflow_free(self) -> bool:
        """Whether no product can saturate on any processor."""
        weights = [p.weight for p in self.products.values()] + [w for ws in self.recurrent.values() for w in ws]
        return all(weight.overflow_free for weight in weights)

    @property
    def computes_int8(self) -> bool:
        """Whether any product is int8, static or dynamic."""
        return bool(self.products or self.recurrent)

    def int8_nodes(self) -> set[str]:
        """Names of the nodes that compute in int8."""
        return {choice.node for choice in self.choices if choice.int8}


def plan_quantization(
    model: ir.Model,
    selection: Selection,
    observation: Observation,
    recipe: Quantize,
    weights: Mapping[str, WeightQuant] | None = None,
    grids: Mapping[str, Affine] | None = None,
) -> Plan:
    """Choose every scale and round every weight.

    Args:
        model: the optimized float model.
        selection: which nodes are int8.
        observation: statistics of ``selection.tensors``.
        recipe: how ranges and weights are chosen.
        weights: by node name, weights that are rounded already; others are rounded to nearest.
        grids: by tensor name, grids that are chosen already; they are kept as they are, and what does not round the
            same everywhere between them is `inexact`.
    """
    activations, inexact = _activation_grids(model, selection, observation, recipe, grids or {})
    products: dict[str, ProductQuant] = {}
    chosen = selection.int8_nodes()
    for node in model.graph:
        cell = rule(node).int8
        if isinstance(cell, Kernel) and query.label(node) in chosen:
            products[query.label(node)] = _product(
                node, cell, activations, observation, recipe, (weights or {}).get(query.label(node))
            )
    tables = embedding_tables.tables(model, selection.nodes_in("int8 storage"))
    steps = dynamic_lstm.weights(model, selection.nodes_in("int8 dynamic"), exact=recipe.exact)
    return Plan(selection.choices, activations, products, inexact, tables, steps)


def _activation_grids(
    model: ir.Model,
    selection: Selection,
    observation: Observation,
    recipe: Quantize,
    known: Mapping[str, Affine],
) -> tuple[dict[str, Affine], dict[str, str]]:
    """Grids by tensor name, and the nodes whose sums could not be made exact."""
    values = {str(value.name): value for value in query.activations(model)}
    group = {name: scale_source(name, selection) for name in selection.tensors}
    grids = {
        source: known[source] if source in known else _grid(values[source], observation, recipe)
        for source in dict.fromkeys(group.values())
    }
    inexact = align_grids(model, selection, grids) if recipe.exact and not known else {}
    activations = {name: grids[source] for name, source in group.items()}
    if recipe.exact and known:
        inexact = tie_margins.nodes_near_ties(model, selection, activations)
    return activations, inexact


def align_grids(model: ir.Model, selection: Selection, grids: dict[str, Affine]) -> dict[str, str]:
    """Move scales by fractions of a percent until every operator rounds the same on every processor.

    Args:
        model: the float model the selection was made for.
        selection: which nodes are int8.
        grids: by the tensor whose scale others share (:func:`scale_source`); changed.

    Returns the nodes that cannot be made exact, and why.
    """
    values = {str(value.name): value for value in query.activations(model)}
    group = {name: scale_source(name, selection) for name in selection.tensors}
    chosen = selection.int8_nodes()
    nodes = [node for node in model.graph if query.label(node) in chosen]
    output_of = {query.label(node): str(output_point(node, chosen).name) for node in nodes}
    where = lattice_scales.sites(nodes, group, output_of)
    settled = [name for name in grids if stated_range(values[name]) is not None]
    capped = [name for name in grids if np.isfinite(ceiling(values[name]))]
    inexact = lattice_scales.align(where, grids, settled, capped)
    aligned = (name for site in where for name in (*site.inputs, site.output))
    return inexact | tie_margins.clear_of_ties(nodes, group, output_of, grids, {*settled, *capped, *aligned})


def scale_source(name: str, selection: Selection) -> str:
    """The tensor whose scale `name` shares, through any number of operators that pass integers on."""
    while name in selection.same:
        name = selection.same[name]
    return name


def stated_range(value: ir.Value) -> tuple[float, float] | None:
    """The range an operator's result is known to have."""
    producer = value.producer()
    cell = rule(producer).int8 if producer is not None else None
    return cell.output_range if isinstance(cell, OwnScale) else None


def ceiling(value: ir.Value) -> float:
    """Where a Clip ends its result; infinite elsewhere."""
    producer = value.producer()
    if producer is None or producer.op_type != "Clip":
        return float("inf")
    high = clip_limits(producer)[1]
    return float("inf") if high is None else high


def _grid(value: ir.Value, observation: Observation, recipe: Quantize) -> Affine:
    if (known := stated_range(value)) is not None:
        # 256 steps, not 255: the grid's top is one step below the open end of the image, as the kernels expect.
        low, high = known
        return affine(low, low + (high - low) * 255 / 256)
    stats = observation.tensors.get(str(value.name))
    if stats is None:  # never computed on any sample, as an empty branch
        return Affine(1.0, 0)
    low, high = choose_range(stats, recipe.ranges, recipe.percentile)
    return affine(low, high)


def _product(
    node: ir.Node,
    cell: Kernel,
    activations: Mapping[str, Affine],
    observation: Observation,
    recipe: Quantize,
    known: WeightQuant | None,
) -> ProductQuant:
    source, weight = node.inputs[cell.act], constant_weight(node)
    if source is None:
        raise ValueError(f"{query.label(node)} has no input")
    axis = weight_axes(node).out
    bias_value = node.inputs[cell.bias] if cell.bias is not None and len(node.inputs) > cell.bias else None
    bias = query.float_array(bias_value)
    s_x = np.float32(activations[str(source.name)].scale)
    # Corrections are small beside the bias itself; twice the room covers them.
    least = None if bias is None else (2 * np.abs(bias.reshape(-1)) / (s_x * BIAS_LIMIT)).astype(np.float32)
    if known is not None and (least is None or (known.scales >= least).all()):
        quant = known
    else:
        quant = nearest_weight(node, recipe, least)
    if cell.bias is None:
        return ProductQuant(quant, None, None)
    total = np.zeros(weight.shape[axis], np.float64) if bias is None else bias.reshape(-1).astype(np.float64)
    if recipe.bias_correction:
        total -= _mean_shift(node, quant, weight, observation)
    scales = s_x * quant.scales
    rounded = np.clip(np.rint(total / scales), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return ProductQuant(quant, rounded, scales.astype(np.float32))


def nearest_weight(node: ir.Node, recipe: Quantize, min_scales: F32 | None = None) -> WeightQuant:
    """A product's weight rounded to nearest; see :func:`quantize_weight`."""
    weight = constant_weight(node)
    if not is_depthwise(node, weight.shape):
        return quantize_weight(weight, weight_axes(node).out, exact=recipe.exact, min_scales=min_scales)
    return replace(quantize_weight(weight, 0, exact=False, min_scales=min_scales), overflow_free=True)


def constant_weight(node: ir.Node) -> F32:
    """A product's float32 weight; it was selected because it has one."""
    weight = query.float_array(node.inputs[1])
    if weight is None:
        raise ValueError(f"{query.label(node)} has no constant weight")
    return weight


def is_depthwise(node: ir.Node, weight: Sequence[int]) -> bool:
    """Whether a product runs in the kernel that adds in int32: one input and one output channel a group.

    One input channel alone is an ordinary sum. weight: its shape.
    """
    return node.op_type == "Conv" and query.attribute(node, "group", 1) == weight[0] and weight[1] == 1


def _mean_shift(node: ir.Node, quant: WeightQuant, weight: F32, observation: Observation) -> F32 | float:
    """ΔW·E[x], float32 [channels]; 0 where the means were not observed."""
    source = node.inputs[0]
    stats = observation.tensors.get(str(source.name)) if source is not None else None
    if stats is None or stats.channels is None:
        return 0.0
    error = quant.dequantized() - weight
    means = stats.channels.mean.astype(np.float32)
    if node.op_type != "Conv":
        return np.asarray(error @ means if quant.axis == 0 else means @ error, np.float32)
    error = error * _seen(node)
    groups = query.attribute(node, "group", 1)
    by_input = error.reshape(groups, -1, *error.shape[1:]).sum(axis=tuple(range(3, error.ndim + 1)))
    return np.asarray(np.einsum("goi,gi->go", by_input, means.reshape(groups, -1)).reshape(-1), np.float32)


def _seen(conv: ir.Node) -> F32:
    """For every tap of a kernel, at what share of the positions it lies inside the input; 1 where sizes are open."""
    kernel = (query.sizes(conv.inputs[1]) or ())[2:]
    spatial = (query.sizes(conv.inputs[0], dynamic=0) or ())[2:]
    if len(spatial) != len(kernel) or 0 in spatial:
        return np.ones(kernel, np.float32)
    share = np.ones((), np.float64)
    for size, taps, stride, dilation, before, behind in zip(spatial, kernel, *query.window(conv, spatial), strict=True):
        steps = (size + before + behind - dilation * (taps - 1) - 1) // stride + 1
        place = np.arange(steps)[:, None] * stride + np.arange(taps) * dilation - before
        share = np.multiply.outer(share, ((place >= 0) & (place < size)).mean(axis=0))
    return share.astype(np.float32)
