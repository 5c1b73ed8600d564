"""Explanation of an int8 model's accuracy, as ``--explain`` shows it.

`steps`: what each accuracy step gained. `causes`: where the remaining error comes from. `tradeoff`: what was tried to
stay within the allowed drop.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import AccuracyStep, NodePrecision, TradeOff

MOST_CAUSES = 15
"""Causes of the error shown one by one; the rest is summed in one row."""


def steps(tried: Sequence[AccuracyStep]) -> RenderableType:
    """Show a row for every accuracy step: fidelity without and with it, and whether it was kept."""
    if not tried:
        return Text("nothing computes in int8, so there is nothing to explain")
    table = _table("step", "without", "with", "")
    for step in tried:
        table.add_row(step.name, f"{step.without_db:.1f} dB", f"{step.with_db:.1f} dB", "" if step.used else "not kept")
    return Group(Text("accuracy steps: fidelity of the outputs to float, on samples that were held out"), table)


def causes(noises: Sequence[NoiseSource], choices: Sequence[NodePrecision], most: int = MOST_CAUSES) -> RenderableType:
    """Show the causes of the remaining error, the largest first.

    Args:
        noises: the error that rounding each tensor or weight makes, the largest first.
        choices: precision of every node; shown for weights.
        most: causes shown one by one.
    """
    if not noises:
        return Text()
    precision = {choice.node: choice.precision for choice in choices}
    table = _table("share of the error", "fidelity with only this rounded", "tensor (node)", "precision")
    for noise in noises[:most]:
        of_node = precision.get(noise.at, "") if noise.kind == "weight" else ""
        table.add_row(f"{noise.share:.1%}", f"{noise.fidelity_db:.1f} dB", noise.label, of_node)
    rest = sum(noise.share for noise in noises[most:])
    if rest:
        table.add_row(f"{rest:.1%}", "", f"{len(noises) - most} others", "")
    return Group(Text("causes of the remaining error:"), table)


def tradeoff(points: Sequence[TradeOff]) -> RenderableType:
    """Show the plans that were tried to stay within the allowed drop, beginning with everything in int8."""
    table = _table("kept in float", "score", "speed-up")
    for point in points:
        table.add_row(str(point.float_nodes), f"{point.score:.4f}", f"{point.speedup:.2f}×")
    return Group(Text("operators kept in float for accuracy, and the cost (1 thread, this computer):"), table)


_NUMBERS = (
    "without", "with", "share of the error", "fidelity with only this rounded", "kept in float", "score", "speed-up",
)  # fmt: skip


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header in _NUMBERS else "left", overflow="fold")
    return table
