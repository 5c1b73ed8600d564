"""Which operators may give other numbers on other processors, and why.

Exact by construction, on every kernel of onnxruntime's CPU provider:
    int8 products        overflow-free weights, int32 sums, one rounding (`weights`)
    int8 sums, averages  scales on a lattice, never near a tie (`lattice`)
    other int8           tables of 256 entries, or integers passed on
    float, one rounding  +, -, ×, ÷, √ and selections are correctly rounded by IEEE 754 everywhere
A float operator that adds many terms or computes a transcendental function is rounded differently by different vector
widths and libraries, usually in the last of 24 bits; that is what is left to name.
"""

from __future__ import annotations

from collections import Counter

from toolchain.ops import TABLE
from toolchain.quantize.plan import Plan
from toolchain.rules import free

ROUNDED_ONCE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sqrt", "Relu", "Clip", "LeakyRelu", "PRelu", "Where", "MaxPool", "Max", "Min"}
)
"""Float operators of one IEEE operation an element, or of none."""


def exceptions(plan: Plan) -> tuple[str, ...]:
    """One clause for each kind of operator that may differ, the most frequent first."""
    found: list[str] = []
    floats = Counter(choice.op for choice in plan.choices if not choice.int8 and not _same_everywhere(choice.op))
    for op, count in floats.most_common():
        found.append(f"{count} float {op}: rounded differently in the last place by different processors")
    saturating = sum(not product.weight.overflow_free for product in plan.products.values())
    if saturating:
        found.append(f"{saturating} int8 products: may saturate on x86 without VNNI")
    for op, count in Counter(choice.op for choice in plan.choices if choice.node in plan.inexact).items():
        found.append(f"{count} int8 {op}: sums that fall on a tie are rounded differently on ARM")
    return tuple(found)


def _same_everywhere(op: str) -> bool:
    row = TABLE.get(op)
    return op in ROUNDED_ONCE or (row is not None and row.cost is free)
