"""How a model fits a target: its budgets, and widths its kernels like.

size       the constants; the graph itself comes on top
memory     the constants and the peak of activations, the least that must be there; the runtime comes on top. Where
           the profile sets no limit, that is the device's whole memory
latency    not known before it is measured
channels   output channels of convolutions: a number that is no multiple of the target's is padded or runs slower
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from toolchain.formats.findings import TargetFit
from toolchain.report.amounts import count_text


def summary(fits: Sequence[TargetFit]) -> Text:
    """Which of many profiles a model is too large for."""
    reasons = {
        fit.target: [f"{b.name}: {b.limit:g} {b.unit} allowed" for b in fit.budgets if b.fits is False] for fit in fits
    }
    large = [f"{name} ({', '.join(texts)})" for name, texts in reasons.items() if texts]
    if not large:
        return Text(f"by size and memory it fits all of the {len(fits)} profiles of `toolchain targets list`")
    return Text(f"by size and memory it fits {len(fits) - len(large)} of {len(fits)} profiles, not {'; '.join(large)}")


def lines(found: TargetFit) -> list[Text]:
    """A fit for reading."""
    lines = [Text(f"on {found.title} ({found.target})", style="bold")]
    for budget in found.budgets:
        allowed = f"  {budget.name}: {budget.limit:g} {budget.unit} allowed"
        if budget.value is None:
            lines.append(Text(f"{allowed}; run toolchain bench on the device"))
        else:
            verdict = "fits" if budget.fits else "DOES NOT FIT"
            lines.append(Text(f"{allowed}, at least {budget.value:.3g} needed: {verdict}"))
    if not found.budgets:
        lines.append(Text("  the profile sets no budget"))
    convolutions, wanted = f"{found.convolutions} convolutions", f"multiples of {found.channel_multiple}"
    if not found.convolutions:
        return lines
    if not found.misfits:
        return [*lines, Text(f"  all {convolutions} give channels in {wanted}")]
    number = sum(misfit.nodes for misfit in found.misfits)
    lines.append(Text(f"  {number} of {convolutions} give channels not in {wanted}:"))
    for misfit in found.misfits:
        many = f"{misfit.nodes} × {misfit.channels} channels, {count_text(misfit.macs)} MACs"
        lines.append(Text(f"    {many} ({'e.g. ' if misfit.nodes > 1 else ''}{misfit.example})"))
    return lines
