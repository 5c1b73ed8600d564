"""Axes of a product's weight: the one with its output channels, and the one that is summed over.

    operator             weight               out    in_
    Conv                 [G x O, I, kernel]   0      1
    ConvTranspose        [G x I, O, kernel]   1      0
    MatMul               [..., I, O]          last   last but one
    Gemm                 [I, O]               1      0
    Gemm, transB = 1     [O, I]               0      1

G are the groups, O and I the output and input channels of one group (ONNX operator specifications). Convolutions are
read from the `Weighted` cells of the operator table, matrix products from the `Contracted` ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import query
from toolchain.ops import table
from toolchain.ops.cells import Contracted, Weighted

WEIGHT = 1  # the input that is the weight, for all products


@dataclass(frozen=True)
class WeightAxes:
    """Axes of a weight, counted from the front.

    Attributes:
        out: axis of the output channels.
        in_: axis of the input channels, which are summed over.
        groups: number of groups of a convolution, which lie along axis 0 together with the channels of one group; 1 for
            matrix products.
    """

    out: int
    in_: int
    groups: int = 1


@dataclass(frozen=True)
class ProductWeight:
    """A product and its constant float32 weight."""

    node: ir.Node
    value: ir.Value
    array: F32
    axes: WeightAxes


def is_product(node: ir.Node) -> bool:
    """True for convolutions and matrix products."""
    return isinstance(table.rule(node).channels, Weighted | Contracted)


def is_transposed(node: ir.Node, operand: int) -> bool:
    """True where a matrix product reads its first (0) or second (1) operand transposed."""
    return bool(query.attribute(node, "transB" if operand else "transA", 0))


def operand_axes(node: ir.Node, operand: int, rank: int) -> tuple[int, int]:
    """Axes of one operand (0 or 1) of a matrix product: the one that stays in the result, and the one summed over."""
    rows, columns = rank - 2, rank - 1
    sums_over_rows = (operand == 1) != is_transposed(node, operand)
    return (columns, rows) if sums_over_rows else (rows, columns)


def weight_axes(node: ir.Node) -> WeightAxes:
    """Axes of a product's weight. A matrix product whose weight has an unknown rank is taken to have a matrix.

    Raises:
        ValueError: the node is no product.
    """
    cell = table.rule(node).channels
    if isinstance(cell, Weighted):
        return WeightAxes(cell.out, cell.in_, query.attribute(node, "group", 1))
    if isinstance(cell, Contracted):
        return WeightAxes(*operand_axes(node, WEIGHT, len(query.sizes(node.inputs[WEIGHT]) or (1, 1))))
    raise ValueError(f"{query.op(node)} has no weight")


def product_weights(model: ir.Model) -> Iterator[ProductWeight]:
    """All products with a constant float32 weight of two axes or more, in graph order. Several may read one weight."""
    for node in model.graph:
        value = node.inputs[WEIGHT] if is_product(node) and len(node.inputs) > WEIGHT else None
        array = query.float_array(value)
        if value is not None and array is not None and array.ndim > 1:
            yield ProductWeight(node, value, array, weight_axes(node))
