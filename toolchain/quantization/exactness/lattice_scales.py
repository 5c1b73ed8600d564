"""Lattice scales: additions and averages that round the same on every processor.

An int8 addition computes  c = round((s_a/s_c) a + (s_b/s_c) b)  after the zero points are subtracted. onnxruntime's x86
kernel computes it in float and rounds ties to even. Its ARM kernel computes in 22-bit fixed point and rounds ties away
from zero. So about one element in a million differs by a step, and a step early in a network moves every output.

Put the three scales on a lattice of unit g:  s_a = p g,  s_b = q g,  s_c = D g  with integers p, q and an *odd* D of
about 500. Then c = round((p a + q b) / D). This is a multiple of 1/D, which is never nearer to a tie than 1/(2 D) =
0.001. That is far more than the error of either kernel, so both round alike. Scales grow by a fraction of a percent. An
average pool over an area A is the case of one input with s_a = s_x / A.

A tensor may enter several such operators, so a scale that was put on one lattice is kept in the next. Where two inputs
were both kept and do not fit one lattice, the addition must stay float, which is exact everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from toolchain.graph import query
from toolchain.quantization.ranges import Affine

DENOMINATOR = 501
"""The target of D: odd, small enough that 1/(2 D) exceeds any kernel's error, large enough that scales hardly move."""

SCALES_FIXED = "other operators fix its scales, so its int8 sums could differ between processors"


@dataclass(frozen=True)
class Site:
    """One operator to align.

    Attributes:
        node: its name.
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
        group: tensor name to the tensor whose scale it has.
        output_of: node name to the tensor its result is quantized at.
    """
    result = []
    for node in nodes:
        area = _area(node)
        if area is not None:
            name = query.label(node)
            inputs = tuple(group[str(value.name)] for value in node.inputs if value is not None)
            result.append(Site(name, inputs, group[output_of[name]], area))
    return result


def _area(node: ir.Node) -> int | None:
    """Return the number of elements that are averaged, 1 for Add; None for other operators and unknown sizes."""
    if node.op_type == "Add":
        return 1
    if node.op_type == "AveragePool":
        return int(np.prod(query.attribute(node, "kernel_shape", [1])))
    shape = node.inputs[0].shape if node.op_type == "GlobalAveragePool" and node.inputs[0] is not None else None
    sizes = [size for size in list(shape)[2:] if isinstance(size, int)] if shape is not None else []
    return int(np.prod(sizes)) if shape is not None and len(sizes) == len(shape) - 2 else None


def align(
    where: Iterable[Site], grids: MutableMapping[str, Affine], settled: Iterable[str] = (), capped: Iterable[str] = ()
) -> dict[str, str]:
    """Put the scales of every site on a lattice, changing `grids`.

    Args:
        where: the sites in graph order.
        grids: scale group to grid.
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

    for site in where:
        inputs = sorted(dict.fromkeys(site.inputs), key=lambda name: name not in kept)  # not a set: the order decides
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
