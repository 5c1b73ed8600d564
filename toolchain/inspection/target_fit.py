"""The fit of a model to a target: budgets, and widths of convolutions.

size       Bytes of the constants. The file contains the graph in addition.
memory     Bytes of the constants and of the activations at their peak, which the model needs at least. The runtime
           needs memory in addition. Without a budget, the limit is the memory of the device.
latency    Its value is unknown here, because only a measurement can find it.
channels   Output channels of convolutions. A number that is no multiple of the target's is padded or runs slower.
"""

from __future__ import annotations

import onnx_ir as ir

from toolchain.formats.findings import BudgetCheck, TargetFit, WidthMisfit
from toolchain.formats.target import Target
from toolchain.graph import query
from toolchain.ops.cells import Weighted
from toolchain.ops.cost import Cost
from toolchain.ops.table import rule

BYTES_PER_MIB = 2**20


def fit_to(target: Target, model: ir.Model, counts: Cost, *, weights: int, peak: int) -> TargetFit:
    """Compare a model with a target's profile.

    Args:
        target: the profile.
        model: the model; its nodes have the names that `counts` uses.
        counts: its cost.
        weights: bytes of the constants on the target.
        peak: smallest possible peak of the activations on the target, in bytes.
    """
    widths: dict[int, list[str]] = {}
    convolutions = [node for node in model.graph if isinstance(rule(node).channels, Weighted)]
    for node in convolutions:
        shape = query.sizes(node.outputs[0])
        if shape is not None and len(shape) > 1 and shape[1] % target.channel_multiple:
            widths.setdefault(shape[1], []).append(query.label(node))
    misfits = tuple(
        WidthMisfit(
            channels=width,
            nodes=len(nodes),
            macs=sum(counts.macs[name] or 0 for name in nodes),
            example=nodes[0],
        )
        for width, nodes in sorted(widths.items())
    )
    values = {"size": ("MiB", target.budget.size_mib, weights / BYTES_PER_MIB),
              "memory": ("MiB", target.budget.memory_mib or target.memory_mib, (weights + peak) / BYTES_PER_MIB),
              "latency": ("ms", target.budget.latency_ms, None)}  # fmt: skip
    budgets = tuple(
        BudgetCheck(name=name, unit=unit, limit=limit, value=value, fits=None if value is None else value <= limit)
        for name, (unit, limit, value) in values.items()
        if limit is not None
    )
    return TargetFit(
        target=target.name,
        title=target.title,
        channel_multiple=target.channel_multiple,
        convolutions=len(convolutions),
        misfits=misfits,
        budgets=budgets,
    )
