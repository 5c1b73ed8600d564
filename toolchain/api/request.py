"""`prepare`: whatever a user gives as a model, brought to a clean float graph; `open_job`: that and the data for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain.conversion.source import Converted, ModelSource, convert
from toolchain.core.errors import DataError, ModelError, one_line
from toolchain.core.progress import Progress, silent
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.calibration import CalibrationData, DataSpec, check_source, open_data
from toolchain.evaluation.score import Evaluate, agreement_score, evaluate_score
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run
from toolchain.optimization.passes import Optimized, optimize
from toolchain.quantization.qdq.reader import is_quantized


@dataclass(frozen=True)
class Prepared:
    """A source brought to a clean float model."""

    converted: Converted
    optimized: Optimized

    @property
    def model(self) -> ir.Model:
        """The optimized float model."""
        return self.optimized.model

    def with_model(self, model: ir.Model) -> Prepared:
        """The same, with a model that was made of it, cleaned up."""
        return replace(self, optimized=optimize(model))


def prepare(
    source: ModelSource,
    *,
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Convert and optimize.

    Raises:
        ModelError, InputError, GateError: as :func:`convert` and :func:`optimize` do.
    """
    progress("converting", 0, 0)
    converted = convert(source, inputs=inputs, freeze=freeze)
    progress("optimizing", 0, 0)
    return Prepared(converted, optimize(converted.model))


def model_name(source: ModelSource) -> str:
    """What tables call a model: its file's stem, its factory's name, or its class."""
    if not isinstance(source, str | Path):
        return type(source).__name__
    text = str(source)
    if Path(text).exists() or not is_callable_spec(text):
        return Path(text).stem
    module, _, factory = text.partition(":")
    # A factory called "model" says nothing; the module it lives in does.
    return module.rsplit(".", 1)[-1] if factory.lower() in ("model", "module", "build", "main", "load") else factory


@dataclass(frozen=True)
class OpenedRequest:
    """All that a user gave, checked and opened. train, held: the samples that statistics are taken from, and those that
    judge. scorer: the user's function.
    """

    prepared: Prepared
    data: CalibrationData
    train: CalibrationData
    held: CalibrationData
    scorer: Evaluate | None
    scorer_name: str

    def score(self, reference: InferenceSession, engine: InferenceSession) -> Score:
        """A model's score: the user's, or agreement with the float model on samples that were held out.

        Raises:
            DataError: the model cannot be run on one of those.
        """
        if self.scorer is not None:
            return evaluate_score(self.scorer, engine, self.scorer_name)
        try:
            return agreement_score(reference, engine, self.held)
        except run.OrtError as error:
            what = f"onnxruntime cannot run the model on a sample that is held out ({one_line(error)})"
            raise DataError(what, where=self.data.source, hint="mend or remove the sample") from None


def open_job(
    source: ModelSource,
    calibration: DataSpec,
    inputs: Sequence[TensorSpec],
    freeze: Mapping[str, int] | None,
    *,
    preprocess: str | Path | None,
    evaluate: str | Evaluate | None,
    recipe: Recipe,
    progress: Progress,
) -> OpenedRequest:
    """Check what was given, convert and optimize.

    Raises:
        InputError and its subclasses: something given cannot be used. GateError: parity failed.
    """
    scorer: Evaluate | None = load_callable(evaluate) if isinstance(evaluate, str) else evaluate  # type: ignore[assignment]
    check_source(calibration, preprocess)
    prepared = prepare(source, inputs=inputs, freeze=freeze, progress=progress)
    if is_quantized(prepared.model):
        hint = "give the float model it was made from; `toolchain inspect` and `bench` take it as it is"
        raise ModelError("is quantized already", where=prepared.converted.source.name, hint=hint)
    progress("checking the calibration data", 0, 0)
    specs = io.inputs(prepared.model)
    data = open_data(calibration, specs, preprocess=preprocess, samples=recipe.calibrate.samples)
    name = evaluate if isinstance(evaluate, str) else getattr(evaluate, "__name__", "evaluate")
    return OpenedRequest(prepared, data, *data.split(), scorer, name)
