"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolchain.formats.results import Score

if TYPE_CHECKING:  # reports of benchmarks are made where onnx is not installed
    from toolchain.pruning.goal import Pruned


def record(found: Pruned, scores: Sequence[Score] = ()) -> dict[str, Any]:
    """The same for machines."""
    fidelity = found.fidelity_db
    return {
        "helped": found.helped,
        "reason": found.reason,
        "speedup": found.speedup,
        "int8_speedup": found.int8_speedup,
        "fidelity_db": None if fidelity is None else {"cut": fidelity[0], "repaired": fidelity[1]},
        "macs": list(found.macs),
        "parameters": list(found.parameters),
        "chosen_by": found.savings,
        "groups": [{"name": c.group, "size": c.size, "kept": c.kept, "nodes": list(c.nodes)} for c in found.cuts],
        "dropped": list(found.dropped),
        "score": [score.value for score in scores],
        "proof": None
        if found.verified is None
        else {"error": found.verified.error, "identical": found.verified.identical, "exact": found.verified.exact},
        "notes": list(found.notes),
    }
