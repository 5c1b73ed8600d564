"""Tie margins: the distance of an int8 operator's results from a rounding tie, where processors differ.

An operator computes a real number from its integers and rounds it once. Kernels of different processors compute that
number in different ways, each within an error ε of the exact one, and break ties differently. So the integers are the
same everywhere as long as no reachable exact result lies within ε of a half-integer. The operands have 8
bits, so all results can be listed, and the smallest distance d is computed, not estimated. d > ε is the proof.

The kernels compute (r are ratios of scales, u = 2⁻²⁴ is the rounding of float32), with ε in steps of the result:
    sum      x86: ((z_c - r_a z_a - r_b z_b) + r_a a) + r_b b in float, ties to even; ARM: r in 22-bit fixed point,
             shifted right by 21 - ⌊log₂ r⌋, ties away from zero (``qladd.cpp``)
             ε = max( 9 u (255 (r_a + r_b) + 255),  255 (2^-shift + u (r_a + r_b)) )
    average  x86: float(Σ) r in float; ARM: the same r in 64-bit fixed point (``qlgavgpool.cpp``); within a window: a
             float sum of the area's A numbers, one after the other (``qlinear_pool.cc``)
             ε = 4 u 256,  and for a window  u (255 r (A + 1) / 2 + 1024)  with r = s_x / s_y
    product  float(a b) r + z_c in float, ties to even of the *sum*; compilers for ARM fuse × and + (``qlmul.cpp``), and
             adding z - 128 instead of z rounds elsewhere.     ε = 2⁻¹⁷ + 2⁻¹⁷
    sigmoid  a table of 256 entries from a rational approximation in float (``logistic.cpp``), within 2·10⁻⁷ of the
             function.                                         ε = 256 · 2·10⁻⁷
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.graph import query
from toolchain.quantization.exactness.lattice_scales import averaged_elements
from toolchain.quantization.ranges import UINT8_MAX, Affine
from toolchain.quantization.selection import Selection, data_inputs, output_point

FLOAT32_ROUNDING = 2.0**-24
"""The largest relative error of one rounding to float32."""
SIGMOID_ERROR = 2e-7
"""Error of onnxruntime's float Sigmoid against the function; at most 1.7e-7 was measured."""
MAX_NUDGES = 64
"""Number of scales that :func:`nudge_clear` tries; each is larger than the last by 1/2048 of the first."""

Grids = Mapping[str, Affine]
"""Grids by the name of a tensor or scale group."""


@dataclass(frozen=True)
class Margin:
    """Distance and error, in steps of the result.

    Attributes:
        distance: smallest distance of a reachable result from a tie.
        error: largest error of any kernel.
    """

    distance: float
    error: float

    @property
    def clear(self) -> bool:
        """True where all kernels round every result in the same way."""
        return self.distance > self.error


UNKNOWN_MARGIN = Margin(0.0, float("inf"))
"""The margin of an average over an unknown number of elements: nothing is proved."""


def sum_margin(a: Affine, b: Affine, out: Affine) -> Margin:
    """Compute the margin of QLinearAdd, over all pairs of operands."""
    ratios = a.scale / out.scale, b.scale / out.scale
    real = np.add.outer(_operands(a) * ratios[0], _operands(b) * ratios[1])
    in_float = 9 * FLOAT32_ROUNDING * (UINT8_MAX * sum(ratios) + UINT8_MAX)
    shift = 21 - np.floor(np.log2(max(ratios)))
    return Margin(_nearest(real, out), float(max(in_float, UINT8_MAX * (2.0**-shift + FLOAT32_ROUNDING * sum(ratios)))))


def average_margin(x: Affine, out: Affine, area: int, *, window: bool) -> Margin:
    """Compute the margin of QLinearGlobalAveragePool, with `window` of QLinearAveragePool, over all sums."""
    ratio = x.scale / out.scale
    sums = np.arange(UINT8_MAX * area + 1, dtype=np.float64) - area * x.zero_point
    error = FLOAT32_ROUNDING * (UINT8_MAX * ratio * (area + 1) / 2 + 1024) if window else 4 * FLOAT32_ROUNDING * 256
    return Margin(_nearest(sums * (ratio / area), out), float(error))


def product_margin(a: Affine, b: Affine, out: Affine) -> Margin:
    """Compute the margin of QLinearMul, over all pairs of operands."""
    ratio = np.float32(np.float32(a.scale) * np.float32(b.scale)) / np.float32(out.scale)  # as the kernels compute it
    return Margin(_nearest(np.multiply.outer(_operands(a), _operands(b)) * float(ratio), out), 2.0**-16)


def sigmoid_margin(x: Affine, out: Affine) -> Margin:
    """Compute the margin of QLinearSigmoid, over its 256 entries."""
    real = 1.0 / (1.0 + np.exp(-_operands(x) * x.scale)) / out.scale
    return Margin(_nearest(real, out), SIGMOID_ERROR / out.scale + 2 * FLOAT32_ROUNDING * UINT8_MAX)


def tie_margin(node: ir.Node, inputs: list[Affine], out: Affine) -> Margin | None:
    """Compute the margin of an int8 node between these grids; None for operators that need no margin."""
    match node.op_type:
        case "Add":
            return sum_margin(inputs[0], inputs[1], out)
        case "Mul":
            return product_margin(inputs[0], inputs[1], out)
        case "Sigmoid":
            return sigmoid_margin(inputs[0], out)
        case "AveragePool" | "GlobalAveragePool":
            area = averaged_elements(node)
            window = node.op_type == "AveragePool"
            return UNKNOWN_MARGIN if area is None else average_margin(inputs[0], out, area, window=window)
    return None


def nodes_near_ties(model: ir.Model, selection: Selection, activations: Grids) -> dict[str, str]:
    """Find the int8 nodes whose results may be rounded differently on different processors.

    Args:
        model: the float model the selection was made for.
        selection: which nodes are int8.
        activations: the grid of every quantized tensor, by name.

    Returns:
        Names of the nodes, with the reason.
    """
    chosen = selection.int8_nodes()
    known: dict[tuple[object, ...], Margin | None] = {}
    reasons = {}
    for node in model.graph:
        if query.label(node) not in chosen:
            continue
        grids = grids_around(node, chosen, activations)
        if grids is None:
            continue
        key = (node.op_type, *grids[0], grids[1], averaged_elements(node))
        if key not in known:
            known[key] = tie_margin(node, *grids)
        if (margin := known[key]) is not None and not margin.clear:
            reasons[query.label(node)] = tie_reason(margin)
    return reasons


def move_clear_of_ties(
    nodes: Iterable[ir.Node],
    group: Mapping[str, str],
    output_of: Mapping[str, str],
    grids: MutableMapping[str, Affine],
    kept: Collection[str] = (),
) -> dict[str, str]:
    """Increase the scales of products and sigmoids until no result is near a tie; `grids` is changed.

    Args:
        nodes: int8 nodes in graph order.
        group: name of a tensor to the tensor whose scale it has.
        output_of: name of a node to the tensor at which its result is quantized.
        grids: the grid of each scale group; a scale grows by 3 % at most, and mostly by less than a thousandth.
        kept: groups whose scale must not change: it is on a lattice, has a stated range, or ends at a Clip's limit.

    Returns:
        The nodes that stay near a tie, with the reason.
    """
    sites: list[_Site] = []
    refused: dict[str, str] = {}
    for node in nodes:
        if node.op_type not in ("Mul", "Sigmoid"):
            continue
        name = query.label(node)
        site = _Site(node, tuple(group[str(value.name)] for value in data_inputs(node)), group[output_of[name]])
        sites.append(site)
        if site.margin(grids).clear:
            continue
        for changed in dict.fromkeys((site.output, *site.inputs)):
            touched = [other for other in sites if changed in (other.output, *other.inputs)]
            grid = None if changed in kept else nudge_clear(partial(_worst, touched, grids, changed), grids[changed])
            if grid is not None:
                grids[changed] = grid
                break
        else:
            refused[name] = tie_reason(site.margin(grids))
            sites.remove(site)
    return refused


@dataclass(frozen=True)
class _Site:
    """A node to move away from ties, and the scale groups of its inputs and output."""

    node: ir.Node
    inputs: tuple[str, ...]
    output: str

    def margin(self, grids: Grids) -> Margin:
        margin = tie_margin(self.node, [grids[name] for name in self.inputs], grids[self.output])
        if margin is None:
            raise ValueError(f"{query.label(self.node)} has no margin")
        return margin


def _worst(sites: Iterable[_Site], grids: Grids, name: str, grid: Affine) -> Margin:
    """Return the margin with the least reserve among the sites, with one grid changed."""
    changed = {**grids, name: grid}
    return min((site.margin(changed) for site in sites), key=lambda margin: margin.distance - margin.error)


def grids_around(node: ir.Node, int8_nodes: set[str], activations: Grids) -> tuple[list[Affine], Affine] | None:
    """Return the grids of an int8 node's inputs and of its result; None where one of them is not quantized."""
    names = [str(value.name) for value in data_inputs(node)]
    point = str(output_point(node, int8_nodes).name)
    if point not in activations or any(name not in activations for name in names):
        return None
    return [activations[name] for name in names], activations[point]


def tie_reason(margin: Margin) -> str:
    """Describe why a node may round differently on different processors."""
    if margin == UNKNOWN_MARGIN:
        return "it averages an unknown number of elements, so there is no proof for its int8 kernel"
    return (
        f"a result is {margin.distance:.1e} steps from a rounding tie, within the kernels' error of {margin.error:.1e}"
    )


def nudge_clear(margin_of: Callable[[Affine], Margin], grid: Affine) -> Affine | None:
    """Increase a grid's scale as little as needed to be clear of ties, by 3 % at most; None where that is not enough.

    Example, for a product's scale: ``nudge_clear(lambda out: product_margin(a, b, out), out)``.
    """
    for step in range(MAX_NUDGES):
        tried = replace(grid, scale=float(np.float32(grid.scale * (1 + step / 2048))))
        if margin_of(tried).clear:
            return tried
    return None


def _operands(grid: Affine) -> F64:
    """List all operands, with the zero point subtracted."""
    return np.arange(UINT8_MAX + 1, dtype=np.float64) - grid.zero_point


def _nearest(real: F64, out: Affine) -> float:
    """Return the smallest distance of a result from a tie; results beyond the ends saturate in any case."""
    inside = real[(real > -out.zero_point) & (real < UINT8_MAX - out.zero_point)]
    return float(np.min(np.abs(inside - np.floor(inside) - 0.5), initial=0.5))
