"""`plan_quantization`: compute every number of the int8 model, as data that can be printed, compared and stored.

Nothing here touches a graph. A plan is independent of the target: activations are planned as unsigned with zero point
z, and a target with signed activations writes the same numbers with z - 128.

Bias        b_q = round(b / (s_x s_w)), int32. Where |b| / (s_x s_w) would exceed 2³⁰, the channel's weight scale is
            raised until it does not (onnxruntime#11415: tiny weight scales overflow the bias silently).
Weights     a weight that several products read is rounded once, with the largest of the scales that their biases need.
Correction  rounding the weights shifts a layer's mean output by ΔW·E[x]. With the channel means μ of the layer's input,
            b' = b - Σ_k ΔW_k μ_k removes the shift (Nagel et al., 2019, arXiv:1906.04721, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from toolchain.quantization.saturation import saturated, useful_limits
from toolchain.quantization.selection import Selection, clip_limits, data_inputs, output_point
from toolchain.quantization.weights import WeightQuant, quantize_weight

RESULT_HEADROOM = 0.05
"""The grid of a last result is wider than what was seen: by this share on each side that no Relu or Clip ends ..."""
RESULT_BALANCE = 0.5
"""... and each such side reaches at least this share of the other: a score that was always low can become high."""
BIAS_LIMIT = 2.0**30
"""Largest magnitude of an integer bias: half of int32's range is left to the sum."""


@dataclass(frozen=True)
class ProductQuant:
    """The quantized constants of one Conv, Gemm or MatMul.

    Attributes:
        weight: int8 integers and scales.
        bias: int32 [channels], None where there is none.
        bias_scales: float32 [channels], None where there is no bias.
    """

    weight: WeightQuant
    bias: I32 | None
    bias_scales: F32 | None


@dataclass(frozen=True)
class Plan:
    """All numbers of the int8 model.

    Attributes:
        choices: the precision of every node.
        activations: grids by tensor name.
        products: constants of products by node name.
        inexact: names of int8 nodes that may round differently on different processors, with the reason; they should
            be float instead.
        tables: by node name, the quantized table that a node looks up rows of.
        recurrent: weights of dynamic nodes by node name.
    """

    choices: tuple[NodePrecision, ...]
    activations: Mapping[str, Affine]
    products: Mapping[str, ProductQuant]
    inexact: Mapping[str, str]
    tables: Mapping[str, WeightQuant] = field(default_factory=dict)
    recurrent: Mapping[str, tuple[WeightQuant, ...]] = field(default_factory=dict)

    @property
    def overflow_free(self) -> bool:
        """True where no product can saturate on any processor."""
        weights = [p.weight for p in self.products.values()] + [w for ws in self.recurrent.values() for w in ws]
        return all(weight.overflow_free for weight in weights)

    @property
    def computes_int8(self) -> bool:
        """True where any product is int8, static or dynamic."""
        return bool(self.products or self.recurrent)

    def int8_nodes(self) -> set[str]:
        """Name the nodes that compute in static int8."""
        return {choice.node for choice in self.choices if choice.int8}


def plan_quantization(
    model: ir.Model,
    selection: Selection,
    observation: Observation,
    settings: Quantize,
    weights: Mapping[str, WeightQuant] | None = None,
    grids: Mapping[str, Affine] | None = None,
) -> Plan:
    """Choose every scale and round every weight.

    Args:
        model: the optimized float model.
        selection: which nodes are int8.
        observation: statistics of ``selection.tensors``.
        settings: settings for ranges, weights and biases.
        weights: by node name, weights that are already rounded; others are rounded to nearest.
        grids: by tensor name, grids that are fixed already. They are not changed, and nodes between them that may round
            differently on different processors are listed as `inexact`.
    """
    activations, inexact = _activation_grids(model, selection, observation, settings, grids or {})
    nodes = int8_products(model, selection)
    rounded = _rounded_weights(nodes, activations, settings, weights or {})
    products = {
        query.label(node): _product(node, rounded[query.label(node)], activations, observation, settings)
        for node in nodes
    }
    tables = embedding_tables.quantize_tables(model, selection.nodes_in("int8 storage"))
    recurrent = dynamic_lstm.quantize_weights(model, selection.nodes_in("int8 dynamic"), exact=settings.exact)
    return Plan(selection.choices, activations, products, inexact, tables, recurrent)


def int8_products(model: ir.Model, selection: Selection) -> list[ir.Node]:
    """List the static int8 nodes with constant weights, in graph order."""
    chosen = selection.int8_nodes()
    return [node for node in model.graph if query.label(node) in chosen and isinstance(rule(node).int8, Kernel)]


def _activation_grids(
    model: ir.Model,
    selection: Selection,
    observation: Observation,
    settings: Quantize,
    fixed: Mapping[str, Affine],
) -> tuple[dict[str, Affine], dict[str, str]]:
    """Choose grids by tensor name; also return the nodes that could not be made exact, with the reason."""
    values = {str(value.name): value for value in query.activations(model)}
    group = {name: scale_source(name, selection) for name in selection.tensors}
    grids = {
        source: fixed[source]
        if source in fixed
        else _grid(values[source], observation, settings, widened=source in selection.results)
        for source in dict.fromkeys(group.values())
    }
    inexact = align_grids(model, selection, grids) if settings.exact and not fixed else {}
    activations = {name: grids[source] for name, source in group.items()}
    if settings.exact and fixed:
        inexact = tie_margins.nodes_near_ties(model, selection, activations)
    return activations, inexact


def align_grids(model: ir.Model, selection: Selection, grids: dict[str, Affine]) -> dict[str, str]:
    """Change scales slightly so that operators round the same on every processor; `grids` is changed.

    Args:
        model: the float model the selection was made for.
        selection: which nodes are int8.
        grids: by the tensor whose scale others share (:func:`scale_source`).

    Returns:
        The nodes that cannot be made exact, with the reason.
    """
    values = {str(value.name): value for value in query.activations(model)}
    group = {name: scale_source(name, selection) for name in selection.tensors}
    chosen = selection.int8_nodes()
    nodes = [node for node in model.graph if query.label(node) in chosen]
    output_of = {query.label(node): str(output_point(node, chosen).name) for node in nodes}
    sites = lattice_scales.lattice_sites(nodes, group, output_of)
    settled = [name for name in grids if stated_range(values[name]) is not None]
    capped = [name for name in grids if np.isfinite(ceiling(values[name]))]
    inexact = lattice_scales.align(sites, grids, settled, capped)
    aligned = (name for site in sites for name in (*site.inputs, site.output))
    return inexact | tie_margins.move_clear_of_ties(nodes, group, output_of, grids, {*settled, *capped, *aligned})


def scale_source(name: str, selection: Selection) -> str:
    """Return the tensor whose scale `name` shares, through any number of operators that pass integers on."""
    while name in selection.same:
        name = selection.same[name]
    return name


def stated_range(value: ir.Value) -> tuple[float, float] | None:
    """Return the range that the operator table states for an operator's result; None where it states none."""
    producer = value.producer()
    cell = rule(producer).int8 if producer is not None else None
    return cell.output_range if isinstance(cell, OwnScale) else None


def ceiling(value: ir.Value) -> float:
    """Return the upper limit of the Clip that computes `value`; infinite for any other operator."""
    return _limits(value)[1]


def _limits(value: ir.Value) -> tuple[float, float]:
    """Return the constant limits of the Relu or Clip that computes `value`; infinite where there are none."""
    producer = value.producer()
    if producer is None or producer.op_type not in ("Relu", "Clip"):
        return -np.inf, np.inf
    low, high = clip_limits(producer)
    return -np.inf if low is None else low, np.inf if high is None else high


def _grid(value: ir.Value, observation: Observation, settings: Quantize, *, widened: bool) -> Affine:
    """Choose the grid of one tensor; with `widened`, values beyond those seen are representable as well."""
    if (known := stated_range(value)) is not None:
        # The kernels expect 256 steps in the range, so the top of the grid is one step below its upper end.
        low, high = known
        return affine(low, low + (high - low) * 255 / 256)
    stats = observation.tensors.get(str(value.name))
    if stats is None:  # not computed on any sample, for example in an empty branch
        return Affine(1.0, 0)
    useful = useful_limits(value)
    if not widened:
        return affine(*choose_range(saturated(stats, useful), settings.ranges, settings.percentile))
    room = RESULT_HEADROOM * (max(stats.maximum, 0.0) - min(stats.minimum, 0.0))
    low, high = min(stats.minimum, 0.0) - room, max(stats.maximum, 0.0) + room
    floor, top = _limits(value)
    low, high = min(low, -RESULT_BALANCE * high), max(high, -RESULT_BALANCE * low)
    return affine(max(low, floor, useful[0]), min(high, top, useful[1]))


def _rounded_weights(
    nodes: Sequence[ir.Node], activations: Mapping[str, Affine], settings: Quantize, known: Mapping[str, WeightQuant]
) -> dict[str, WeightQuant]:
    """Round the weights of products, one result for all that read one weight.

    Args:
        nodes: the products.
        activations: grids by tensor name.
        settings: settings for weights.
        known: by node name, weights that are rounded already. They are used if no bias would overflow with them.
    """
    result: dict[str, WeightQuant] = {}
    for readers in sharing_weights(nodes):
        for given in dict.fromkeys(id(known.get(query.label(node))) for node in readers):
            same = [node for node in readers if id(known.get(query.label(node))) == given]
            floor = np.max([_smallest_scales(node, activations) for node in same], axis=0).astype(np.float32)
            quant = known.get(query.label(same[0]))
            if quant is None or (quant.scales < floor).any():
                quant = nearest_weight(same[0], settings, floor)
            result.update({query.label(node): quant for node in same})
    return result


def sharing_weights(nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """Group products that multiply by the same constant along the same axis, in the order of their first."""
    groups: dict[tuple[ir.Value | None, int, bool], list[ir.Node]] = {}
    for node in nodes:
        depthwise = is_depthwise(node, constant_weight(node).shape)
        groups.setdefault((node.inputs[1], weight_axes(node).out, depthwise), []).append(node)
    return list(groups.values())


def _smallest_scales(node: ir.Node, activations: Mapping[str, Affine]) -> F32:
    """Compute the weight scales below which the integer bias would exceed its limit, float32 [channels]."""
    channels = constant_weight(node).shape[weight_axes(node).out]
    bias = _bias(node)
    if bias is None:
        return np.zeros(channels, np.float32)
    # The correction is small compared with the bias, so a factor of 2 leaves room for it.
    return (2 * np.abs(bias) / (_input_scale(node, activations) * np.float32(BIAS_LIMIT))).astype(np.float32)


def _bias(node: ir.Node) -> F32 | None:
    cell = rule(node).int8
    bias = query.float_array(query.optional_input(node, cell.bias)) if isinstance(cell, Kernel) and cell.bias else None
    return None if bias is None else bias.reshape(-1)


def _input_scale(node: ir.Node, activations: Mapping[str, Affine]) -> np.float32:
    [source] = data_inputs(node)
    return np.float32(activations[str(source.name)].scale)


def _product(
    node: ir.Node,
    quant: WeightQuant,
    activations: Mapping[str, Affine],
    observation: Observation,
    settings: Quantize,
) -> ProductQuant:
    """Round the bias of a product to int32; a product that can have one always gets one, for the correction."""
    cell, bias = rule(node).int8, _bias(node)
    if not isinstance(cell, Kernel) or cell.bias is None:
        return ProductQuant(quant, None, None)
    total = np.zeros(len(quant.scales), np.float64) if bias is None else bias.astype(np.float64)
    if settings.bias_correction:
        total -= _mean_shift(node, quant, constant_weight(node), observation)
    scales = _input_scale(node, activations) * quant.scales
    rounded = np.clip(np.rint(total / scales), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return ProductQuant(quant, rounded, scales.astype(np.float32))


def nearest_weights(nodes: Iterable[ir.Node], settings: Quantize) -> dict[str, WeightQuant]:
    """Round the weights of products to nearest, by node name; products of one weight share one result."""
    result: dict[str, WeightQuant] = {}
    for readers in sharing_weights(nodes):
        result.update(dict.fromkeys(map(query.label, readers), nearest_weight(readers[0], settings)))
    return result


def nearest_weight(node: ir.Node, settings: Quantize, min_scales: F32 | None = None) -> WeightQuant:
    """Round a product's weight to nearest; see :func:`quantize_weight`."""
    weight = constant_weight(node)
    if not is_depthwise(node, weight.shape):
        return quantize_weight(weight, weight_axes(node).out, exact=settings.exact, min_scales=min_scales)
    return replace(quantize_weight(weight, 0, exact=False, min_scales=min_scales), overflow_free=True)


def constant_weight(node: ir.Node) -> F32:
    """Return a product's constant float32 weight.

    Raises:
        ValueError: it has none; selection leaves such a node float.
    """
    weight = query.float_array(node.inputs[1])
    if weight is None:
        raise ValueError(f"{query.label(node)} has no constant weight")
    return weight


def is_depthwise(node: ir.Node, weight: Sequence[int]) -> bool:
    """True where a product runs in the kernel that adds in int32: one input and one output channel per group.

    A convolution with one input channel and one group of several outputs is not depthwise.

    Args:
        node: the product.
        weight: the shape of its weight.
    """
    return node.op_type == "Conv" and query.attribute(node, "group", 1) == weight[0] and weight[1] == 1


def _mean_shift(node: ir.Node, quant: WeightQuant, weight: F32, observation: Observation) -> F32 | float:
    """Compute ΔW·E[x], float32 [channels]; 0 where the means were not observed."""
    source = node.inputs[0]
    stats = observation.tensors.get(str(source.name)) if source is not None else None
    if stats is None or stats.channels is None:
        return 0.0
    error = quant.dequantized() - weight
    means = stats.channels.mean.astype(np.float32)
    if node.op_type != "Conv":
        return np.asarray(error @ means if quant.axis == 0 else means @ error, np.float32)
    error = error * _tap_coverage(node)
    groups = query.attribute(node, "group", 1)
    by_input = error.reshape(groups, -1, *error.shape[1:]).sum(axis=tuple(range(3, error.ndim + 1)))
    return np.asarray(np.einsum("goi,gi->go", by_input, means.reshape(groups, -1)).reshape(-1), np.float32)


def _tap_coverage(conv: ir.Node) -> F32:
    """Compute for each tap of a kernel the share of positions inside the input; 1 where sizes are unknown."""
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
