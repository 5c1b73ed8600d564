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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from toolchain import artifact, package
from toolchain.bench import Subject
from toolchain.bench import bench as run_bench
from toolchain.convert import ModelSource
from toolchain.data import CalibrationData, DataSpec
from toolchain.detect import detect_host
from toolchain.errors import GateError, InputError
from toolchain.files import check_output, replacing
from toolchain.graph import io, run
from toolchain.int8 import Quantized, quantize_model
from toolchain.measurement import Measurement, Results, Score
from toolchain.mixed import Point, search
from toolchain.preparation import Job, Prepared, Progress, model_name, open_job, silent
from toolchain.pruning import Pruned, prune_model
from toolchain.quantize import certify, exactness
from toolchain.recipe import Recipe
from toolchain.report import compare, html
from toolchain.report.gather import gather
from toolchain.score import Evaluate
from toolchain.sensitivity import Noise
from toolchain.target import Target, load_target
from toolchain.tensors import Array, Feed, TensorSpec
from toolchain.verification import verify

GOLDEN_SAMPLES = 4


@dataclass(frozen=True)
class Exported:
    """What an export made. results: the fp32 row first, then a row for each target. curve: the plans that were tried
    for ``max_drop``. pruned: what was cut out first, where the recipe asks for it. noises: where they were asked for.
    """

    folder: Path
    results: Results
    manifests: tuple[artifact.Manifest, ...]
    quantized: Quantized
    prepared: Prepared
    curve: tuple[Point, ...] = ()
    pruned: Pruned | None = None
    noises: tuple[Noise, ...] = ()


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
    explain: bool = False,
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
        explain: also measure which roundings make the error that is left.
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
    for name in ("results.json", "findings.json", "report.html"):
        check_output(output / name)
    work = _prepare_int8(
        source,
        calibration,
        inputs,
        freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        recipe=recipe,
        profiles=profiles,
        progress=progress,
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch, replacing(output / "results.json") as folder:
        work, files, scores = _settle(work, recipe, Path(scratch), progress)
        quantized = work.quantized
        golden = _golden(files, work.job.held)
        rows = _bench(files, model_name(source), scores, golden.feeds[0], recipe, progress)
        results, manifests = [*rows[:-1]], []
        for number, profile in enumerate(profiles):
            progress(f"packaging for {profile.name}", number, len(profiles))
            manifest = _manifest(work, profile, recipe, scores.dense)
            encoding = profile.int8.activations
            model = files.int8 if encoding == quantized.encoding else quantized.write(encoding)
            manifest, row = _package(folder / profile.name, model, rows[-1], manifest, profile, golden)
            manifests.append(manifest)
            results.append(row)
        found = Results(measurements=tuple(results))
        (folder / "results.json").write_text(found.to_json(), encoding="utf-8")
        progress("writing the report", 0, 0)
        causes = quantized.noises() if explain else ()
        findings = gather(
            work.dense, quantized, files.models, rows, golden.feeds[0], profiles, pruned=work.pruned, noises=causes
        )
        (folder / "findings.json").write_text(findings.to_json(), encoding="utf-8")
        page = html.page(compare([folder]), html.details(folder))
        (folder / "report.html").write_text(page, encoding="utf-8")
    return Exported(output, found, tuple(manifests), quantized, work.prepared, work.curve, work.pruned, causes)


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
        source,
        calibration,
        inputs,
        freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        recipe=recipe,
        profiles=[profile],
        progress=progress,
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch:
        work, _, scores = _settle(work, recipe, Path(scratch), progress)
    io.save(work.quantized.write(profile.int8.activations), output)
    return QuantizedFile(Path(output), work.quantized, (scores.dense, scores.int8), work.curve)


# ---------------------------------------------------------------------------------- what export is made of


@dataclass(frozen=True)
class _Work:
    """Everything up to the plan. prepared: the float model the plan is for, pruned where that was asked for.
    dense: the float model as it came. curve: the plans that were tried for ``max_drop``.
    """

    job: Job
    prepared: Prepared
    quantized: Quantized
    pruned: Pruned | None = None
    curve: tuple[Point, ...] = ()

    @property
    def dense(self) -> ir.Model:
        """The float model before pruning."""
        return self.job.prepared.model


def _prepare_int8(
    source: ModelSource,
    calibration: DataSpec,
    inputs: Sequence[TensorSpec],
    freeze: Mapping[str, int] | None,
    *,
    preprocess: str | Path | None,
    evaluate: str | Evaluate | None,
    recipe: Recipe,
    profiles: Sequence[Target],
    progress: Progress,
) -> _Work:
    """Check what was given, then convert, optimize, prune, observe and plan."""
    job = open_job(
        source, calibration, inputs, freeze, preprocess=preprocess, evaluate=evaluate, recipe=recipe, progress=progress
    )
    prepared, pruned = job.prepared, None
    if recipe.prune.wanted:
        pruned = prune_model(
            prepared.model,
            job.train,
            recipe.prune,
            check=job.held,
            int8=True,
            multiple=max(profile.channel_multiple for profile in profiles),
            here=any(profile.name == "host" for profile in profiles),
            progress=progress,
        )
        prepared = prepared.with_model(pruned.model)
    quantized = quantize_model(prepared.model, job.train, recipe, check=job.held, progress=progress)
    return _Work(job, prepared, quantized, pruned)


@dataclass(frozen=True)
class _Files:
    """The float models and the int8 one as this machine takes activations: the same integers as every target's.
    pruned: None where nothing was.
    """

    dense: Path
    pruned: Path | None
    int8: Path
    outputs: tuple[str, ...]

    @property
    def models(self) -> dict[str, Path]:
        """By the variants' names."""
        if self.pruned is None:
            return {"fp32": self.dense, "int8": self.int8}
        return {"fp32": self.dense, "pruned": self.pruned, "pruned+int8": self.int8}


@dataclass(frozen=True)
class _Scores:
    dense: Score
    pruned: Score | None
    int8: Score


def _write_files(work: _Work, folder: Path) -> _Files:
    quantized = work.quantized
    names = tuple(spec.name for spec in io.outputs(work.dense))
    thinned = folder / "pruned.onnx" if work.pruned is not None and work.pruned.helped else None
    files = _Files(folder / "float.onnx", thinned, folder / "int8.onnx", names)
    io.save_in_place(work.dense, files.dense)
    if thinned is not None:
        io.save_in_place(work.prepared.model, thinned)
    io.save_in_place(quantized.write(quantized.encoding), files.int8)
    return files


def _settle(work: _Work, recipe: Recipe, folder: Path, progress: Progress) -> tuple[_Work, _Files, _Scores]:
    """Score all; where int8 loses more than is allowed, leave operators float until it does not."""
    files, job = _write_files(work, folder), work.job
    progress("evaluating float", 0, 0)
    reference = run.session(files.dense)
    before = Score(kind="agreement", value=1.0, samples=len(job.held))
    if job.scorer is not None:
        before = job.score(reference, reference)
    thinned = job.score(reference, run.session(files.pruned)) if files.pruned is not None else None
    progress("evaluating int8", 0, 0)
    after = job.score(reference, run.session(files.int8))
    allowed = recipe.max_drop
    if allowed is None or before.value - after.value <= allowed:
        return work, files, _Scores(before, thinned, after)
    if thinned is not None and before.value - thinned.value > allowed:
        raise GateError(
            f"pruned, it scores {thinned.value:.4f} and before {before.value:.4f}, a drop of more than {allowed:g}",
            hint="prune less, give more calibration data, or allow a larger drop",
        )

    def rate(model: ir.Model) -> float:
        return job.score(reference, run.session(model)).value

    feed = next(iter(job.held))
    found, curve = search(work.quantized, work.quantized.noises(), rate, before.value - allowed, feed, progress)
    work = replace(work, quantized=found, curve=curve)
    files = _write_files(work, folder)
    after = job.score(reference, run.session(files.int8))
    if before.value - after.value > allowed:
        raise GateError(
            f"int8 scores {after.value:.4f} where float scores {before.value:.4f}, a drop of more than {allowed:g}, "
            f"with {curve[-1].float_nodes} operators left float",
            hint="give more representative calibration data, or allow a larger drop",
        )
    return work, files, _Scores(before, thinned, after)


def _golden(files: _Files, held: CalibrationData) -> package.Golden:
    engine = run.session(files.int8, threads=1)
    feeds: list[Feed] = list(held.take(GOLDEN_SAMPLES))
    outputs: list[dict[str, Array]] = [dict(zip(files.outputs, engine.run(None, feed), strict=True)) for feed in feeds]
    return package.Golden(tuple(feeds), tuple(outputs))


def _bench(
    files: _Files, name: str, scores: _Scores, feed: Feed, recipe: Recipe, progress: Progress
) -> tuple[Measurement, ...]:
    subjects = [Subject(files.dense, name, "fp32", target="host", feeds=feed, score=scores.dense)]
    if files.pruned is not None:
        subjects.append(Subject(files.pruned, name, "pruned", target="host", feeds=feed, score=scores.pruned))
    variant = "int8" if files.pruned is None else "pruned+int8"
    subjects.append(Subject(files.int8, name, variant, target="host", feeds=feed, score=scores.int8))
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
    prepared, quantized, data = work.prepared, work.quantized, work.job.data
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
        notes=(*prepared.converted.notes, *([work.pruned.summary] if work.pruned else []), *quantized.notes),
    )


def _port(spec: TensorSpec) -> artifact.Port:
    return artifact.Port(name=spec.name, dtype=str(spec.dtype), dims=spec.dims)
