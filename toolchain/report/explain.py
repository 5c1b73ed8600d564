"""Explanation of an int8 model's accuracy, as ``--explain`` shows it.

`steps`: what each accuracy step gained. `causes`: where the remaining error comes from. `clipped`: which values the
ranges cut off. `tradeoff`: what was tried to keep to the limits.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolchain.formats.findings import ClippedTensor, NoiseSource
from toolchain.formats.manifest import AccuracyStep, NodePrecision, TradeOff
from toolchain.report.amounts import plural

MOST_CAUSES = 15
"""Causes of the error shown one by one; the rest is summed in one row."""
MOST_CLIPPED = 10
"""Tensors with values outside their range that are shown, those with the largest share first."""


def steps(tried: Sequence[AccuracyStep]) -> RenderableType:
    """Show a row for every accuracy step: fidelity without and with it, and whether it was kept."""
    if not tried:
        return Text("nothing computes in int8, so there is nothing to explain")
    table = _table("step", "without", "with", "")
    for step in tried:
        table.add_row(step.name, f"{step.without_db:.1f} dB", f"{step.with_db:.1f} dB", "" if step.used else "not kept")
    head = Text("accuracy steps: fidelity of the outputs to float, on samples that were held out;")
    return Group(head, table, Text("range search: on calibration samples, which have the values that it clips"))


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


def clipped(tensors: Sequence[ClippedTensor]) -> RenderableType:
    """Show the tensors with values outside their int8 range, on samples that no range was taken from."""
    if not tensors:
        return Text("no value of a sample that was held out lies outside its int8 range")
    table = _table("values outside", "farthest", "tensor")
    for tensor in tensors[:MOST_CLIPPED]:
        table.add_row(*clipped_cells(tensor))
    rest = len(tensors) - MOST_CLIPPED
    more = [Text(f"and {plural(rest, 'tensor')} with fewer")] if rest > 0 else []
    head = Text("values outside of the int8 ranges, on samples that were held out; they are cut off:")
    return Group(head, table, *more)


def clipped_cells(tensor: ClippedTensor) -> tuple[str, str, str]:
    """Return the share of values outside the range, the farthest in percent of the range, and the tensor's name."""
    share = f"{tensor.share:.2%}" if tensor.share >= 0.0001 else "< 0.01%"
    return share, f"{tensor.beyond:.0%} of the range", tensor.tensor


def tradeoff(points: Sequence[TradeOff]) -> RenderableType:
    """Show the plans that were tried to stay within the allowed drop, beginning with everything in int8."""
    table = _table("kept in float", "score", "speed-up")
    for point in points:
        table.add_row(str(point.float_nodes), f"{point.score:.4f}", f"{point.speedup:.2f}×")
    return Group(Text("operators kept in float for accuracy, and the cost (1 thread, this computer):"), table)


_NUMBERS = (
    "without", "with", "share of the error", "fidelity with only this rounded", "values outside", "farthest",
    "kept in float", "score", "speed-up",
)  # fmt: skip


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header in _NUMBERS else "left", overflow="fold")
    return table
