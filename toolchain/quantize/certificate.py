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
    """What may differ, a clause for each cause."""
    found: list[str] = []
    floats = Counter(c.op for c in plan.choices if c.precision == "float" and not _same_everywhere(c.op))
    if floats:
        kinds = ", ".join(f"{op} ×{count}" for op, count in floats.most_common())
        found.append(f"float operators that every processor rounds its own way in the last place: {kinds}")
    dynamic = Counter(choice.op for choice in plan.choices if choice.other == "int8 dynamic")
    if dynamic:
        kinds = ", ".join(f"{op} ×{count}" for op, count in dynamic.items())
        found.append(f"dynamic int8 operators, which round what float gates computed to whole steps: {kinds}")
    saturating = sum(not product.weight.overflow_free for product in plan.products.values())
    if saturating:
        found.append(f"int8 products that may saturate on x86 without VNNI: {saturating}")
    ties = Counter(choice.op for choice in plan.choices if choice.node in plan.inexact)
    if ties:
        kinds = ", ".join(f"{op} ×{count}" for op, count in ties.most_common())
        found.append(f"int8 sums whose ties ARM rounds the other way: {kinds}")
    return tuple(found)


def _same_everywhere(op: str) -> bool:
    row = TABLE.get(op)
    return op in ROUNDED_ONCE or (row is not None and row.cost is free)
