"""onnxruntime's own quantization as a contestant: functions that `benchmarks.fresh` calls in a process of their own.

It is used as its documentation advises: `quant_pre_process` first, then `quantize_static`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks import feeds
from toolchain.data import Feed

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "U8S8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    "U8S8 reduced": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": True,
    },
}
"""Arguments of `quantize_static`. Its default is S8S8, per tensor, ranges by min-max."""

CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, object]]] = {
    "MinMax": (CalibrationMethod.MinMax, {}),
    "Entropy": (CalibrationMethod.Entropy, {}),
    "Entropy, 2048 bins": (CalibrationMethod.Entropy, {"num_bins": 2048}),
    "Percentile": (CalibrationMethod.Percentile, {}),
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self, samples: str) -> None:
        self._feeds: Iterator[Feed] = feeds.read(Path(samples))

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantize(model: str, samples: str, output: str, variant: str, symbolic: bool) -> dict[str, object]:
    """An ONNX file to an int8 file. variant: a key of `VARIANTS`; symbolic: infer symbolic shapes first."""
    source, prepared = (str(Path(output).with_suffix(f".{name}.onnx")) for name in ("source", "prepared"))
    onnx.save(_upgraded(onnx.load(model)), source)
    quant_pre_process(source, prepared, skip_symbolic_shape=not symbolic)
    quantize_static(prepared, output, _Reader(samples), **VARIANTS[variant])
    return {"notes": [] if symbolic else ["its symbolic shape inference fails on this model and was left out"]}


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scales per channel need opset 13."""
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if opset >= 13 else onnx.version_converter.convert_version(model, 17)


def calibrate(model: str, samples: str, method: str) -> int:
    """Ranges of an ONNX file's tensors; returns of how many. method: a key of `CALIBRATORS`."""
    calibrator, options = CALIBRATORS[method]
    augmented = str(Path(samples).with_suffix(".augmented.onnx"))
    engine = create_calibrator(
        model, calibrate_method=calibrator, augmented_model_path=augmented, extra_options=options
    )
    engine.collect_data(_Reader(samples))
    return len(engine.compute_data().data)
