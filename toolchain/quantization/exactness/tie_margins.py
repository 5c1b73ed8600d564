"""How near an int8 operator's results come to a tie, where processors part.

Between its integers an operator computes a real number and rounds it once. Kernels of different processors compute that
number in different ways, each within an error ε of the exact one, and break ties differently. So the integers are
the same everywhere as long as no reachable exact result lies within ε of a half-integer. The operands are 8-bit: all
results can be listed, and the smallest distance d is a fact, not a guess. d > ε is the proof.

What the kernels compute (r are ratios of scales, u = 2⁻²⁴ the rounding of float32), and ε in steps of the result:
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
from toolchain.quantization.ranges import LEVELS, Affine
from toolchain.quantization.selection import Selection, data_inputs, output_point

UNIT = 2.0**-24
SIGMOID_ERROR = 2e-7
"""Of onnxruntime's float Sigmoid against the function; measured 1.7e-7 at most."""
NUDGES = 64
"""How many scales :func:`clear` tries, each a 1/2048 larger."""

Grids = Mapping[str, Affine]


@dataclass(frozen=True)
class Margin:
    """In steps of the result. distance: of the nearest reachable result to a tie; error: the kernels' largest."""

    distance: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether all kernels round every result alike."""
        return self.distance > self.error


def sum_margin(a: Affine, b: Affine, out: Affine) -> Margin:
    """Of QLinearAdd, over all pairs of operands."""
    ratios = a.scale / out.scale, b.scale / out.scale
    real = np.add.outer(_steps(a) * ratios[0], _steps(b) * ratios[1])
    in_float = 9 * UNIT * (LEVELS * sum(ratios) + LEVELS)
    shift = 21 - np.floor(np.log2(max(ratios)))
    return Margin(_nearest(real, out), float(max(in_float, LEVELS * (2.0**-shift + UNIT * sum(ratios)))))


def average_margin(x: Affine, out: Affine, area: int, *, window: bool) -> Margin:
    """Of QLinearGlobalAveragePool or, with `window`, QLinearAveragePool, over all sums of `area` elements."""
    ratio = x.scale / out.scale
    sums = np.arange(LEVELS * area + 1, dtype=np.float64) - area * x.zero_point
    error = UNIT * (LEVELS * ratio * (area + 1) / 2 + 1024) if window else 4 * UNIT * 256
    return Margin(_nearest(sums * (ratio / area), out), float(error))


def product_margin(a: Affine, b: Affine, out: Affine) -> Margin:
    """Of QLinearMul, over all pairs of operands."""
    ratio = np.float32(np.float32(a.scale) * np.float32(b.scale)) / np.float32(out.scale)  # as the kernels compute it
    return Margin(_nearest(np.multiply.outer(_steps(a), _steps(b)) * float(ratio), out), 2.0**-16)


def sigmoid_margin(x: Affine, out: Affine) -> Margin:
    """Of QLinearSigmoid, over its 256 entries."""
    real = 1.0 / (1.0 + np.exp(-_steps(x) * x.scale)) / out.scale
    return Margin(_nearest(real, out), SIGMOID_ERROR / out.scale + 2 * UNIT * LEVELS)


def margin(node: ir.Node, inputs: list[Affine], out: Affine) -> Margin | None:
    """Of an int8 node between these grids; None where its kernel cannot differ, or is none of these."""
    match node.op_type:
        case "Add":
            return sum_margin(inputs[0], inputs[1], out)
        case "Mul":
            return product_margin(inputs[0], inputs[1], out)
        case "Sigmoid":
            return sigmoid_margin(inputs[0], out)
        case "AveragePool" | "GlobalAveragePool":
            area = averaged(node)
            window = node.op_type == "AveragePool"
            return Margin(0.0, 1.0) if area is None else average_margin(inputs[0], out, area, window=window)
    return None


def averaged(node: ir.Node) -> int | None:
    """How many elements a pool averages; None where its input's size is not known."""
    if node.op_type == "AveragePool":
        return int(np.prod(query.attribute(node, "kernel_shape", [1])))
    shape = query.sizes(node.inputs[0])
    return None if shape is None else int(np.prod(shape[2:]))


def doubtful(model: ir.Model, selection: Selection, activations: Grids) -> dict[str, str]:
    """Int8 nodes whose results may round differently on different processors, and why; for the planner.

    Args:
        model: the float model the selection was made for.
        selection: which nodes are int8.
        activations: the grid of every quantized tensor, by name.
    """
    chosen = selection.int8_nodes()
    known: dict[tuple[object, ...], Margin | None] = {}
    found = {}
    for node in model.graph:
        if query.label(node) not in chosen:
            continue
        grids = between(node, chosen, activations)
        if grids is None:
            continue
        key = (node.op_type, *grids[0], grids[1], averaged(node) if "Pool" in node.op_type else None)
        if key not in known:
            known[key] = margin(node, *grids)
        if (near := known[key]) is not None and not near.clear:
            found[query.label(node)] = reason(near)
    return found


def settle(
    nodes: Iterable[ir.Node],
    group: Mapping[str, str],
    output_of: Mapping[str, str],
    grids: MutableMapping[str, Affine],
    kept: Collection[str] = (),
) -> dict[str, str]:
    """Clear products and sigmoids of ties, changing `grids`; returns the nodes that cannot be, with the reason.

    Args:
        nodes: int8 nodes in graph order.
        group: tensor name to the tensor whose scale it has.
        output_of: node name to the tensor its result is quantized at.
        grids: scale group to grid; a scale grows by 3 % at most, mostly by less than a thousandth.
        kept: groups whose scale must stay: those on a lattice, with a stated range, or ending at a Clip's limit.
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
        for each in dict.fromkeys((site.output, *site.inputs)):
            touched = [other for other in sites if each in (other.output, *other.inputs)]
            tried = None if each in kept else clear(partial(_worst, touched, grids, each), grids[each])
            if tried is not None:
                grids[each] = tried
                break
        else:
            refused[name] = reason(site.margin(grids))
            sites.remove(site)
    return refused


@dataclass(frozen=True)
class _Site:
    """A node to clear of ties, and the scale groups it joins."""

    node: ir.Node
    inputs: tuple[str, ...]
    output: str

    def margin(self, grids: Grids) -> Margin:
        found = margin(self.node, [grids[name] for name in self.inputs], grids[self.output])
        if found is None:
            raise ValueError(f"{query.label(self.node)} has no margin")
        return found


def _worst(sites: Iterable[_Site], grids: Grids, name: str, grid: Affine) -> Margin:
    """The margin that is nearest to failing with one grid changed."""
    changed = {**grids, name: grid}
    return min((site.margin(changed) for site in sites), key=lambda near: near.distance - near.error)


def between(node: ir.Node, int8_nodes: set[str], activations: Grids) -> tuple[list[Affine], Affine] | None:
    """The grids of what an int8 node reads and of what it gives; None where one of them is not quantized."""
    names = [str(value.name) for value in data_inputs(node)]
    point = str(output_point(node, int8_nodes).name)
    if point not in activations or any(name not in activations for name in names):
        return None
    return [activations[name] for name in names], activations[point]


def reason(near: Margin) -> str:
    """Why a node is in doubt."""
    return f"a result is {near.distance:.1e} steps from a rounding tie, within the kernels' error of {near.error:.1e}"


def clear(margin_of: Callable[[Affine], Margin], grid: Affine) -> Affine | None:
    """The grid of the least larger scale that is clear of ties, by at most 3 %; None where none is.

    A product's scale, say: ``clear(lambda out: product_margin(a, b, out), out)``.
    """
    for step in range(NUDGES):
        tried = replace(grid, scale=float(np.float32(grid.scale * (1 + step / 2048))))
        if margin_of(tried).clear:
            return tried
    return None


def _steps(grid: Affine) -> F64:
    """All operands, zero point taken off."""
    return np.arange(LEVELS + 1, dtype=np.float64) - grid.zero_point


def _nearest(real: F64, out: Affine) -> float:
    """Distance of the result nearest to a tie; what lies beyond the ends saturates, however it is rounded."""
    inside = real[(real > -out.zero_point) & (real < LEVELS - out.zero_point)]
    return float(np.min(np.abs(inside - np.floor(inside) - 0.5), initial=0.5))
