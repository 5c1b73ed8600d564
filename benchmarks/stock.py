"""onnxruntime's own quantization as a contestant: functions for `benchmarks.fresh`.

It is used as its documentation advises: `quant_pre_process` first, then `quantize_static` or `quantize_dynamic`.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.drivers import graphs

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


def quantize(model: str, samples: str, output: str, variant: str, symbolic: bool) -> dict[str, object]:
    """Quantize an ONNX file. variant: a key of `VARIANTS`; symbolic: infer symbolic shapes first."""
    quantize_static(_prepared(model, output, symbolic), output, graphs.Reader(samples), **VARIANTS[variant])
    return {"notes": _notes(symbolic)}


def quantize_at_run_time(model: str, samples: str, output: str, signed: bool, symbolic: bool) -> dict[str, object]:
    """Quantize the weights of an ONNX file; activations are quantized at every run, and no sample is read.

    signed: signed weights, its default, which none of onnxruntime's convolutions accepts.
    """
    weights = QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_dynamic(_prepared(model, output, symbolic), output, weight_type=weights)
    return {"notes": [*_notes(symbolic), *([] if signed else ["unsigned weights, because its default does not run"])]}


def _prepared(model: str, output: str, symbolic: bool) -> str:
    source, prepared = (str(Path(output).with_suffix(f".{name}.onnx")) for name in ("source", "prepared"))
    onnx.save(graphs.upgraded(model), source)
    quant_pre_process(source, prepared, skip_symbolic_shape=not symbolic)
    return prepared


def _notes(symbolic: bool) -> list[str]:
    return [] if symbolic else ["its symbolic shape inference fails on this model and was left out"]


def calibrate(model: str, samples: str, method: str) -> int:
    """Compute the ranges of an ONNX file's tensors.

    Args:
        model: the file.
        samples: folder of feeds.
        method: a key of `CALIBRATORS`.

    Returns:
        The number of tensors.
    """
    calibrator, options = CALIBRATORS[method]
    augmented = str(Path(samples).with_suffix(".augmented.onnx"))
    engine = create_calibrator(
        model, calibrate_method=calibrator, augmented_model_path=augmented, extra_options=options
    )
    engine.collect_data(graphs.Reader(samples))
    return len(engine.compute_data().data)
