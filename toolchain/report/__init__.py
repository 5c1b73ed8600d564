"""What a person or a script reads: tables of results, comparisons with a gate, and device profiles.

derive      raw samples to rows: medians with intervals, speed-ups, steadiness, one block a host
render      rows as a terminal table, Markdown, CSV or JSON
compare     results files against a baseline, with a limit on slowing down
profiles    ``targets list`` and ``targets show``
"""

from toolchain.report.compare import Comparison, compare
from toolchain.report.derive import Block, Row, derive
from toolchain.report.profiles import list_targets, show_target
from toolchain.report.render import FORMATS, render

__all__ = ["FORMATS", "Block", "Comparison", "Row", "compare", "derive", "list_targets", "render", "show_target"]
