"""`train`: train a model by a training recipe; write the trained model, its measurements and a report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import onnx_ir as ir

from toolchain.api.arguments import checked, read_recipe_of
from toolchain.api.recipes import MaxDrop, read_recipe
from toolchain.api.request import Freeze, Inputs, Metric, check_request, without_labels
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.bench import bench as run_bench
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import GateError, InputError
from toolchain.core.files import check_output, write_text
from toolchain.core.progress import Progress, silent
from toolchain.core.user_code import is_callable_spec, load_callable
from toolchain.data.calibration import CalibrationData, DataSpec
from toolchain.data.review import review
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.formats.findings import Findings, TrainingStep
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Results, Score
from toolchain.formats.target import Target
from toolchain.formats.training_recipe import DistilStep, TrainingRecipe
from toolchain.graph import io
from toolchain.pruning.loss import Loss, LossLimit
from toolchain.report.compare import compare
from toolchain.report.html import page
from toolchain.training.engine.comparison import as_teacher_names
from toolchain.training.engine.distil import require_trainable
from toolchain.training.runner import encoded_path, read_students, run_training
from toolchain.training.step import StepResult

STATE_FOLDER = "unfinished"
"""The folder in the output folder that holds the state of a run until it ends."""
FINGERPRINT = "run-fingerprint.txt"
"""The file in that folder that identifies the model, the data and the recipe."""
MIN_HELD_INTERVAL = 4
"""At most one in this many samples is held out."""


@dataclass(frozen=True)
class Trained:
    """Result of :func:`train`.

    Attributes:
        folder: where everything was written.
        results: the table's rows, measured on this computer: the float model, then the model of each step.
        steps: a record of each step.
        lost: what of the float model's answer fell under the floor and was accepted by ``max_drop``, one clause each.
        notes: remarks on the conversion and on the samples.
    """

    folder: Path
    results: Results
    steps: tuple[TrainingStep, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]


@checked(recipe=read_recipe_of(TrainingRecipe))
def train(
    model: ModelSource,
    *,
    data: DataSpec,
    recipe: TrainingRecipe | str | Path,
    output: str | Path = "trained",
    target: str | Path | Target = "host",
    resume: bool = False,
    max_drop: MaxDrop | None = None,
    preprocess: str | Path | None = None,
    evaluate: Metric | None = None,
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a model by the steps of a recipe, and measure the result of each step.

    Args:
        model: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module; it is
            also the teacher.
        data: samples, see :mod:`toolchain.data.calibration`; an array named ``labels`` is ground truth: int64 classes,
            or floats with the shape of the first output.
        recipe: a training recipe, or the path of one.
        output: folder for ``model.onnx``, ``results.json``, ``findings.json``, ``training.json`` and ``report.html``.
        target: name of a profile, path of one, or a profile; an int8 model is written for its kernels.
        resume: continue an interrupted run with the same model, data and recipe.
        max_drop: the largest loss of score that is accepted. "off": the model is written whatever it lost. None: 5 % of
            the score by `evaluate` or by labels, and without both the floor of pruning.
        preprocess: the image pipeline for folders of images: ``imagenet``, ``imagenet-squash``, ``unit``, ``signed``,
            or the path of a TOML file.
        evaluate: a function, or ``package.module:callable``: called with ``run(feed) -> outputs``, returns a number,
            higher is better. Without it the score is the accuracy on held-out labels,
            or how often the model agrees with the float model.
        inputs: the inputs of a torch module, such as ``["image:batch,3,224,224"]``; not needed for ONNX files.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        progress: is told about every stage.

    Returns:
        The folder and everything that was measured.

    Raises:
        InputError and its subclasses: something given cannot be used.
        GateError: parity failed, or the result lost more than is allowed; no model was written. The trained state is
            kept, for `resume`.
    """
    output = Path(output)
    allowed = read_recipe(None, max_drop).max_drop
    steps = recipe if isinstance(recipe, TrainingRecipe) else TrainingRecipe.load(recipe)
    for name in ("model.onnx", "results.json", "findings.json", "training.json", "report.html"):
        check_output(output / name)
    request = check_request(
        model,
        data,
        targets=[target],
        inputs=inputs,
        freeze=freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        progress=progress,
    )
    _check_students(steps)
    if resume and not (output / STATE_FOLDER / FINGERPRINT).exists():
        raise InputError("there is no run to resume", where=output, hint="leave --resume out")
    prepared = request.prepare()
    teacher = prepared.model
    require_trainable(teacher)
    students = read_students(teacher, steps)
    samples = request.open_data(io.inputs(teacher), steps.samples, labels=True)
    remarks = review(samples)
    training, held = samples.split(max(MIN_HELD_INTERVAL, len(samples) // steps.held), steps.held)
    progress("evaluating float")
    scorer = request.scorer(held)
    score = scorer.score(teacher)
    folder = _state_folder(output, teacher, samples, steps, resume)
    stages = run_training(teacher, steps, training, held, folder=folder, students=students, progress=progress)
    progress("judging")
    losses = _judged(scorer.loss_limit(teacher, score, allowed), teacher, stages, steps)
    if (fault := losses[-1].fault) is not None:
        hint = "train longer or ask for less; or add --resume and --max-drop to accept the loss without training again"
        raise GateError(f"the trained model loses too much: {fault}", where=request.model_name, hint=hint)
    feed = without_labels(next(iter(held)))
    results, records = _measure(teacher, score, stages, losses, request.model_name, feed, steps.bench, progress)
    progress("writing")
    int8 = encoded_path(folder, request.targets[0].int8.activations)
    io.save(io.load(int8) if int8.exists() else stages[-1].model, output / "model.onnx")
    results.save(output / "results.json")
    Findings(when=results.measurements[0].when, training=records).save(output / "findings.json")
    steps.save(output / "training.json")
    write_text(output / "report.html", page.render(compare([output]), page.read_details(output)))
    shutil.rmtree(folder)
    return Trained(output, results, records, losses[-1].told, (*prepared.notes, *remarks))


def _check_students(recipe: TrainingRecipe) -> None:
    """Refuse students that do not exist.

    Raises:
        InputError: there is no such file or function.
    """
    for step in recipe.steps:
        if not isinstance(step, DistilStep) or step.student is None:
            continue
        if is_callable_spec(step.student):
            load_callable(step.student)
        elif not Path(step.student).is_file():
            raise InputError("no such file", where=f"student {step.student!r}", hint="check the recipe")


def _state_folder(output: Path, model: ir.Model, data: CalibrationData, recipe: TrainingRecipe, resume: bool) -> Path:
    """Return the folder for the run's state: a new one, or that of the run that is resumed.

    Raises:
        InputError: the run that is resumed was started with another model, data or recipe.
    """
    folder = output / STATE_FOLDER
    parts = (io.to_bytes(model), data.fingerprint.encode(), recipe.to_json().encode())
    hashes = [hashlib.sha256(part).hexdigest() for part in parts]
    file = folder / FINGERPRINT
    stored = file.read_text(encoding="utf-8").split() if resume else hashes
    if stored != hashes:
        names = ("model", "data", "recipe")
        changed = [name for name, old, new in zip(names, stored, hashes, strict=True) if old != new]
        what = f"the run there was started with another {' and '.join(changed)}"
        raise InputError(what, where=output, hint="give the same, or leave --resume out to start again")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(file, "\n".join(hashes))
    return folder


def _judged(limit: LossLimit, teacher: ir.Model, stages: Sequence[StepResult], recipe: TrainingRecipe) -> list[Loss]:
    """Judge the model of each step."""
    losses, foreign = [], False
    for stage, step in zip(stages, recipe.steps, strict=True):
        foreign = foreign or (isinstance(step, DistilStep) and step.student is not None)
        losses.append(limit.loss(as_teacher_names(stage.model, teacher) if foreign else stage.model))
    return losses


def _measure(
    model: ir.Model,
    score: Score,
    stages: Sequence[StepResult],
    losses: Sequence[Loss],
    name: str,
    feed: Feed,
    settings: Bench,
    progress: Progress,
) -> tuple[Results, tuple[TrainingStep, ...]]:
    """Time the float model and the model of each step.

    Return the rows, and the steps with their scores and verdicts.
    """
    names = _variants(stages)
    scores = [score, *(loss.score for loss in losses)]
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch:
        subjects: list[Subject] = []
        for variant, graph in zip(("fp32", *names), (model, *(stage.model for stage in stages)), strict=True):
            file = Path(scratch) / f"{len(subjects)}.onnx"
            io.save_in_place(graph, file)
            subjects.append(Subject(file, name, variant, target="host", feeds=feed, score=scores[len(subjects)]))
        results = run_bench(subjects, settings=settings, target=detect_host(), progress=progress)
    steps = tuple(
        stage.record.model_copy(update={"score": loss.score.value, "verdict": loss.verdict})
        for stage, loss in zip(stages, losses, strict=True)
    )
    return results, steps


def _variants(stages: Sequence[StepResult]) -> list[str]:
    """Name the steps in tables: ``qat``, ``qat-2`` and so on, by their techniques."""
    names: list[str] = []
    for stage in stages:
        technique = stage.record.technique
        names.append(next(n for i in count(1) if (n := technique if i == 1 else f"{technique}-{i}") not in names))
    return names
