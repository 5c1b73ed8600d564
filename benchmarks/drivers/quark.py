"""AMD Quark's quantization of ONNX with its named configurations, in its own environment."""

from __future__ import annotations

from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.config import QConfig

from benchmarks.drivers import graphs


def quantize(model: str, samples: str, output: str, how: str, transformer: bool) -> dict[str, object]:
    """Quantize. how: ``default``, U8S8 with min-max ranges. AdaRound took more than ten minutes for eight layers."""
    config = QConfig.get_default_config("INT8_TRANSFORMER_DEFAULT" if transformer else "INT8_CNN_DEFAULT")
    ModelQuantizer(config).quantize_model(graphs.upgraded(model), output, graphs.Reader(samples))
    return {"notes": []}
