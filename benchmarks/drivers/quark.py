"""AMD Quark's quantization of ONNX by its named configurations, in its own environment."""

from __future__ import annotations

from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.config import QConfig

from benchmarks.drivers import graphs


def quantize(model: str, samples: str, output: str, how: str, transformer: bool) -> dict[str, object]:
    """how: ``DEFAULT`` (U8S8, ranges by min-max) or ``ACCURATE`` (99.9999 % of the values, AdaRound)."""
    config = QConfig.get_default_config(f"INT8_{'TRANSFORMER' if transformer else 'CNN'}_{how}")
    ModelQuantizer(config).quantize_model(graphs.upgraded(model), output, graphs.Reader(samples))
    return {"notes": []}
