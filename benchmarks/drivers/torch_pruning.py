"""Torch-Pruning on the torch module of a model, exported by this toolchain's `convert`, in its own environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch_pruning.pruner.importance import GroupMagnitudeImportance

from benchmarks import feeds
from benchmarks.models import MODELS
from toolchain.conversion.source import convert
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.graph import io

BATCH = 16


def prune(name: str, model: str, samples: str, output: str, how: str, size: float, seed: int) -> dict[str, object]:
    """Prune. how: ``uniform`` or ``global``, followed by ``norms`` to recompute batch norms."""
    module: nn.Module = MODELS[name].module()  # type: ignore[attr-defined]  # not all have one
    data = list(feeds.read(Path(samples)))
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        _stacked(data[:1]),
        importance=GroupMagnitudeImportance(p=2),
        global_pruning=how.startswith("global"),
        pruning_ratio=size,
        ignored_layers=linear[-1:],
        round_to=detect_host().channel_multiple,
    )
    if size:  # a ratio of 0 would round widths down
        pruner.step()
    if how.endswith("norms"):
        _renormalize(module, data)
    io.save(convert(module, inputs=io.inputs(io.load(Path(model)))).model, Path(output))
    return {"notes": []}


def _renormalize(module: nn.Module, data: list[Feed]) -> None:
    """Recompute means and variances of all batch norms as plain averages over the samples."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for start in range(0, len(data), BATCH):
            module(*_stacked(data[start : start + BATCH]))
    module.eval()


def _stacked(data: list[Feed]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.concatenate([feed[key] for feed in data])) for key in data[0])
