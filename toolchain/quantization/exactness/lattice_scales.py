"""Lattice scales: scales with which additions and averages round the same on every processor.

An int8 addition computes  c = round((s_a/s_c) a + (s_b/s_c) b)  after the zero points are subtracted. onnxruntime's x86
kernel computes it in float and rounds ties to even. Its ARM kernel computes in 22-bit fixed point and rounds ties away
from zero. So about one element in a million differs by one step, and a step early in a network changes every output.

Put the three scales on a lattice of unit g:  s_a = p g,  s_b = q g,  s_c = D g  with integers p, q and an *odd* D of
about 500. Then c = round((p a + q b) / D). This is a multiple of 1/D, which is never nearer to a tie than 1/(2 D) =
0.001. That is far more than the error of either kernel, so both round alike. Scales grow by a fraction of a percent. An
average pool over an area of A elements is an addition with one input and s_a = s_x / A.

A tensor may enter several such operators, so a scale that was put on one lattice is kept for the next operator. Where
two inputs are both kept and fit no common lattice, the addition must stay float, which is exact everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from toolchain.graph import query
from toolchain.quantization.ranges import Affine

DENOMINATOR = 501
"""The value that D should be near: odd, small enough that 1/(2 D) exceeds any kernel's error, and large enough that
scales hardly change."""

SCALES_FIXED = "other operators fix its scales, so its int8 sums could differ between processors"


@dataclass(frozen=True)
class Site:
    """One operator whose scales are put on a lattice.

    Attributes:
        node: name of the operator.
        inputs: the scale groups of its inputs.
        output: the scale group of its result.
        area: the number of elements that an average divides by, 1 for Add.
    """

    node: str
    inputs: tuple[str, ...]
    output: str
    area: int = 1


def lattice_sites(nodes: Iterable[ir.Node], group: Mapping[str, str], output_of: Mapping[str, str]) -> list[Site]:
    """List the int8 `nodes` that sum or average, in graph order.

    Args:
        nodes: int8 nodes.
        group: name of a tensor to the tensor whose scale it has.
        output_of: name of a node to the tensor at which its result is quantized.
    """
    result = []
    for node in nodes:
        area = 1 if node.op_type == "Add" else averaged_elements(node)
        if area is not None:
            name = query.label(node)
            inputs = tuple(group[str(value.name)] for value in node.inputs if value is not None)
            result.append(Site(name, inputs, group[output_of[name]], area))
    return result


def averaged_elements(node: ir.Node) -> int | None:
    """Return the number of elements that a pool averages; None for other operators and unknown sizes.

    A window that reaches over the border averages fewer elements there, so their number is unknown as well.
    """
    if node.op_type == "AveragePool":
        if query.may_pad(node) or query.attribute(node, "ceil_mode"):
            return None
        return int(np.prod(query.attribute(node, "kernel_shape", [1])))
    shape = query.sizes(node.inputs[0], dynamic=0) if node.op_type == "GlobalAveragePool" else None
    return None if shape is None else int(np.prod(shape[2:])) or None


def align(
    sites: Iterable[Site], grids: MutableMapping[str, Affine], settled: Iterable[str] = (), capped: Iterable[str] = ()
) -> dict[str, str]:
    """Put the scales of every site on a lattice; `grids` is changed.

    Args:
        sites: the operators to align, in graph order.
        grids: the grid of each scale group.
        settled: groups whose scale must stay as it is.
        capped: groups whose scale must not grow (the grid ends at a Clip's limit); the others must not shrink.

    Returns:
        The nodes whose scales cannot be put on a lattice, with the reason.
    """
    kept, capped = set(settled), set(capped)
    refused: dict[str, str] = {}

    def steps(name: str, unit: float) -> int:
        exact = grids[name].scale / unit
        return max(1, int(np.floor(exact + 1e-6) if name in capped else np.ceil(exact - 1e-6)))

    def put(name: str, scale: float) -> None:
        grids[name] = replace(grids[name], scale=float(np.float32(scale)))

    for site in sites:
        inputs = sorted(dict.fromkeys(site.inputs), key=lambda name: name not in kept)  # the order matters, so no set
        if len([name for name in inputs if name in kept]) > 1 or site.output in kept:
            refused[site.node] = SCALES_FIXED
            continue
        first = grids[inputs[0]].scale / site.area
        unit = first / max(1, round(DENOMINATOR * first / grids[site.output].scale))
        for name in inputs[1:]:
            put(name, unit * steps(name, unit))
        denominator = steps(site.output, unit)
        odd = denominator - 1 if site.output in capped else denominator + 1
        put(site.output, unit * (denominator if denominator % 2 else max(1, odd)))
        kept.update((*inputs, site.output))
    return refused
