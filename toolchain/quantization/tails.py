"""Tails: operators at the end of the graph stay float where int8 gains nothing, although they could be int8."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from toolchain.graph import query
from toolchain.ops.cells import Absorbed, Joined, Kernel, SameScale
from toolchain.ops.table import macs, rule

BEHIND_LAST_PRODUCT = "no int8 product follows it, so int8 would only round and clip the result"
COSTS_MORE_TO_CONVERT = "it computes little from a float tensor, and converting the tensor costs more than int8 saves"
MIN_MACS_PER_CONVERSION = 4
"""Multiply-accumulates per converted element below which int8 cannot save time: rounding one element takes a cycle or
more, and in float32 a multiply-accumulate takes a fourth of a cycle or less."""
ONE_SCALE_FOR_FLOAT_READERS = "only float operators read it, and int8 would give its operands one scale"


def followed_by_product(model: ir.Model, int8: Mapping[ir.Node, bool]) -> set[ir.Node]:
    """Return the nodes behind which an int8 product comes, directly or through any other nodes.

    A node whose result a branch of an If or Loop reads counts as one, because its readers are not looked at.
    """
    followed: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        for reader in node.successors():
            if reader in followed or reader not in int8 or (int8[reader] and isinstance(rule(reader).int8, Kernel)):
                followed.add(node)
    return followed


def drop_small_ends(model: ir.Model, int8: dict[ir.Node, bool]) -> dict[ir.Node, str]:
    """Leave last products float that compute little from a float tensor.

    An example is the mean of the distribution over distances in detectors: one multiply-accumulate for each result of a
    Softmax, which int8 would round before, and its box after.

    Args:
        model: the float model.
        int8: which nodes are int8; it is changed.

    Returns:
        The nodes that are float now, with the reason.
    """
    why: dict[ir.Node, str] = {}
    for node in reversed(list(model.graph)):
        if int8[node] and _computes_little(node, int8) and node not in followed_by_product(model, int8):
            int8[node], why[node] = False, COSTS_MORE_TO_CONVERT
    return why


def _computes_little(node: ir.Node, int8: Mapping[ir.Node, bool]) -> bool:
    cell = rule(node).int8
    value = node.inputs[cell.act] if isinstance(cell, Kernel) else None
    producer = value.producer() if value is not None else None
    if producer is None or int8.get(producer, False):
        return False
    cost, elements = macs(node), query.elements(value)
    return cost is not None and elements is not None and cost < MIN_MACS_PER_CONVERSION * elements


def drop_unread(model: ir.Model, int8: dict[ir.Node, bool], followed: Collection[ir.Node]) -> dict[ir.Node, str]:
    """Leave operators float whose results no int8 product gains from.

    1. Behind the last product: everything but a Relu or Clip that is merged into a convolution.
    2. Between a product that can give a float result and readers that are all float: what passes the result on.
    3. A Concat that only float operators read, because int8 would give its operands one scale.

    The graph is walked backwards, so that a chain of such operators is found.

    Args:
        model: the float model.
        int8: which nodes are int8; it is changed.
        followed: the nodes that :func:`followed_by_product` finds.

    Returns:
        The nodes that are float now, with the reason.
    """
    why: dict[ir.Node, str] = {}
    for node in reversed(list(model.graph)):
        if not int8[node] or isinstance(rule(node).int8, Kernel):
            continue
        if node not in followed:
            if not _is_merged(node, int8):
                int8[node], why[node] = False, BEHIND_LAST_PRODUCT
            continue
        if any(int8.get(reader, False) for reader in node.successors()):
            continue
        source = rule(_source_operator(node))
        if isinstance(source.int8, Kernel) and source.int8.float_output:
            int8[node], why[node] = False, "the result before it and all its readers are float"
        elif isinstance(source.channels, Joined):
            int8[node], why[node] = False, ONE_SCALE_FOR_FLOAT_READERS
    return why


def _is_merged(node: ir.Node, int8: Mapping[ir.Node, bool]) -> bool:
    """True for a Relu or Clip behind an int8 convolution, whose result is quantized in any case."""
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if producer is None or not isinstance(rule(node).int8, Absorbed) or not int8.get(producer, False):
        return False
    cell = rule(producer).int8
    return isinstance(cell, Kernel) and not cell.float_output


def _source_operator(node: ir.Node) -> ir.Node:
    """Return the operator whose result reaches `node` through operators that only pass it on or clip it."""
    while isinstance(rule(node).int8, Absorbed | SameScale):
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is None:
            break
        node = producer
    return node
