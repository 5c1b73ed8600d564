"""Fit of a model to a target: its budgets, and the channel counts that its kernels prefer.

size       bytes of the constants; the file also holds the graph
memory     the constants and the peak of the activations: a lower bound, the runtime needs more. If the profile sets no
           limit, the device's whole memory counts
latency    unknown until measured
channels   output channels of convolutions; where they are not a multiple of the target's number, the kernel pads them
           or runs slower
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from toolchain.formats.findings import TargetFit
from toolchain.report.amounts import count_text


def summary(fits: Sequence[TargetFit]) -> Text:
    """Say in one line which of many targets a model is too large for."""
    reasons = {fit.target: [f"{b.name} limit {b.limit:g} {b.unit}" for b in fit.budgets if b.fits is False]
               for fit in fits}  # fmt: skip
    too_large = [f"{name} ({', '.join(limits)})" for name, limits in reasons.items() if limits]
    if not too_large:
        return Text(f"fits all {len(fits)} profiles of `toolchain targets list` in size and memory")
    number = len(fits) - len(too_large)
    return Text(f"fits {number} of {len(fits)} profiles in size and memory; too large for {'; '.join(too_large)}")


def render(fit: TargetFit) -> RenderableType:
    """Show how a model fits one target: a line for each budget, then the convolutions with unsuitable widths."""
    lines = [Text(f"on {fit.title} ({fit.target})", style="bold")]
    for budget in fit.budgets:
        limit = f"  {budget.name}: limit {budget.limit:g} {budget.unit}"
        if budget.value is None:
            lines.append(Text(f"{limit}; run toolchain bench on the device"))
        else:
            verdict = "fits" if budget.fits else "DOES NOT FIT"
            lines.append(Text(f"{limit}, at least {budget.value:.3g} needed: {verdict}"))
    if not fit.budgets:
        lines.append(Text("  the profile sets no budget"))
    return Group(*lines, *(_width_lines(fit) if fit.convolutions else ()))


def _width_lines(fit: TargetFit) -> list[Text]:
    multiple = f"a multiple of {fit.channel_multiple}"
    if not fit.misfits:
        return [Text(f"  channels: every convolution gives {multiple}")]
    number = sum(misfit.nodes for misfit in fit.misfits)
    lines = [Text(f"  channels: {number} of {fit.convolutions} convolutions do not give {multiple}:")]
    for misfit in fit.misfits:
        text = f"{misfit.nodes} × {misfit.channels} channels, {count_text(misfit.macs)} MACs"
        lines.append(Text(f"    {text} ({'e.g. ' if misfit.nodes > 1 else ''}{misfit.example})"))
    return lines
