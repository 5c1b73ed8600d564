"""`Request`: the arguments of a call, checked once before the first slow step.

Users give names, paths, texts or objects. The functions of the public API that need a model, data and targets turn
these into a `Request` first, and pass that on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from toolchain.api.prepare import Prepared, prepare
from toolchain.conversion.freeze import check_sizes
from toolchain.conversion.inputs import parse_freeze, parse_input
from toolchain.conversion.repeatability import check_repeatable
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import DataError, GateError, InputError, ModelError, one_line
from toolchain.core.progress import Progress
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.calibration import LABELS, CalibrationData, DataSpec, check_source, open_data
from toolchain.data.review import review
from toolchain.data.tensors import Array, Feed
from toolchain.devices.catalogue import load_target
from toolchain.evaluation.judge import Judge
from toolchain.evaluation.score import Evaluate, Run, agreement_score, evaluate_score
from toolchain.formats.results import Score
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run
from toolchain.pruning.loss import LossLimit
from toolchain.quantization.qdq.reader import is_quantized

Inputs = Sequence[str | TensorSpec]
"""The inputs of a torch module: texts as :func:`toolchain.parse_input` reads them, or specs."""
Freeze = Mapping[str, int] | Sequence[str]
"""Sizes for dynamic axes: by name, or texts such as ``batch=1`` and ``input.axis=1``."""
Metric = str | Evaluate
"""``package.module:callable`` or a function, see :data:`toolchain.evaluation.score.Evaluate`."""

CLEAN_UP_SAMPLES = 4
"""Number of samples on which the cleaned-up model is compared with the converted one."""
MIN_CLEAN_UP_DB = 40.0
"""Lowest fidelity of the clean-up; another order of float32 sums leaves 80 dB and more."""
GENERIC_FACTORY_NAMES = ("model", "module", "build", "main", "load")
"""Names of functions that say nothing about the model they build; tables then show the name of their module."""


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        source: the model.
        data: the source of the samples, not opened yet.
        targets: profiles of the devices.
        inputs: the inputs of a torch module.
        freeze: sizes for dynamic axes.
        preprocess: the image pipeline, for folders of images.
        metric: the user's function, or None.
        metric_name: its name in messages.
        progress: is told about every stage.
    """

    source: ModelSource
    data: DataSpec
    targets: tuple[Target, ...]
    inputs: tuple[TensorSpec, ...]
    freeze: Mapping[str, int]
    preprocess: str | Path | None
    metric: Evaluate | None
    metric_name: str
    progress: Progress

    @property
    def model_name(self) -> str:
        """The model's name in tables: its file's name without suffix, the name of its function, or its class."""
        if not isinstance(self.source, str | Path):
            return type(self.source).__name__
        text = str(self.source)
        if Path(text).exists() or not is_callable_spec(text):
            return Path(text).stem
        module, _, factory = text.partition(":")
        return module.rsplit(".", 1)[-1] if factory.lower() in GENERIC_FACTORY_NAMES else factory

    def prepare(self) -> Prepared:
        """Convert and optimize the model.

        Raises:
            ModelError, InputError: the model cannot be used.
            GateError: parity failed.
        """
        return prepare(self.source, inputs=self.inputs, freeze=self.freeze, progress=self.progress)

    def open_data(self, inputs: Sequence[TensorSpec], samples: int | None, *, labels: bool = False) -> CalibrationData:
        """Open the data and check it against a model's inputs; see :func:`toolchain.data.calibration.open_data`."""
        self.progress("checking the data")
        return open_data(self.data, inputs, preprocess=self.preprocess, samples=samples, labels=labels)

    def scorer(self, held: CalibrationData) -> Scorer:
        """Return the scorer of models; without a metric it uses the held-out samples `held`."""
        return Scorer(self.metric, self.metric_name, held)


def check_request(
    source: ModelSource,
    data: DataSpec,
    *,
    targets: Sequence[str | Path | Target],
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    preprocess: str | Path | None = None,
    evaluate: Metric | None = None,
    progress: Progress,
) -> Request:
    """Check a user's arguments and build a request from them.

    Raises:
        InputError and its subclasses: something given cannot be used.
    """
    profiles = tuple(target if isinstance(target, Target) else load_target(target) for target in targets)
    for profile in profiles:
        if sum(other.name == profile.name for other in profiles) > 1:
            raise InputError("is given more than once", where=f"target {profile.name!r}", hint="give each target once")
    specs = read_inputs(inputs)
    sizes = read_freeze(freeze)
    metric: Evaluate | None = load_callable(evaluate) if isinstance(evaluate, str) else evaluate  # type: ignore[assignment]
    name = evaluate if isinstance(evaluate, str) else getattr(evaluate, "__name__", "evaluate")
    check_source(data, preprocess)
    return Request(source, data, profiles, specs, sizes, preprocess, metric, name, progress)


def read_inputs(inputs: Inputs) -> tuple[TensorSpec, ...]:
    """Return inputs as specs; those given as text are parsed.

    Raises:
        InputError: a text does not describe an input.
    """
    return tuple(parse_input(spec) if isinstance(spec, str) else spec for spec in inputs)


def read_freeze(freeze: Freeze | None) -> Mapping[str, int]:
    """Return sizes by axis; those given as text are parsed.

    Raises:
        InputError: a text is not of the form ``name=size``, or a size is one that no axis has.
    """
    sizes = freeze if isinstance(freeze, Mapping) else parse_freeze(freeze or ())
    check_sizes(sizes)
    return sizes


@dataclass(frozen=True)
class Scorer:
    """Scores models: by the user's metric, by held-out labels, or by agreement with the float model.

    Attributes:
        metric: the user's function, or None.
        metric_name: its name in messages.
        held: held-out samples, which were not used to calibrate or train.
    """

    metric: Evaluate | None
    metric_name: str
    held: CalibrationData

    def score(self, model: ir.Model) -> Score:
        """Score a model; by agreement with itself where there are neither a metric nor labels.

        Called with the float model before the slow steps, so that a metric that fails, or a sample on which the model
        cannot be run, is refused at once.

        Raises:
            InputError: the metric fails.
            DataError: the model cannot be run on one of the samples.
        """
        engine = run.session(model)
        if self.metric is not None:
            return evaluate_score(self.metric, engine, self.metric_name)
        first = next(iter(self.held))
        try:
            if LABELS in first and first[LABELS].dtype == np.int64:
                accuracy = evaluate_score(self._accuracy, engine, LABELS)
                return accuracy.model_copy(update={"samples": len(self.held)})
            return agreement_score(engine, engine, map(without_labels, self.held))
        except run.OrtError as error:
            what = f"onnxruntime cannot run the model on a held-out sample ({one_line(error)})"
            raise DataError(what, where=self.held.source, hint="correct or remove the sample") from None

    def loss_limit(
        self, model: ir.Model, before: Score, max_drop: float | Literal["off"] | None, *, option: str = "--speedup"
    ) -> LossLimit:
        """Return the most that a model made from a float model may lose.

        Args:
            model: the float model.
            before: its score.
            max_drop: the largest accepted loss of score, see :class:`toolchain.pruning.loss.LossLimit`.
            option: the command's option for a speed-up, for hints.
        """
        return LossLimit(Judge(model, self.held), self.score, before, max_drop, option)

    def _accuracy(self, call: Run) -> float:
        """Return the share of held-out samples whose largest output is that of their label."""
        hits = [call(without_labels(feed))[0].argmax(-1).reshape(-1) == feed[LABELS].reshape(-1) for feed in self.held]
        return float(np.mean(hits))


def without_labels(feed: Feed) -> dict[str, Array]:
    """Return a feed without its ground truth."""
    return {name: array for name, array in feed.items() if name != LABELS}


@dataclass(frozen=True)
class OpenedRequest:
    """A request whose model was converted and whose data was opened.

    Attributes:
        request: the request.
        prepared: the float model.
        data: all samples.
        train: the samples to calibrate on.
        held: the held-out samples, on which models are scored.
    """

    request: Request
    prepared: Prepared
    data: CalibrationData
    train: CalibrationData
    held: CalibrationData

    @property
    def scorer(self) -> Scorer:
        """The scorer of this request's models."""
        return self.request.scorer(self.held)


def open_request(request: Request, samples: int | None) -> OpenedRequest:
    """Convert and optimize the model, then open and divide the data.

    Args:
        request: the request.
        samples: use at most this many; None: all.

    Raises:
        InputError and its subclasses: something given cannot be used; ModelError also if the model gives two different
            results for one input.
        GateError: parity failed.
    """
    prepared = request.prepare()
    if is_quantized(prepared.model):
        hint = "give the float model it was made from; `toolchain inspect` and `bench` take int8 models, too"
        raise ModelError("is quantized already", where=prepared.converted.source.name, hint=hint)
    data = request.open_data(io.inputs(prepared.model), samples)
    _check_repeatable(prepared, data)
    prepared = prepared.compared_on([without_labels(next(iter(data)))])
    _check_clean_up(prepared, data)
    prepared = replace(prepared, notes=(*prepared.notes, *review(data)))
    return OpenedRequest(request, prepared, data, *data.split())


def _check_clean_up(prepared: Prepared, data: CalibrationData) -> None:
    """Compare the cleaned-up model with the converted one on samples, part by part.

    Random inputs, which the clean-up is checked on, may not have what a pass changes: silence in front of a logarithm.

    Raises:
        GateError: a part differs.
    """
    judge = Judge(prepared.converted.model, data.take(CLEAN_UP_SAMPLES))
    verdict = judge.verdict(prepared.model)
    worst = verdict.worst
    if worst is not None and worst.fidelity_db < MIN_CLEAN_UP_DB:
        what = (
            f"the clean-up changed {worst.name}: {worst.fidelity_db:.0f} dB of at least {MIN_CLEAN_UP_DB:.0f} are left"
        )
        raise GateError(what, where=prepared.converted.source.name, hint="report the model")


def _check_repeatable(prepared: Prepared, data: CalibrationData) -> None:
    """Run the model twice on the first sample: random inputs, which the conversion tries, may be refused by a model."""
    name = prepared.converted.source.name
    with contextlib.suppress(*run.OrtError):  # the pass over all samples says which of them the model does not take
        check_repeatable(prepared.model, run.session(prepared.model), without_labels(next(iter(data))), name)
