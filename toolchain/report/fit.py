"""How a model fits a target: its budgets, and widths its kernels like.

size       the constants; the graph itself comes on top
memory     the constants and the peak of activations, the least that must be there; the runtime comes on top. Where
           the profile sets no limit, that is the device's whole memory
latency    not known before it is measured
channels   output channels of convolutions: a number that is no multiple of the target's is padded or runs slower
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from rich.text import Text

from toolchain.cost import Cost
from toolchain.graph import query
from toolchain.ops import rule
from toolchain.report.amounts import count_text
from toolchain.rules import Weighted
from toolchain.target import Target

MIB = 2**20


@dataclass(frozen=True)
class Budget:
    """A limit of the target. value: what the model takes of it, None where it must be measured; fits: likewise."""

    name: str
    unit: str
    limit: float
    value: float | None
    fits: bool | None


@dataclass(frozen=True)
class Misfit:
    """Convolutions of one number of output channels that is no multiple of the target's. macs: of all of them."""

    channels: int
    nodes: int
    macs: int
    example: str


@dataclass(frozen=True)
class Fit:
    """A model on a target. convolutions: how many it has; misfits: which of them have unfortunate widths."""

    target: str
    title: str
    channel_multiple: int
    convolutions: int
    misfits: tuple[Misfit, ...]
    budgets: tuple[Budget, ...]


def fit_to(target: Target, model: ir.Model, counts: Cost, *, weights: int, peak: int) -> Fit:
    """Hold a model against a profile.

    Args:
        target: the profile.
        model: with the nodes' names that `counts` has.
        counts: what it costs.
        weights: bytes of its constants on the target.
        peak: bytes of its activations there, at the least.
    """
    widths: dict[int, list[str]] = {}
    convolutions = [node for node in model.graph if isinstance(rule(node).channels, Weighted)]
    for node in convolutions:
        shape = query.sizes(node.outputs[0])
        if shape is not None and len(shape) > 1 and shape[1] % target.channel_multiple:
            widths.setdefault(shape[1], []).append(query.label(node))
    misfits = tuple(
        Misfit(width, len(nodes), sum(counts.macs[name] or 0 for name in nodes), nodes[0])
        for width, nodes in sorted(widths.items())
    )
    values = {"size": ("MiB", target.budget.size_mib, weights / MIB),
              "memory": ("MiB", target.budget.memory_mib or target.memory_mib, (weights + peak) / MIB),
              "latency": ("ms", target.budget.latency_ms, None)}  # fmt: skip
    budgets = tuple(
        Budget(name, unit, limit, value, None if value is None else value <= limit)
        for name, (unit, limit, value) in values.items()
        if limit is not None
    )
    return Fit(target.name, target.title, target.channel_multiple, len(convolutions), misfits, budgets)


def fits_line(fits: Sequence[Fit]) -> Text:
    """Which of many profiles a model is too large for."""
    reasons = {
        fit.target: [f"{b.name}: {b.limit:g} {b.unit} allowed" for b in fit.budgets if b.fits is False] for fit in fits
    }
    large = [f"{name} ({', '.join(texts)})" for name, texts in reasons.items() if texts]
    if not large:
        return Text(f"by size and memory it fits all of the {len(fits)} profiles of `toolchain targets list`")
    return Text(f"by size and memory it fits {len(fits) - len(large)} of {len(fits)} profiles, not {'; '.join(large)}")


def fit_lines(found: Fit) -> list[Text]:
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
