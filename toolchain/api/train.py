"""`train`: a model, data and a training recipe in; the trained model, its measurements and a report out."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.api.request import model_name, prepare
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.bench import bench as run_bench
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import InputError
from toolchain.core.files import check_output, write_text
from toolchain.core.progress import Progress, silent
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.calibration import CalibrationData, DataSpec, check_source, open_data
from toolchain.data.tensors import Array, Feed
from toolchain.devices.catalogue import load_target
from toolchain.devices.detect import detect_host
from toolchain.evaluation.score import Evaluate, Run, agreement_score, evaluate_score
from toolchain.formats.findings import Findings, TrainingStep
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Results, Score
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.training_recipe import DistilStep, TrainingRecipe
from toolchain.graph import io, run
from toolchain.report.compare import compare
from toolchain.report.html import page
from toolchain.training.engine.distil import require_trainable
from toolchain.training.engine.samples import LABELS
from toolchain.training.runner import encoded_path, read_students, run_training
from toolchain.training.step import StepResult

UNFINISHED = "unfinished"
"""The folder, below the output's, that keeps what is done of a run that has not ended."""
HELD_OF = 4
"""At most one of so many samples judges."""


@dataclass(frozen=True)
class Trained:
    """What :func:`train` made. results: of the float model and of what each step made, on this machine."""

    folder: Path
    results: Results
    steps: tuple[TrainingStep, ...]
    notes: tuple[str, ...]


def train(
    source: ModelSource,
    *,
    data: DataSpec,
    recipe: TrainingRecipe,
    output: str | Path = "trained",
    target: str | Target = "host",
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
    preprocess: str | Path | None = None,
    evaluate: str | Evaluate | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a model by a recipe, and measure what came of it.

    Args:
        source: a model as :func:`toolchain.api.export.export` takes it; also the teacher.
        data: samples as for calibration; an array (or a feed's entry) called ``labels`` holds what should be answered:
            int64 classes, or floats as the first output.
        recipe: the steps.
        output: folder to write ``model.onnx``, ``results.json``, ``findings.json``, ``training.json`` and
            ``report.html`` to.
        target: whose kernels a model that ends in int8 is written for; it is measured here, with the same integers.
        inputs: what a torch module takes.
        freeze: sizes for dynamic axes.
        preprocess: the image pipeline, for folders of images.
        evaluate: scores every model; None: the accuracy on held-out labels, or agreement with the float model.
        resume: go on where a run with the same model, data and recipe was ended.
        progress: told about every step.

    Raises:
        InputError and its subclasses: something given cannot be used.
    """
    output = Path(output)
    scorer: Evaluate | None = load_callable(evaluate) if isinstance(evaluate, str) else evaluate  # type: ignore[assignment]
    for name in ("model.onnx", "results.json", "findings.json", "training.json", "report.html"):
        check_output(output / name)
    check_source(data, preprocess)
    _check_students(recipe)
    profile = load_target(target) if isinstance(target, str) else target
    prepared = prepare(source, inputs=inputs, freeze=freeze, progress=progress)
    model = prepared.model
    require_trainable(model)
    students = read_students(model, recipe)
    progress("checking the data", 0, 0)
    specs = [*io.inputs(model), *_labels(data)]
    samples = open_data(data, specs, preprocess=preprocess, samples=recipe.samples)
    learnt, held = samples.split(max(HELD_OF, len(samples) // recipe.held), recipe.held)
    folder = _unfinished(output, model, samples, recipe, resume)
    stages = run_training(model, recipe, learnt, held, folder=folder, students=students, progress=progress)
    name = evaluate if isinstance(evaluate, str) else getattr(evaluate, "__name__", "evaluate")
    judge = _Judge(model, held, scorer, name)
    results, steps = _measured(model, stages, judge, model_name(source), recipe.bench, progress)
    progress("writing", 0, 0)
    int8 = encoded_path(folder, profile.int8.activations)
    io.save(io.load(int8) if int8.exists() else stages[-1].model, output / "model.onnx")
    results.save(output / "results.json")
    Findings(when=results.measurements[0].when, training=steps).save(output / "findings.json")
    recipe.save(output / "training.json")
    write_text(output / "report.html", page.render(compare([output]), page.read_details(output)))
    shutil.rmtree(folder)
    return Trained(output, results, steps, prepared.converted.notes)


def _check_students(recipe: TrainingRecipe) -> None:
    """Whether they are there."""
    for step in recipe.steps:
        if not isinstance(step, DistilStep) or step.student is None:
            continue
        if is_callable_spec(step.student):
            load_callable(step.student)
        elif not Path(step.student).is_file():
            raise InputError("no such file", where=f"student {step.student!r}", hint="check the recipe")


def _labels(data: DataSpec) -> list[TensorSpec]:
    """What the data's labels are like, where it has any."""
    array = None
    if isinstance(data, str | Path) and Path(data).suffix == ".npz" and Path(data).is_file():
        with np.load(data) as arrays:
            array = arrays[LABELS] if LABELS in arrays.files else None
    elif callable(data) or (isinstance(data, str | Path) and is_callable_spec(str(data))):
        calls = data if callable(data) else load_callable(str(data))
        first = next(iter(calls()), None)  # type: ignore[call-overload]
        array = first.get(LABELS) if isinstance(first, Mapping) else None
    elif not isinstance(data, str | Path) and data:
        array = data[0].get(LABELS)
    if array is None:
        return []
    found = np.asarray(array)
    kind = np.dtype(np.float32 if found.dtype.kind == "f" else np.int64)
    return [TensorSpec(LABELS, kind, ("batch", *found.shape[1:]))]


def _unfinished(output: Path, model: ir.Model, data: CalibrationData, recipe: TrainingRecipe, resume: bool) -> Path:
    """The folder to keep what is done in: a fresh one, or that of the run that is resumed."""
    folder = output / UNFINISHED
    parts = (io.to_bytes(model), data.fingerprint.encode(), recipe.to_json().encode())
    mark = "\n".join(hashlib.sha256(part).hexdigest() for part in parts)
    begun = folder / "begun"
    if resume and not begun.exists():
        raise InputError("there is no run to go on with", where=output, hint="leave --resume out")
    if resume and begun.read_text(encoding="utf-8") != mark:
        names = ("model", "data", "recipe")
        changed = [n for n, a, b in zip(names, begun.read_text().split(), mark.split(), strict=True) if a != b]
        what = f"the run there was begun with another {' and '.join(changed)}"
        raise InputError(what, where=output, hint="give the same, or leave --resume out to begin anew")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(begun, mark)
    return folder


@dataclass(frozen=True)
class _Judge:
    """Scores models: by the user's function, by held-out labels, or by agreement with the float model."""

    reference: ir.Model
    held: CalibrationData
    scorer: Evaluate | None
    name: str

    def score(self, model: ir.Model) -> Score:
        """Of one model."""
        engine = run.session(model)
        if self.scorer is not None:
            return evaluate_score(self.scorer, engine, self.name)
        feeds = list(self.held)
        if LABELS in feeds[0] and feeds[0][LABELS].dtype == np.int64:
            return evaluate_score(lambda call: _accuracy(call, feeds), engine, LABELS).model_copy(
                update={"samples": len(feeds)}
            )
        return agreement_score(run.session(self.reference), engine, map(_fed, feeds))


def _accuracy(call: Run, feeds: Iterable[Feed]) -> float:
    return float(np.mean([call(_fed(feed))[0].argmax(-1).reshape(-1) == feed[LABELS].reshape(-1) for feed in feeds]))


def _fed(feed: Feed) -> dict[str, Array]:
    return {name: array for name, array in feed.items() if name != LABELS}


def _measured(
    model: ir.Model, stages: Sequence[StepResult], judge: _Judge, name: str, settings: Bench, progress: Progress
) -> tuple[Results, tuple[TrainingStep, ...]]:
    """Scores, and times interleaved; the steps with their scores."""
    names = _variants(stages)
    scores = []
    feed = _fed(next(iter(judge.held)))
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch:
        subjects: list[Subject] = []
        for variant, graph in zip(("fp32", *names), (model, *(stage.model for stage in stages)), strict=True):
            progress(f"evaluating {variant}", 0, 0)
            scores.append(judge.score(graph))
            file = Path(scratch) / f"{len(subjects)}.onnx"
            io.save_in_place(graph, file)
            subjects.append(Subject(file, name, variant, target="host", feeds=feed, score=scores[-1]))
        found = run_bench(subjects, settings=settings, target=detect_host(), progress=progress)
    steps = tuple(
        stage.record.model_copy(update={"score": score.value}) for stage, score in zip(stages, scores[1:], strict=True)
    )
    return found, steps


def _variants(stages: Sequence[StepResult]) -> list[str]:
    """What the steps are called in tables: their technique, with a number from the second of a kind on."""
    names: list[str] = []
    for stage in stages:
        wanted = stage.record.technique
        names.append(next(n for i in count(1) if (n := wanted if i == 1 else f"{wanted}-{i}") not in names))
    return names
