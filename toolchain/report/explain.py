"""Why an int8 model is as accurate as it is: what each step gained, where the rest of the error comes from, and what
was tried to keep within the drop that is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import AccuracyStep, NodePrecision, TradeOff

WORST = 15


def steps(found: Sequence[AccuracyStep]) -> RenderableType:
    """A line for every step that was tried."""
    if not found:
        return Text("nothing computes in int8, so there is nothing to explain")
    table = _table("step", "without", "with", "")
    for step in found:
        table.add_row(step.name, f"{step.without_db:.1f} dB", f"{step.with_db:.1f} dB", "" if step.used else "left out")
    return Group(Text("fidelity to float at the outputs, on samples held out:"), table)


def causes(found: Sequence[NoiseSource], choices: Sequence[NodePrecision], worst: int = WORST) -> RenderableType:
    """The causes of the error that is left, the worst first, and how what computes them is computed."""
    if not found:
        return Text()
    precision = {choice.node: choice.precision for choice in choices}
    table = _table("share", "alone", "rounding of", "")
    for noise in found[:worst]:
        how = precision.get(noise.at, "") if noise.kind == "weight" else ""
        table.add_row(f"{noise.share:.1%}", f"{noise.fidelity_db:.1f} dB", noise.label, how)
    rest = sum(noise.share for noise in found[worst:])
    if rest:
        table.add_row(f"{rest:.1%}", "", f"{len(found) - worst} others", "")
    return Group(Text("where the error that is left comes from:"), table)


def tradeoff(points: Sequence[TradeOff]) -> RenderableType:
    """The plans that were tried, from all int8 on."""
    table = _table("left float", "score", "speed-up")
    for point in points:
        table.add_row(str(point.float_nodes), f"{point.score:.4f}", f"{point.speedup:.2f}x")
    return Group(Text("operators left float for accuracy, and what that costs (one thread, this machine):"), table)


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(heads))
    for head in heads:
        number = head in ("share", "alone", "without", "with", "left float", "score", "speed-up")
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    return table
