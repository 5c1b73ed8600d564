"""`export`: a model, calibration data and targets in; for each target a verified int8 artifact out.

    source ─convert─► model ─optimize─► float model ─observe─► observation       once
                                             │                      │
                                             └──── select, plan ────┘            once: a plan knows no target
                                                        │
                 for each target:  apply (u8 or s8) ─► package ─► golden data    the same integers everywhere
                                                        │
                                          bench fp32 against int8, interleaved, on this machine

The stages do not know each other; this is where they are joined. Everything the user gave is checked before the
first slow step, and everything is written to a temporary folder and renamed into place at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain import artifact, package
from toolchain.bench import Subject
from toolchain.bench import bench as run_bench
from toolchain.convert import Converted, ModelSource, convert
from toolchain.data import CalibrationData, DataSpec, check_source, open_data
from toolchain.detect import detect_host
from toolchain.errors import DataError, GateError, InputError, ModelError
from toolchain.files import check_output, replacing
from toolchain.graph import io, run
from toolchain.int8 import Quantized, quantize_model
from toolchain.loading import is_callable_spec, load_callable
from toolchain.measurement import Measurement, Results, Score
from toolchain.mixed import Point, search
from toolchain.optimize import Optimized, optimize
from toolchain.quantize import certify, exactness
from toolchain.recipe import Recipe
from toolchain.report.quantized import is_quantized
from toolchain.score import Evaluate, agreement_score, evaluate_score
from toolchain.target import Target, load_target
from toolchain.tensors import Array, Feed, TensorSpec
from toolchain.verification import verify

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); total 0 where it is not known."""

GOLDEN_SAMPLES = 4


@dataclass(frozen=True)
class Prepared:
    """A source brought to a clean float model."""

    converted: Converted
    optimized: Optimized

    @property
    def model(self) -> ir.Model:
        """The optimized float model."""
        return self.optimized.model


@dataclass(frozen=True)
class Exported:
    """What an export made. results: the fp32 row first, then a row for each target. curve: the plans that were tried
    for ``max_drop``.
    """

    folder: Path
    results: Results
    manifests: tuple[artifact.Manifest, ...]
    quantized: Quantized
    prepared: Prepared
    curve: tuple[Point, ...] = ()


def silent(what: str, done: int, total: int) -> None:
    """The progress of a library call: none."""


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


def export(
    source: ModelSource,
    *,
    targets: Sequence[str | Target],
    calibration: DataSpec,
    output: str | Path = "exported",
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
    preprocess: str | Path | None = None,
    evaluate: str | Evaluate | None = None,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> Exported:
    """Make a verified int8 artifact for every target, and measure it against float on this machine.

    Args:
        source: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module.
        targets: names of profiles, paths of profiles, or profiles.
        calibration: see :mod:`toolchain.data`. Without `evaluate` a quarter is held out to measure agreement.
        output: folder to write; an earlier export in it is replaced.
        inputs: what a torch module takes.
        freeze: sizes for dynamic axes.
        preprocess: the image pipeline, for folders of images.
        evaluate: ``package.module:callable`` or a function, see :data:`toolchain.score.Evaluate`.
        recipe: how; None is the default recipe.
        progress: told about every step.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: parity or ``recipe.max_drop`` failed; nothing was written.
    """
    recipe = recipe or Recipe()
    output = Path(output)
    profiles = [load_target(target) if isinstance(target, str) else target for target in targets]
    for profile in profiles:
        if sum(other.name == profile.name for other in profiles) > 1:
            raise InputError("is given more than once", where=f"target {profile.name!r}", hint="name each target once")
        package.check_folder(output / profile.name)
    check_output(output / "results.json")
    work = _prepare_int8(
        source, calibration, inputs, freeze, preprocess=preprocess, evaluate=evaluate, recipe=recipe, progress=progress
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch, replacing(output / "results.json") as folder:
        work, pair, scores = _settle(work, recipe, Path(scratch), progress)
        quantized = work.quantized
        golden = _golden(pair, work.held)
        rows = _bench(pair, model_name(source), scores, golden.feeds[0], recipe, progress)
        results, manifests = [rows[0]], []
        for number, profile in enumerate(profiles):
            progress(f"packaging for {profile.name}", number, len(profiles))
            manifest = _manifest(work, profile, recipe, scores[0])
            encoding = profile.int8.activations
            model = pair.int8 if encoding == quantized.encoding else quantized.write(encoding)
            manifest, row = _package(folder / profile.name, model, rows[1], manifest, profile, golden)
            manifests.append(manifest)
            results.append(row)
        found = Results(measurements=tuple(results))
        (folder / "results.json").write_text(found.to_json(), encoding="utf-8")
    return Exported(output, found, tuple(manifests), quantized, work.prepared, work.curve)


@dataclass(frozen=True)
class QuantizedFile:
    """What :func:`quantize` made. scores: of float and of int8. curve: the plans that were tried for ``max_drop``."""

    output: Path
    quantized: Quantized
    scores: tuple[Score, Score]
    curve: tuple[Point, ...] = ()


def quantize(
    source: ModelSource,
    *,
    calibration: DataSpec,
    output: str | Path,
    target: str | Target = "host",
    inputs: Sequence[TensorSpec] = (),
    freeze: Mapping[str, int] | None = None,
    preprocess: str | Path | None = None,
    evaluate: str | Evaluate | None = None,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> QuantizedFile:
    """Write one int8 model for one target, neither packaged nor benchmarked. Arguments and errors as :func:`export`."""
    recipe = recipe or Recipe()
    profile = load_target(target) if isinstance(target, str) else target
    check_output(output)
    work = _prepare_int8(
        source, calibration, inputs, freeze, preprocess=preprocess, evaluate=evaluate, recipe=recipe, progress=progress
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch:
        work, _, scores = _settle(work, recipe, Path(scratch), progress)
    io.save(work.quantized.write(profile.int8.activations), output)
    return QuantizedFile(Path(output), work.quantized, scores, work.curve)


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


def load_evaluate(evaluate: str | Evaluate | None) -> Evaluate | None:
    """The scoring function behind ``--evaluate``."""
    return load_callable(evaluate) if isinstance(evaluate, str) else evaluate  # type: ignore[return-value]


# ---------------------------------------------------------------------------------- what export is made of


@dataclass(frozen=True)
class _Work:
    """Everything up to the plan. held: samples that no statistic was taken from, for agreement and golden data.
    scorer: the user's function. curve: the plans that were tried for ``max_drop``.
    """

    prepared: Prepared
    quantized: Quantized
    data: CalibrationData
    held: CalibrationData
    scorer: Evaluate | None
    scorer_name: str
    curve: tuple[Point, ...] = ()


def _prepare_int8(
    source: ModelSource,
    calibration: DataSpec,
    inputs: Sequence[TensorSpec],
    freeze: Mapping[str, int] | None,
    *,
    preprocess: str | Path | None,
    evaluate: str | Evaluate | None,
    recipe: Recipe,
    progress: Progress,
) -> _Work:
    """Check what was given, then convert, optimize, observe and plan."""
    scorer = load_evaluate(evaluate)
    check_source(calibration, preprocess)
    prepared = prepare(source, inputs=inputs, freeze=freeze, progress=progress)
    if is_quantized(prepared.model):
        hint = "give the float model it was made from; `toolchain inspect` and `bench` take it as it is"
        raise ModelError("is quantized already", where=prepared.converted.source.name, hint=hint)
    progress("checking the calibration data", 0, 0)
    specs = io.inputs(prepared.model)
    data = open_data(calibration, specs, preprocess=preprocess, samples=recipe.calibrate.samples)
    train, check = data.split()
    quantized = quantize_model(prepared.model, train, recipe, check=check, progress=progress)
    name = evaluate if isinstance(evaluate, str) else getattr(evaluate, "__name__", "evaluate")
    return _Work(prepared, quantized, data, check, scorer, name)


@dataclass(frozen=True)
class _Pair:
    """The float model and its int8 twin as this machine takes activations: the same integers as every target's."""

    float_: Path
    int8: Path
    outputs: tuple[str, ...]


def _write_pair(work: _Work, folder: Path) -> _Pair:
    model, quantized = work.prepared.model, work.quantized
    pair = _Pair(folder / "float.onnx", folder / "int8.onnx", tuple(s.name for s in io.outputs(model)))
    io.save_in_place(model, pair.float_)
    io.save_in_place(quantized.write(quantized.encoding), pair.int8)
    return pair


def _settle(work: _Work, recipe: Recipe, folder: Path, progress: Progress) -> tuple[_Work, _Pair, tuple[Score, Score]]:
    """Score float and int8; where int8 loses more than is allowed, leave operators float until it does not."""
    pair = _write_pair(work, folder)
    progress("evaluating float", 0, 0)
    reference = run.session(pair.float_)
    before = Score(kind="agreement", value=1.0, samples=len(work.held))
    if work.scorer is not None:
        before = evaluate_score(work.scorer, reference, work.scorer_name)
    progress("evaluating int8", 0, 0)
    after = _score(work, reference, run.session(pair.int8))
    allowed = recipe.max_drop
    if allowed is None or before.value - after.value <= allowed:
        return work, pair, (before, after)

    def rate(model: ir.Model) -> float:
        return _score(work, reference, run.session(model)).value

    feed = next(iter(work.held))
    found, curve = search(work.quantized, work.quantized.noises(), rate, before.value - allowed, feed, progress)
    work = replace(work, quantized=found, curve=curve)
    pair = _write_pair(work, folder)
    after = _score(work, reference, run.session(pair.int8))
    if before.value - after.value > allowed:
        raise GateError(
            f"int8 scores {after.value:.4f} where float scores {before.value:.4f}, a drop of more than {allowed:g}, "
            f"with {curve[-1].float_nodes} operators left float",
            hint="give more representative calibration data, or allow a larger drop",
        )
    return work, pair, (before, after)


def _score(work: _Work, reference: InferenceSession, engine: InferenceSession) -> Score:
    if work.scorer is not None:
        return evaluate_score(work.scorer, engine, work.scorer_name)
    try:
        return agreement_score(reference, engine, work.held)
    except run.OrtError as error:
        what = f"onnxruntime cannot run the model on a sample that is held out ({run.one_line(error)})"
        raise DataError(what, where=work.data.source, hint="mend or remove the sample") from None


def _golden(pair: _Pair, held: CalibrationData) -> package.Golden:
    engine = run.session(pair.int8, threads=1)
    feeds: list[Feed] = list(held.take(GOLDEN_SAMPLES))
    outputs: list[dict[str, Array]] = [dict(zip(pair.outputs, engine.run(None, feed), strict=True)) for feed in feeds]
    return package.Golden(tuple(feeds), tuple(outputs))


def _bench(
    pair: _Pair, name: str, scores: tuple[Score, Score], feed: Feed, recipe: Recipe, progress: Progress
) -> tuple[Measurement, ...]:
    subjects = [
        Subject(pair.float_, name, "fp32", target="host", feeds=feed, score=scores[0]),
        Subject(pair.int8, name, "int8", target="host", feeds=feed, score=scores[1]),
    ]
    target = detect_host()
    found = run_bench(subjects, settings=recipe.bench, target=target, progress=lambda line: progress(line, 0, 0))
    return found.measurements


def _package(
    folder: Path,
    model: ir.Model | Path,
    measured: Measurement,
    manifest: artifact.Manifest,
    profile: Target,
    golden: package.Golden,
) -> tuple[artifact.Manifest, Measurement]:
    """Write one target's folder; returns its manifest and its row of the table."""
    here = profile.name == "host"
    row = measured.model_copy(
        update={
            "target": profile.name,
            "evidence": "measured" if here else "host",
            "note": None if here else "timed with the same integers written for this machine's kernels",
        }
    )
    manifest = manifest.model_copy(update={"measurements": (row,)})
    manifest = package.write_artifact(folder, model, manifest=manifest, target=profile, golden=golden)
    found = verify(folder)
    if found.mismatches and not found.tolerance:
        raise GateError(
            f"the packaged model is not what was planned: {found.mismatches[0]}",
            where=profile.name,
            hint="report the model; meanwhile keep the operators around that output float in a recipe",
        )
    file = next(f for f in manifest.files if f.name in ("model.onnx", "model.ort"))
    return manifest, row.model_copy(update={"sha256": file.sha256, "size_bytes": file.size_bytes})


def _manifest(work: _Work, profile: Target, recipe: Recipe, reference: Score) -> artifact.Manifest:
    prepared, quantized, data = work.prepared, work.quantized, work.data
    plan = quantized.plan
    return artifact.Manifest(
        target=profile.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={p: version(p) for p in ("edge-toolchain", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy")},
        source=prepared.converted.source,
        recipe=recipe,
        calibration=artifact.CalibrationEntry(
            source=data.source,
            samples=len(data),
            fingerprint=data.fingerprint,
            preprocessing=data.preprocessing,
        ),
        inputs=tuple(_port(spec) for spec in io.inputs(quantized.model)),
        outputs=tuple(_port(spec) for spec in io.outputs(quantized.model)),
        files=(),
        precision=tuple(
            artifact.Precision(node=c.node, op=c.op, precision=c.precision, reason=c.reason) for c in plan.choices
        ),
        exactness=exactness(quantized.model, certify(quantized.model, plan), profile.int8.activations),
        steps=tuple(artifact.AccuracyStep(**asdict(step)) for step in quantized.steps),
        tradeoff=tuple(artifact.TradeOff(**asdict(point)) for point in work.curve),
        reference_score=reference,
        notes=(*prepared.converted.notes, *quantized.notes),
    )


def _port(spec: TensorSpec) -> artifact.Port:
    return artifact.Port(name=spec.name, dtype=str(spec.dtype), dims=spec.dims)
