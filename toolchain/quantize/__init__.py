"""Static int8: decide per node (`select`) and per number (`plan`), write QDQ (`apply`), look at what onnxruntime
makes of it (`audit`), and cut it into fragments that are raced against their float selves (`fragments`).
"""

from toolchain.quantize.apply import Encoding, apply_quantization
from toolchain.quantize.audit import Audit, audit, optimized_graph
from toolchain.quantize.certificate import Verdict, certify, exactness
from toolchain.quantize.fragments import Fragment, fragments, int8_part
from toolchain.quantize.plan import Plan, plan_quantization
from toolchain.quantize.select import Choice, Selection, select

__all__ = [
    "Audit", "Choice", "Encoding", "Fragment", "Plan", "Selection", "Verdict", "apply_quantization", "audit", "certify",
    "exactness", "fragments", "int8_part", "optimized_graph", "plan_quantization", "select",
]  # fmt: skip
