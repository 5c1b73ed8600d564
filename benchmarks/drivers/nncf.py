"""NNCF's post-training quantization of ONNX, in its own environment."""

from __future__ import annotations

from pathlib import Path

import nncf
import nncf.onnx
import onnx

from benchmarks import feeds
from benchmarks.drivers import graphs


def quantize(model: str, samples: str, output: str, how: str, transformer: bool) -> dict[str, object]:
    """Quantize. how: ``default``, or ``mixed``: asymmetric activations, which it advises without ReLU, and the type."""
    inputs = nncf.Dataset(list(feeds.read(Path(samples))))
    options: dict[str, object] = {}
    if how == "mixed":
        options["preset"] = nncf.QuantizationPreset.MIXED
        if transformer:
            options["model_type"] = nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize(graphs.upgraded(model), inputs, subset_size=inputs.get_length(), **options)
    onnx.save(quantized, output)
    return {"notes": []}
