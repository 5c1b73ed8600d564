"""What a person or a script reads: tables of results, comparisons with a gate, models looked into, device profiles.

derive      raw samples to rows: medians with intervals, speed-ups, steadiness, one block a host
render      rows as a terminal table, Markdown, CSV or JSON
compare     results files against a baseline, with a limit on slowing down
precision   which nodes are int8, and why the others are not
inspection  what a model is made of; imported by itself, since it needs onnx and the rest does not
profiles    ``targets list`` and ``targets show``
"""

from toolchain.report.compare import Comparison, check_limit, compare, hold
from toolchain.report.derive import Block, Row, derive
from toolchain.report.precision import FloatGroup, float_groups, precision
from toolchain.report.profiles import list_targets, show_target
from toolchain.report.render import FORMATS, check_format, render

__all__ = [
    "FORMATS", "Block", "Comparison", "FloatGroup", "Row", "check_format", "check_limit", "compare", "derive",
    "float_groups", "hold", "list_targets", "precision", "render", "show_target",
]  # fmt: skip
