"""Magnification: products whose rounding a later operator magnifies stay float.

int8 rounds all values of a tensor with one absolute error. Behind a logarithm, a root or a division, the *relative*
error counts, and that of the small values is everything: a sound of a hundredth of the loudest one rounds to silence.
Spectrograms inside a model are of this kind, such as Conv → square → Add → MatMul → Log. So from each magnifying
operator the graph is walked back to the products that feed it:

1. through operators that keep small values small: sums, factors, squares, magnitudes, limits, and what moves values;
2. through the products, and on through linear operators, squares and magnitudes to products before these. A Relu ends
   the walk, except between a product and a square, so of an ordinary network only the last products are reached.

The walk ends where small values are no longer small: at Exp, Softmax, Sigmoid and other functions, at the product of
two activations, and for all but the logarithm at a sum or mean over many elements. Ordinary normalization divides by
such a mean, so it is not found: neither LayerNormalization, written out or not, nor the length of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.graph import query
from toolchain.ops.cells import Float, Kernel
from toolchain.ops.table import rule

FEW_ELEMENTS = 4
"""A sum over at most this many elements, such as a real and an imaginary part, can be small where each element is."""
PROTECTING_CONSTANT = 0.01
"""A divisor to which at least this is added is not small."""

MOVES = frozenset(
    {
        "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that move values. With `LINEAR`, they are passed everywhere."""
LINEAR = frozenset({"Add", "Sub", "Sum", "Neg", "BatchNormalization"})
LIMITS = frozenset({"Relu", "LeakyRelu", "Clip", "Max", "Min"})
"""Operators that are passed behind the last product and directly behind a square."""
MAGNITUDES = frozenset({"Abs", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sqrt"})
"""Operators that make a magnitude; a square is a Pow or a Mul of a tensor with itself."""
SUMS = frozenset(
    {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceSumSquare", "AveragePool"}
    | {"GlobalAveragePool", "MaxPool", "GlobalMaxPool"}
)
"""Operators that combine elements of a tensor."""


@dataclass(frozen=True)
class Magnifier:
    """A value whose small elements count as much as its large ones.

    Attributes:
        value: the value.
        reason: why the products that feed it stay float, as reports show it.
        through_sums: sums over many elements are passed.
        needs_magnitude: only a value that is computed from magnitudes counts.
        divides: an added constant protects the value.
        compares: monotonic functions are passed as well.
    """

    value: ir.Value
    reason: str
    through_sums: bool = False
    needs_magnitude: bool = False
    divides: bool = False
    compares: bool = False


def magnified_products(model: ir.Model) -> dict[str, str]:
    """Name the nodes whose rounding is magnified, products and operators between them, each with the reason."""
    reasons: dict[str, str] = {}
    for node in model.graph:
        for magnifier in _magnifiers(node):
            walk = _Walk(magnifier)
            walk.back(magnifier.value, seen_product=False, limited=())
            if walk.products and (walk.magnitude or not magnifier.needs_magnitude):
                names = [query.label(found) for found in walk.nodes if not isinstance(rule(found).int8, Float)]
                reasons = dict.fromkeys(names, magnifier.reason) | reasons
    return reasons


def _magnifiers(node: ir.Node) -> Iterable[Magnifier]:
    """List the inputs of a node whose small values it magnifies."""
    first, second = (query.optional_input(node, index) for index in (0, 1))
    if first is None or not query.is_float(first):
        return
    what = "which magnifies the rounding of small values"
    if node.op_type == "Log":
        yield Magnifier(first, f"feeds a logarithm, {what}", through_sums=True)
    elif node.op_type == "Sqrt" and not _only_divides(node):
        yield Magnifier(first, f"feeds a square root, {what}")
    elif node.op_type == "Pow" and (exponent := query.float_array(second)) is not None and exponent.min() < 1:
        yield Magnifier(first, f"feeds a root, {what}", divides=bool(exponent.min() < 0))
    elif node.op_type == "Reciprocal":
        yield Magnifier(first, f"feeds a division, {what}", divides=True)
    elif node.op_type == "Div" and second is not None and query.constant(second) is None:
        yield Magnifier(second, f"feeds a division, {what}", divides=True)
    elif node.op_type == "InstanceNormalization":
        yield Magnifier(first, f"feeds a normalization, {what}", needs_magnitude=True)
    elif node.op_type == "Equal" and second is not None:
        reason = "feeds a comparison, and rounding makes unequal values equal"
        yield from (Magnifier(value, reason, compares=True) for value in (first, second))


def _only_divides(root: ir.Node) -> bool:
    """True where a root is only a divisor; the division is looked at instead."""
    readers = query.consumers(root.outputs[0])
    divisors = [
        n for n in readers if n.op_type == "Reciprocal" or (n.op_type == "Div" and n.inputs[1] is root.outputs[0])
    ]
    return bool(readers) and len(divisors) == len(readers) and not root.outputs[0].is_graph_output()


class _Walk:
    """Walks back from one magnifier and collects what stays float.

    Attributes:
        nodes: everything on the way, products included.
        products: number of products met.
        magnitude: a square or magnitude was met.
    """

    def __init__(self, magnifier: Magnifier) -> None:
        self.nodes: dict[ir.Node, None] = {}
        self.products = 0
        self.magnitude = False
        self._magnifier = magnifier
        self._seen: set[tuple[ir.Value, bool, bool]] = set()

    def back(self, value: ir.Value, *, seen_product: bool, limited: tuple[ir.Node, ...]) -> None:
        """Walk on from `value`.

        Args:
            value: what the node before computes.
            seen_product: a product was passed already.
            limited: limits behind an earlier product; they are passed only if a square or magnitude comes next.
        """
        pending = [(value, seen_product, limited)]
        while pending:
            value, seen_product, limited = pending.pop()
            node = value.producer()
            if node is None or query.constant(value) is not None or (value, seen_product, bool(limited)) in self._seen:
                continue
            self._seen.add((value, seen_product, bool(limited)))
            if seen_product and node.op_type in LIMITS:
                pending += [(source, True, (*limited, node)) for source in _activations(node)]
            elif _is_product(node) and not limited:
                self.nodes[node] = None
                self.products += 1
                pending.append((_activations(node)[0], True, ()))
            elif self._passes(node, seen_product=seen_product) and (not limited or _is_magnitude(node)):
                self.magnitude |= _is_magnitude(node)
                self.nodes.update(dict.fromkeys((*limited, node)))
                pending += [(source, seen_product, ()) for source in _activations(node)]

    def _passes(self, node: ir.Node, *, seen_product: bool) -> bool:
        """True for operators behind which small values were small before."""
        if node.op_type in SUMS and not (self._magnifier.through_sums or _summed_elements(node) <= FEW_ELEMENTS):
            return self._magnifier.compares and node.op_type == "MaxPool"
        if node.op_type in ("Add", "Sub") and self._magnifier.divides and _added_constant(node) >= PROTECTING_CONSTANT:
            return False
        if node.op_type in ("Mul", "Div"):
            return _is_magnitude(node) or len(_activations(node)) == 1
        if node.op_type == "Sigmoid":
            return self._magnifier.compares and not seen_product
        known = MOVES | LINEAR | SUMS | MAGNITUDES | (frozenset() if seen_product else LIMITS)
        return node.op_type in known or _is_magnitude(node)


def _activations(node: ir.Node) -> list[ir.Value]:
    """List the float inputs of a node that are not constant."""
    return [value for value in query.computed_inputs(node) if query.is_float(value)]


def _is_product(node: ir.Node) -> bool:
    return isinstance(rule(node).int8, Kernel) and len(_activations(node)) == 1


def _is_magnitude(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        exponent = query.float_array(node.inputs[1])
        return exponent is not None and bool(exponent.min() > 0)
    return node.op_type in MAGNITUDES or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])


def _added_constant(node: ir.Node) -> float:
    """Return the smallest magnitude of the constant that a node adds to or subtracts from an activation; else 0."""
    arrays = [array for value in node.inputs if (array := query.float_array(value)) is not None and array.size]
    return min((float(np.abs(array).min()) for array in arrays), default=0.0)


def _summed_elements(node: ir.Node) -> float:
    """Return how many elements of the input enter one element of the result; infinite where sizes are unknown."""
    if node.op_type in ("AveragePool", "MaxPool"):
        return float(np.prod(query.attribute(node, "kernel_shape", [np.inf])))
    before, after = (query.sizes(value, dynamic=0) for value in (node.inputs[0], node.outputs[0]))
    axes = query.ints(query.optional_input(node, 1)) or query.attribute(node, "axes")
    if before is None or axes is None or node.op_type.startswith("Global"):
        return np.inf if before is None or after is None or 0 in (*before, *after) else np.prod(before) / np.prod(after)
    return float(np.prod([before[axis] or np.inf for axis in axes]))
