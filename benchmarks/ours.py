"""This toolchain as a contestant: functions that `benchmarks.fresh` calls in a process of their own."""

from __future__ import annotations

from pathlib import Path

import toolchain
from benchmarks import feeds
from toolchain.calibration.statistics import observe
from toolchain.data.calibration import CalibrationData, open_data
from toolchain.devices.detect import detect_host
from toolchain.formats.recipe import Prune, Recipe
from toolchain.graph import io, query
from toolchain.optimization.passes import optimize
from toolchain.pruning.goal import prune_model
from toolchain.quantization.selection import select


def quantize(model: str, samples: str, output: str, recipe: str) -> dict[str, object]:
    """Quantize an ONNX file for this machine, as `toolchain quantize` does. recipe: JSON."""
    made = toolchain.quantize(
        model,
        calibration=lambda: feeds.read(Path(samples)),
        output=output,
        recipe=Recipe.model_validate_json(recipe),
    )
    choices = made.quantized.plan.choices
    return {"int8": sum(c.int8 for c in choices), "nodes": len(choices), "notes": list(made.quantized.notes)}


def prune(
    name: str, model: str, samples: str, output: str, how: dict[str, object], size: float, seed: int
) -> dict[str, object]:
    """Prune an ONNX file. how: settings that are not the default; size: target speed-up."""
    float_model = io.load(Path(model))
    settings = Prune.model_validate({"speedup": size, "seed": seed, **how})
    pruned = prune_model(
        float_model,
        _data(samples, io.inputs(float_model)),
        settings,
        multiple=detect_host().channel_multiple,
    )
    io.save(pruned.model, Path(output))
    return {"notes": [] if pruned.record.helped else [pruned.record.reason]}


def calibrate(model: str, samples: str, scope: str) -> int:
    """Take histograms of an ONNX file's tensors.

    Args:
        model: the file.
        samples: folder of feeds.
        scope: `selected`, the tensors that need a scale, or `all`, every float activation as in onnxruntime.

    Returns:
        The number of tensors.
    """
    float_model = optimize(io.load(Path(model))).model
    tensors: dict[str, int | None] = dict(select(float_model).tensors)
    if scope == "all":
        floats = [str(value.name) for value in query.activations(float_model) if query.is_float(value)]
        tensors = {name: tensors.get(name) for name in floats}
    return len(observe(float_model, _data(samples, io.inputs(float_model)), tensors, cache=False).tensors)


def _data(samples: str, inputs: object) -> CalibrationData:
    return open_data(lambda: feeds.read(Path(samples)), inputs)  # type: ignore[arg-type]
