"""The exactness certificate: for every node, a proof that all processors compute the same, or the reason for doubt.

An int8 product (Conv, Gemm, MatMul) is exact on every kernel of onnxruntime's CPU provider if
    pairs     adjacent weights a, b satisfy  a⁺ + b⁺ <= 128  and  a⁻ + b⁻ >= -128, so that x86's VPMADDUBSW cannot
              saturate int16 (see `weights`); one odd weight at the end is paired with zero. A depthwise convolution
              multiplies in int32 and does not need this condition
    extremes  |w| <= 127: ARM's SMULL and SMLAL add two signed products in int16, and 2 · 128 · 127 < 2¹⁵ = 2 · 128²
    sums      510 Σ|w| + |b| < 2³¹ for every output channel: activations are at most 255, and so is the zero point, so
              every partial sum fits in int32, in any order of addition
Its result is then float(sum) · (s_x s_w / s_y), each operation rounded once by IEEE 754, and rounded to nearest even.
Kernels compute sums, averages, products of activations and sigmoids in different ways; `tie_margins` shows that none of
their results is so near to a rounding tie that the way matters. LeakyRelu and Concat are tables of a few IEEE
operations in a fixed order, and the other operators pass integers on.

Float operators of one IEEE operation per element give the same bits everywhere. Those that add many terms or compute a
transcendental function do not; the certificate names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.formats.manifest import Doubt, Exactness, Proof
from toolchain.formats.target import Encoding
from toolchain.graph import query
from toolchain.ops.cells import Absorbed, Kernel, SameScale, free
from toolchain.ops.table import TABLE, rule
from toolchain.quantization.exactness import tie_margins
from toolchain.quantization.plan import Plan, ProductQuant, is_depthwise
from toolchain.quantization.selection import output_point
from toolchain.quantization.weights import INT8_MAX, as_rows, is_overflow_free

INT32_MAX = 2.0**31 - 1

ONE_IEEE_OPERATION = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Relu", "Clip", "LeakyRelu", "PRelu", "Max",
        "Min", "MaxPool", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "Where", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "And", "Or", "Not",
    }
)  # fmt: skip
"""Float operators with at most one IEEE operation per element."""

# Proofs, as manifests and reports show them.
EXACT_PRODUCT = "products cannot saturate, sums fit in int32, the result is rounded once, ties to even"
EXACT_DEPTHWISE = "products and sums fit in int32, the result is rounded once, ties to even"
EXACT_FLOAT_RESULT = "products cannot saturate, sums fit in int32, the result is one multiplication in float"
NO_TIE = "no result is closer to a rounding tie than the error of any kernel"
TABLE_OF_256 = "a table of 256 entries, each a few IEEE operations, ties to even"
PASSES_INTEGERS_ON = "passes integers on unchanged"
MERGED = "is merged into the operator before it, which saturates at the same limit"

# Reasons for doubt.
FLOAT = "computed in float, so the last digits may differ between processors"
DYNAMIC = "computed in dynamic int8, so a difference in a float's last digit can become a whole int8 step"
UNPROVEN = "there is no proof for its int8 kernel"
SUM_OVERFLOW = "the int32 sum of an output channel may overflow"
PAIR_SATURATION = "pairs of products may saturate on x86 without VNNI"
WEIGHT_OF_MINUS_128 = "a weight of -128 may saturate a pair of products on ARM"
ARITHMETIC_FAULTS = frozenset({SUM_OVERFLOW, PAIR_SATURATION, WEIGHT_OF_MINUS_128})
"""Reasons for doubt that are overflows or saturation."""

PRODUCT_KERNELS = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}
"""onnxruntime's int8 kernels of products, by operator."""
PROVEN_BY_MARGIN = frozenset({"Add", "Mul", "Sigmoid", "AveragePool", "GlobalAveragePool"})
"""Operators that are exact where no result is near a rounding tie."""
PROVEN_BY_TABLE = frozenset({"Concat", "LeakyRelu"})
"""Operators that are always exact, because their kernels are tables of IEEE operations."""


@dataclass(frozen=True)
class NodeCertificate:
    """The verdict on one node.

    Attributes:
        node: its name.
        op: its operator.
        kernel: onnxruntime's name of the int8 kernel; None for a float operator.
        proof: why its numbers are the same on every processor; None where there is doubt.
        used: the worst case as a share, below 1, of the limit of the proof: the largest sum over int32's range, or the
            kernels' error over the distance to the nearest tie.
        fault: the reason for doubt, None where there is a proof.
    """

    node: str
    op: str
    kernel: str | None
    proof: str | None
    used: float | None = None
    fault: str | None = None


def certify(model: ir.Model, plan: Plan) -> tuple[NodeCertificate, ...]:
    """Certify every int8 node, and every float node whose results may differ.

    Args:
        model: the float model the plan was made for.
        plan: its integers and grids.

    Returns:
        The verdicts in graph order.
    """
    chosen = plan.int8_nodes()
    verdicts: list[NodeCertificate | None] = []
    for node in model.graph:
        name, op = query.label(node), query.op(node)
        if name in plan.recurrent:
            verdicts.append(NodeCertificate(name, op, None, None, fault=DYNAMIC))
        else:
            verdicts.append(_int8_verdict(node, plan, chosen) if name in chosen else _float_verdict(name, op))
    return tuple(verdict for verdict in verdicts if verdict is not None)


def clauses(verdicts: Iterable[NodeCertificate]) -> tuple[str, ...]:
    """Describe what may differ between processors: a clause for each cause, with the operators and their number."""
    causes: dict[tuple[str | None, str], Counter[str]] = {}
    for verdict in verdicts:
        if verdict.fault is not None:
            # The fault of an int8 node can differ from node to node; the manifest states it for each node.
            cause = (verdict.kernel, verdict.fault if verdict.kernel is None else UNPROVEN)
            causes.setdefault(cause, Counter())[verdict.op] += 1
    return tuple(_clause(kernel, fault, operators) for (kernel, fault), operators in causes.items())


def _clause(kernel: str | None, fault: str, operators: Counter[str]) -> str:
    counts = ", ".join(f"{count} {op}" for op, count in operators.most_common())
    single = operators.total() == 1
    if kernel is not None:
        return (
            f"{counts} ({kernel}) {'has' if single else 'have'} no proof that all processors compute the same integers"
        )
    run = "runs" if single else "run"
    if fault == DYNAMIC:
        return f"{counts} {run} in dynamic int8, so a difference in a float's last digit can become a whole int8 step"
    return f"{counts} {run} in float, so {'its' if single else 'their'} last digits may differ between processors"


def exactness(model: ir.Model, verdicts: Collection[NodeCertificate], activations: Encoding) -> Exactness:
    """Make the manifest's record of the certificate; nodes with the same verdict are listed together."""
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
            verdict.fault in ARITHMETIC_FAULTS or (verdict.fault == UNPROVEN and verdict.op in PRODUCT_KERNELS)
            for verdict in verdicts
        ),
        exceptions=clauses(verdicts),
        steps=_reaches_int8(model, verdicts),
        proofs=tuple(proofs),
        doubts=tuple(
            Doubt(op=op, kernel=kernel, reason=reason, nodes=tuple(nodes))
            for (op, kernel, reason), nodes in doubted.items()
        ),
    )


def _reaches_int8(model: ir.Model, verdicts: Collection[NodeCertificate]) -> bool:
    """True where an int8 node reads, directly or through other nodes, a result that may differ."""
    doubted = {verdict.node for verdict in verdicts if verdict.fault is not None}
    int8 = {verdict.node for verdict in verdicts if verdict.kernel is not None}
    may_differ: set[ir.Value] = set()
    for node in model.graph:
        reads_difference = any(value in may_differ for value in node.inputs)
        if reads_difference and query.label(node) in int8:
            return True
        if reads_difference or query.label(node) in doubted:
            may_differ.update(node.outputs)
    return False


def _float_verdict(name: str, op: str) -> NodeCertificate | None:
    row = TABLE.get(op)
    if op in ONE_IEEE_OPERATION or (row is not None and row.cost is free):
        return None
    return NodeCertificate(name, op, None, None, fault=FLOAT)


def _int8_verdict(node: ir.Node, plan: Plan, chosen: set[str]) -> NodeCertificate:
    name, op = query.label(node), query.op(node)
    cell = rule(node).int8
    if isinstance(cell, Kernel):
        if name not in plan.products:  # a file of another program, with another form of weights
            return NodeCertificate(name, op, PRODUCT_KERNELS.get(op, op), None, fault=UNPROVEN)
        return _product_verdict(node, plan.products[name], str(output_point(node, chosen).name) not in plan.activations)
    if isinstance(cell, SameScale):
        return NodeCertificate(name, op, op, PASSES_INTEGERS_ON)
    if isinstance(cell, Absorbed):
        return NodeCertificate(name, op, op, MERGED)
    kernel = f"QLinear{op}" if op in TABLE else op  # a file may hold onnxruntime's own operators
    if op in PROVEN_BY_TABLE:
        return NodeCertificate(name, op, kernel, TABLE_OF_256)
    grids = tie_margins.grids_around(node, chosen, plan.activations)
    margin = tie_margins.tie_margin(node, *grids) if grids is not None and op in PROVEN_BY_MARGIN else None
    if margin is None:
        return NodeCertificate(name, op, kernel, None, fault=UNPROVEN)
    if not margin.clear:
        return NodeCertificate(name, op, kernel, None, fault=tie_margins.tie_reason(margin))
    return NodeCertificate(name, op, kernel, NO_TIE, margin.error / margin.distance)


def _product_verdict(node: ir.Node, quant: ProductQuant, float_result: bool) -> NodeCertificate:
    name, op = query.label(node), query.op(node)
    kernel = PRODUCT_KERNELS[op]
    if op == "MatMul" and float_result:
        kernel = "MatMulIntegerToFloat"
    values, depthwise = quant.weight.values, is_depthwise(node, quant.weight.values.shape)
    used = worst_sum(quant) / INT32_MAX
    if used >= 1:
        fault = SUM_OVERFLOW
    elif int(np.min(values, initial=0)) < -INT8_MAX:
        fault = WEIGHT_OF_MINUS_128
    elif not depthwise and not is_overflow_free(np.asarray(as_rows(values, quant.weight.axis), np.int8)):
        fault = PAIR_SATURATION
    else:
        proof = EXACT_DEPTHWISE if depthwise else EXACT_FLOAT_RESULT if float_result else EXACT_PRODUCT
        return NodeCertificate(name, op, kernel, proof, used)
    return NodeCertificate(name, op, kernel, None, used, fault)


def worst_sum(quant: ProductQuant) -> float:
    """Bound every partial sum in the int32 accumulator: max over channels of 510 Σ|w| + |b|."""
    rows = np.abs(as_rows(quant.weight.values, quant.weight.axis).astype(np.int64)).sum(axis=1)
    bias = 0 if quant.bias is None else np.abs(quant.bias.astype(np.int64))
    return float(np.max(510 * rows + bias, initial=0))
