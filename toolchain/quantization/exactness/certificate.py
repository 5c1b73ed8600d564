"""The exactness certificate: for every node why it computes the same everywhere, or that it may not.

An int8 product (Conv, Gemm, MatMul) is exact on every kernel of onnxruntime's CPU provider when
    pairs     adjacent weights a, b satisfy  a⁺ + b⁺ <= 128  and  a⁻ + b⁻ >= -128, so that x86's VPMADDUBSW cannot
              saturate int16 (`weights`); one odd weight at the end is paired with zero. A depthwise convolution
              multiplies in int32 and needs no such thing
    extremes  |w| <= 127: ARM's SMULL and SMLAL add two signed products in int16, and 2 · 128 · 127 < 2¹⁵ = 2 · 128²
    sums      510 Σ|w| + |b| < 2³¹ for every output channel: activations are at most 255, the zero point's share at most
              as much again, so no partial sum leaves int32 in whatever order it is added
and its result is then float(sum) · (s_x s_w / s_y), each rounded once by IEEE 754, and rounded to nearest even.
Sums, averages, products of activations and sigmoids are computed in different ways; `ties` shows that none of their
results is near enough to a tie to notice. LeakyRelu and Concat are tables of one IEEE operation after the other, and
other operators pass integers on.

Float operators of one IEEE operation an element round alike everywhere. Those that add many terms or compute a
transcendental function do not; they are what is left to name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from toolchain.formats.manifest import Doubt, Exactness, Proof
from toolchain.graph import query
from toolchain.ops.cells import Absorbed, Kernel, SameScale, free
from toolchain.ops.table import TABLE, rule
from toolchain.quantization.exactness import tie_margins
from toolchain.quantization.plan import Plan, ProductQuant, is_depthwise
from toolchain.quantization.selection import output_point
from toolchain.quantization.weights import TOP, as_rows, is_overflow_free

INT32 = 2.0**31 - 1

ROUNDED_ONCE = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Relu", "Clip", "LeakyRelu", "PRelu", "Max",
        "Min", "MaxPool", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "Where", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "And", "Or", "Not",
    }
)  # fmt: skip
"""Float operators of one IEEE operation an element, or of none."""

PRODUCT = "products cannot saturate, sums stay inside int32, one multiplication, ties to even"
DEPTHWISE = "products and sums stay inside int32, one multiplication, ties to even"
FLOAT_RESULT = "products cannot saturate, sums stay inside int32, one multiplication in float"
NO_TIE = "no result is as near to a tie as kernels differ"
TABLE_OF_256 = "a table of 256 entries, each a few IEEE operations, ties to even"
PASSES = "passes integers on"
VANISHES = "is part of its producer, which saturates at the same place"
FLOAT = "float operators that every processor rounds its own way in the last place"
DYNAMIC = "dynamic int8 operators, which round what float gates computed to whole steps"
UNPROVEN = "there is no proof for its int8 kernel"

OVERFLOW = "the int32 sum of an output channel may overflow"
PAIRS = "pairs of products may saturate on x86 without VNNI"
LOWEST = "a weight of -128 may saturate a pair of products on ARM"
SATURATING = frozenset({OVERFLOW, PAIRS, LOWEST})

PRODUCTS = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}
BY_DISTANCE = frozenset({"Add", "Mul", "Sigmoid", "AveragePool", "GlobalAveragePool"})
BY_TABLE = frozenset({"Concat", "LeakyRelu"})


@dataclass(frozen=True)
class NodeCertificate:
    """Of one node. kernel: onnxruntime's name for what runs; None for a float operator.

    proof: why its numbers are the same on every processor, or None, and then fault says why they may not be.
    used: the worst part of what the proof allows, below 1: of int32's range, or of the distance to a tie.
    """

    node: str
    op: str
    kernel: str | None
    proof: str | None
    used: float | None = None
    fault: str | None = None


def certify(model: ir.Model, plan: Plan) -> tuple[NodeCertificate, ...]:
    """A verdict for every int8 node and every float node that may differ, in graph order.

    Args:
        model: the float model the plan was made for.
        plan: its integers and grids.
    """
    chosen = plan.int8_nodes()
    found: list[NodeCertificate | None] = []
    for node in model.graph:
        name, op = query.label(node), query.op(node)
        if name in plan.recurrent:
            found.append(NodeCertificate(name, op, None, None, fault=DYNAMIC))
        else:
            found.append(_int8(node, plan, chosen) if name in chosen else _float(name, op))
    return tuple(verdict for verdict in found if verdict is not None)


def clauses(verdicts: Iterable[NodeCertificate]) -> tuple[str, ...]:
    """What may differ, a clause for each cause."""
    causes: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        if verdict.fault is not None:
            # What is special to one node stands in the manifest.
            cause = verdict.fault if verdict.kernel is None else f"int8 operators without a proof ({verdict.kernel})"
            counts = causes.setdefault(cause, {})
            counts[verdict.op] = counts.get(verdict.op, 0) + 1
    return tuple(
        f"{cause}: " + ", ".join(f"{op} ×{n}" for op, n in sorted(counts.items(), key=lambda item: -item[1]))
        for cause, counts in causes.items()
    )


def exactness(model: ir.Model, verdicts: Collection[NodeCertificate], activations: Literal["u8", "s8"]) -> Exactness:
    """The certificate of `model` as a manifest has it: nodes of one verdict together."""
    proven: dict[tuple[str, str], list[NodeCertificate]] = {}
    doubted: dict[tuple[str, str | None, str], list[str]] = {}
    for verdict in verdicts:
        if verdict.fault is not None:
            doubted.setdefault((verdict.op, verdict.kernel, verdict.fault), []).append(verdict.node)
        elif verdict.kernel is not None and verdict.proof is not None:
            proven.setdefault((verdict.kernel, verdict.proof), []).append(verdict)
    proofs = []
    for (kernel, proof), group in proven.items():
        used = max((verdict.used for verdict in group if verdict.used is not None), default=None)
        proofs.append(Proof(kernel=kernel, proof=proof, nodes=tuple(verdict.node for verdict in group), used=used))
    return Exactness(
        activations=activations,
        overflow_free=not any(
            verdict.fault in SATURATING or (verdict.fault == UNPROVEN and verdict.op in PRODUCTS)
            for verdict in verdicts
        ),
        exceptions=clauses(verdicts),
        steps=_moves_integers(model, verdicts),
        proofs=tuple(proofs),
        doubts=tuple(
            Doubt(op=op, kernel=kernel, reason=reason, nodes=tuple(nodes))
            for (op, kernel, reason), nodes in doubted.items()
        ),
    )


def _moves_integers(model: ir.Model, verdicts: Collection[NodeCertificate]) -> bool:
    """Whether anything int8 lies behind a node that may differ."""
    doubted = {verdict.node for verdict in verdicts if verdict.fault is not None}
    int8 = {verdict.node for verdict in verdicts if verdict.kernel is not None}
    touched: set[ir.Value] = set()
    for node in model.graph:
        behind = any(value in touched for value in node.inputs)
        if behind and query.label(node) in int8:
            return True
        if behind or query.label(node) in doubted:
            touched.update(node.outputs)
    return False


def _float(name: str, op: str) -> NodeCertificate | None:
    row = TABLE.get(op)
    if op in ROUNDED_ONCE or (row is not None and row.cost is free):
        return None
    return NodeCertificate(name, op, None, None, fault=FLOAT)


def _int8(node: ir.Node, plan: Plan, chosen: set[str]) -> NodeCertificate:
    name, op = query.label(node), query.op(node)
    cell = rule(node).int8
    if isinstance(cell, Kernel):
        if name not in plan.products:  # of a file that others wrote, with weights of another kind
            return NodeCertificate(name, op, PRODUCTS.get(op, op), None, fault=UNPROVEN)
        return _product(node, plan.products[name], str(output_point(node, chosen).name) not in plan.activations)
    if isinstance(cell, SameScale):
        return NodeCertificate(name, op, op, PASSES)
    if isinstance(cell, Absorbed):
        return NodeCertificate(name, op, op, VANISHES)
    kernel = f"QLinear{op}" if op in TABLE else op  # a file may hold onnxruntime's own operators
    if op in BY_TABLE:
        return NodeCertificate(name, op, kernel, TABLE_OF_256)
    grids = tie_margins.between(node, chosen, plan.activations)
    near = tie_margins.margin(node, *grids) if grids is not None and op in BY_DISTANCE else None
    if near is None:
        return NodeCertificate(name, op, kernel, None, fault=UNPROVEN)
    if not near.clear:
        return NodeCertificate(name, op, kernel, None, fault=tie_margins.reason(near))
    return NodeCertificate(name, op, kernel, NO_TIE, near.error / near.distance)


def _product(node: ir.Node, quant: ProductQuant, float_result: bool) -> NodeCertificate:
    name, op = query.label(node), query.op(node)
    kernel = PRODUCTS[op]
    if op == "MatMul" and float_result:
        kernel = "MatMulIntegerToFloat"
    values, depthwise = quant.weight.values, is_depthwise(node, quant.weight.values.shape)
    used = worst_sum(quant) / INT32
    if used >= 1:
        fault = OVERFLOW
    elif int(np.min(values, initial=0)) < -TOP:
        fault = LOWEST
    elif not depthwise and not is_overflow_free(np.asarray(as_rows(values, quant.weight.axis), np.int8)):
        fault = PAIRS
    else:
        return NodeCertificate(
            name, op, kernel, DEPTHWISE if depthwise else FLOAT_RESULT if float_result else PRODUCT, used
        )
    return NodeCertificate(name, op, kernel, None, used, fault)


def worst_sum(quant: ProductQuant) -> float:
    """The largest magnitude an int32 accumulator can reach on the way: max over channels of 510 Σ|w| + |b|."""
    rows = np.abs(as_rows(quant.weight.values, quant.weight.axis).astype(np.int64)).sum(axis=1)
    bias = 0 if quant.bias is None else np.abs(quant.bias.astype(np.int64))
    return float(np.max(510 * rows + bias, initial=0))
