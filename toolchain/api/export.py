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
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from toolchain.api.quantize import _Files, _prepare_int8, _Scores, _settle, _Work
from toolchain.api.request import Prepared, model_name
from toolchain.api.verify import verify
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.bench import bench as run_bench
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import GateError, InputError
from toolchain.core.files import check_output, replacing
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData, DataSpec
from toolchain.data.tensors import Array, Feed
from toolchain.devices.catalogue import load_target
from toolchain.devices.detect import detect_host
from toolchain.evaluation.score import Evaluate
from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import CalibrationEntry, Manifest, TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Measurement, Results, Score
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run
from toolchain.inspection.findings import gather
from toolchain.packaging.golden import Golden
from toolchain.packaging.write import check_folder, write_artifact
from toolchain.pruning.goal import Pruned
from toolchain.quantization.exactness.certificate import certify, exactness
from toolchain.quantization.loop import Quantized
from toolchain.report.compare import compare
from toolchain.report.html import page

GOLDEN_SAMPLES = 4


@dataclass(frozen=True)
class Exported:
    """What an export made. results: the fp32 row first, then a row for each target. curve: the plans that were tried
    for ``max_drop``. pruned: what was cut out first, where the recipe asks for it. noises: where they were asked for.
    """

    folder: Path
    results: Results
    manifests: tuple[Manifest, ...]
    quantized: Quantized
    prepared: Prepared
    curve: tuple[TradeOff, ...] = ()
    pruned: Pruned | None = None
    noises: tuple[NoiseSource, ...] = ()


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
        calibration: see :mod:`toolchain.data.calibration`. Without `evaluate` a quarter of it is held out to measure
            agreement.
        output: folder to write; an earlier export in it is replaced.
        inputs: what a torch module takes.
        freeze: sizes for dynamic axes.
        preprocess: the image pipeline, for folders of images.
        evaluate: ``package.module:callable`` or a function, see :data:`toolchain.evaluation.score.Evaluate`.
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
        check_folder(output / profile.name)
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
        causes = quantized.noise_sources() if explain else ()
        findings = gather(
            work.dense, quantized, files.models, rows, golden.feeds[0], profiles, pruned=work.pruned, noises=causes
        )
        (folder / "findings.json").write_text(findings.to_json(), encoding="utf-8")
        report = page.render(compare([folder]), page.read_details(folder))
        (folder / "report.html").write_text(report, encoding="utf-8")
    return Exported(output, found, tuple(manifests), quantized, work.prepared, work.curve, work.pruned, causes)


# ---------------------------------------------------------------------------------- what export is made of


def _golden(files: _Files, held: CalibrationData) -> Golden:
    engine = run.session(files.int8, threads=1)
    feeds: list[Feed] = list(held.take(GOLDEN_SAMPLES))
    outputs: list[dict[str, Array]] = [dict(zip(files.outputs, engine.run(None, feed), strict=True)) for feed in feeds]
    return Golden(tuple(feeds), tuple(outputs))


def _bench(
    files: _Files, name: str, scores: _Scores, feed: Feed, recipe: Recipe, progress: Progress
) -> tuple[Measurement, ...]:
    subjects = [Subject(files.dense, name, "fp32", target="host", feeds=feed, score=scores.dense)]
    if files.pruned is not None:
        subjects.append(Subject(files.pruned, name, "pruned", target="host", feeds=feed, score=scores.pruned))
    variant = "int8" if files.pruned is None else "pruned+int8"
    subjects.append(Subject(files.int8, name, variant, target="host", feeds=feed, score=scores.int8))
    target = detect_host()
    found = run_bench(subjects, settings=recipe.bench, target=target, progress=progress)
    return found.measurements


def _package(
    folder: Path,
    model: ir.Model | Path,
    measured: Measurement,
    manifest: Manifest,
    profile: Target,
    golden: Golden,
) -> tuple[Manifest, Measurement]:
    """Write one target's folder; returns its manifest and its row of the table."""
    here = profile.name == "host"
    row = measured.model_copy(
        update={
            "target": profile.name,
            "evidence": "measured" if here else "host",
            "note": None if here else "timed as this computer's version of the same int8 model",
        }
    )
    manifest = manifest.model_copy(update={"measurements": (row,)})
    manifest = write_artifact(folder, model, manifest=manifest, target=profile, golden=golden)
    found = verify(folder)
    if found.mismatches and not found.tolerance:
        raise GateError(
            f"the packaged model is not what was planned: {found.mismatches[0]}",
            where=profile.name,
            hint="report the model; meanwhile keep the operators around that output float in a recipe",
        )
    file = next(f for f in manifest.files if f.name in ("model.onnx", "model.ort"))
    return manifest, row.model_copy(update={"sha256": file.sha256, "size_bytes": file.size_bytes})


def _manifest(work: _Work, profile: Target, recipe: Recipe, reference: Score) -> Manifest:
    prepared, quantized, data = work.prepared, work.quantized, work.job.data
    plan = quantized.plan
    return Manifest(
        target=profile.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={p: version(p) for p in ("edge-toolchain", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy")},
        source=prepared.converted.source,
        recipe=recipe,
        calibration=CalibrationEntry(
            source=data.source,
            samples=len(data),
            fingerprint=data.fingerprint,
            preprocessing=data.preprocessing,
        ),
        inputs=tuple(io.inputs(quantized.model)),
        outputs=tuple(io.outputs(quantized.model)),
        files=(),
        precision=plan.choices,
        exactness=exactness(quantized.model, certify(quantized.model, plan), profile.int8.activations),
        steps=quantized.steps,
        tradeoff=work.curve,
        reference_score=reference,
        notes=(*prepared.converted.notes, *([work.pruned.record.summary] if work.pruned else []), *quantized.notes),
    )
