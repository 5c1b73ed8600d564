"""onnxsim's structured pruning, in its own environment."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim

from benchmarks import feeds


def prune(name: str, model: str, samples: str, output: str, how: str, size: float, seed: int) -> dict[str, object]:
    """Prune. how: ``l2``, ``global`` or ``wanda``. Its block-wise fine-tuning refuses layers whose shape changed."""
    simple, _ = onnxsim.simplify(onnx.load(model))
    if how == "wanda":
        data = list(feeds.read(Path(samples)))
        pruned = simple
        if size:
            pruned = onnxsim.apply_structured_wanda_pruning(simple, calibration_data=data, sparsity=size)
        pruned = onnxsim.apply_pruning_finetune(simple, pruned, calibration_data=data)
    else:
        pruned = onnxsim.apply_structured_pruning(simple, sparsity=size, global_sparsity=how == "global")
    onnx.save(pruned, output)
    return {"notes": []}
