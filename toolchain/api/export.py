"""`export`: make a verified int8 model, with its evidence, for each target.

    source ─convert─► model ─optimize─► float model ─observe─► observation       once
                                             │                      │
                                             └──── select, plan ────┘            once: all targets share the plan
                                                        │
                 for each target:  write (u8 or s8) ─► package ─► golden data    the same integers everywhere
                                                        │
                                       bench fp32 against int8, interleaved, on this computer

The stages do not import each other; this module connects them. All arguments are checked before the first slow step.
Everything is written to a temporary folder, which is renamed into place at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from toolchain.api.arguments import checked
from toolchain.api.int8_model import Int8Model, ModelFiles, Scores, accept, make_int8
from toolchain.api.prepare import Prepared
from toolchain.api.recipes import MaxDrop, read_recipe, with_prune
from toolchain.api.request import Freeze, Inputs, Metric, Request, check_request
from toolchain.api.verify import verify
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.bench import bench as run_bench
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import GateError, ModelError
from toolchain.core.files import check_output, replacing
from toolchain.core.progress import Progress, StageClock, silent
from toolchain.data.calibration import CalibrationData, DataSpec
from toolchain.data.tensors import Array, Feed
from toolchain.devices.detect import detect_host
from toolchain.formats.findings import ClippedTensor, NoiseSource
from toolchain.formats.manifest import CalibrationEntry, Manifest, StageTime, TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Measurement, Original, Results, Score
from toolchain.formats.target import Target
from toolchain.formats.verdict import Verdict
from toolchain.graph import io, run
from toolchain.inspection.findings import gather
from toolchain.packaging.golden import Golden
from toolchain.packaging.write import check_folder, write_artifact
from toolchain.pruning.goal import Pruned
from toolchain.quantization.exactness.certificate import certify, exactness
from toolchain.quantization.quantized import Quantized
from toolchain.report.compare import compare
from toolchain.report.html import page

GOLDEN_SAMPLES = 4
"""Held-out samples that are stored with an export, with their outputs."""


@dataclass(frozen=True)
class Exported:
    """Result of :func:`export`.

    Attributes:
        folder: where everything was written; each target has a folder of its own in it.
        results: the table's rows: fp32 first, then one for each target.
        manifests: the evidence of each target's folder.
        quantized: the plan and its evidence.
        prepared: the float model that was quantized.
        verdict: what is left of the float model's answer, part by part.
        curve: the plans that were tried to keep to the limits.
        pruned: the result of pruning; None without pruning.
        noises: the largest causes of the remaining error; empty without ``explain``.
        stages: the time that each stage took.
    """

    folder: Path
    results: Results
    manifests: tuple[Manifest, ...]
    quantized: Quantized
    prepared: Prepared
    verdict: Verdict
    curve: tuple[TradeOff, ...] = ()
    pruned: Pruned | None = None
    noises: tuple[NoiseSource, ...] = ()
    stages: tuple[StageTime, ...] = ()


@checked()
def export(
    source: ModelSource,
    *,
    targets: Sequence[str | Path | Target],
    calibration: DataSpec,
    output: str | Path = "exported",
    preprocess: str | Path | None = None,
    evaluate: Metric | None = None,
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    recipe: Recipe | str | Path | None = None,
    max_drop: MaxDrop | None = None,
    prune: float | None = None,
    explain: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Make a verified int8 model for each target, and compare it with the float model on this computer.

    Args:
        source: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module.
        targets: names of profiles, paths of profiles, or profiles.
        calibration: unlabelled samples, see :mod:`toolchain.data.calibration`. Without `evaluate`, a quarter of them is
            held out to measure agreement.
        output: folder to write; an earlier export in it is replaced.
        preprocess: the image pipeline for folders of images: ``imagenet``, ``imagenet-squash``, ``unit``, ``signed``,
            or the path of a TOML file.
        evaluate: a function, or ``package.module:callable``: called with ``run(feed) -> outputs``, returns a number,
            higher is better. Without it the score is how often the model agrees with the float model.
        inputs: the inputs of a torch module, such as ``["image:batch,3,224,224"]``; not needed for ONNX files.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        recipe: a recipe, or the path of one; None is the recommended one.
        max_drop: the largest loss of score that is accepted; operators stay float until it holds. "off": the model is
            written whatever it lost. None: the recipe's; where it has none, no part of the answer may be lost.
        prune: prune first, to this speed-up over int8 alone, such as 1.2.
        explain: also measure which roundings cause the remaining error.
        progress: is told about every stage.

    Returns:
        The folder and everything that was measured.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: parity failed, or too much was lost; nothing was written.
    """
    recipe = with_prune(read_recipe(recipe, max_drop), {"speedup": prune}, speedup="prune")
    output, clock = Path(output), StageClock(progress)
    request = check_request(
        source,
        calibration,
        targets=targets,
        inputs=inputs,
        freeze=freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        progress=clock,
    )
    profiles = request.targets
    for profile in profiles:
        check_folder(output / profile.name)
    for name in ("results.json", "findings.json", "report.html"):
        check_output(output / name)
    made = make_int8(request, recipe)
    with tempfile.TemporaryDirectory(prefix="toolchain-") as scratch, replacing(output / "results.json") as folder:
        made, files, scores = accept(made, recipe, Path(scratch))
        quantized = made.quantized
        clock("computing golden outputs")
        golden = _golden(files, made.opened.held)
        clipped = quantized.clipped()
        rows = _bench(request, files, scores, golden.feeds[0], recipe)
        measurements, manifests = [*rows[:-1]], []
        for number, profile in enumerate(profiles):
            clock("packaging", number, len(profiles))
            manifest = _manifest(made, profile, recipe, scores.dense, clipped)
            manifest = manifest.model_copy(update={"stages": StageTime.of(clock.seconds())})
            encoding = profile.int8.activations
            model = files.int8 if encoding == quantized.encoding else quantized.write(encoding)
            manifest, row = _package(folder / profile.name, model, rows[-1], manifest, profile, golden)
            manifests.append(manifest)
            measurements.append(row)
        results = Results(measurements=tuple(measurements))
        (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
        noises = quantized.noise_sources() if explain else ()
        clock("writing the report")
        findings = gather(
            made.dense,
            quantized,
            files.variants,
            rows,
            golden.feeds[0],
            profiles,
            pruned=made.pruned,
            noises=noises,
        )
        (folder / "findings.json").write_text(findings.to_json(), encoding="utf-8")
        report = page.render(compare([folder]), page.read_details(folder))
        (folder / "report.html").write_text(report, encoding="utf-8")
    return Exported(
        output,
        results,
        tuple(manifests),
        quantized,
        made.prepared,
        made.verdict,
        made.curve,
        made.pruned,
        noises,
        StageTime.of(clock.seconds()),
    )


def _golden(files: ModelFiles, held: CalibrationData) -> Golden:
    engine = run.session(files.int8, threads=1)
    feeds: list[Feed] = list(held.take(GOLDEN_SAMPLES))
    outputs: list[dict[str, Array]] = [dict(zip(files.outputs, engine.run(None, feed), strict=True)) for feed in feeds]
    return Golden(tuple(feeds), tuple(outputs))


def _bench(request: Request, files: ModelFiles, scores: Scores, feed: Feed, recipe: Recipe) -> tuple[Measurement, ...]:
    name = request.model_name
    subjects = [Subject(files.dense, name, "fp32", target="host", feeds=feed, score=scores.dense)]
    if files.pruned is not None:
        subjects.append(Subject(files.pruned, name, "pruned", target="host", feeds=feed, score=scores.pruned))
    subjects.append(Subject(files.int8, name, files.variant, target="host", feeds=feed, score=scores.int8))
    source = _runnable_source(request, feed)
    own = [Subject(source, name, "source", target="host", feeds=feed)] if source is not None else []
    timed = run_bench([*subjects, *own], settings=recipe.bench, target=detect_host(), progress=request.progress)
    rows = list(timed.measurements)
    if source is not None and (measured := rows.pop()).latency is not None:
        original = Original(name=source.name, size_bytes=measured.size_bytes, latency=measured.latency)
        rows[0] = rows[0].model_copy(update={"original": original})
    return tuple(rows)


def _runnable_source(request: Request, feed: Feed) -> Path | None:
    """Return the path of the user's own ONNX file if onnxruntime takes the feed as it is; None otherwise."""
    if not isinstance(request.source, str | Path) or Path(request.source).suffix.lower() != ".onnx":
        return None
    path = Path(request.source)
    try:
        run.run(run.session(path), [feed])
    except (ModelError, *run.OrtError):
        return None  # the converted model reads other types, or the file is one that was mended on import
    return path


def _package(
    folder: Path,
    model: ir.Model | Path,
    measured: Measurement,
    manifest: Manifest,
    profile: Target,
    golden: Golden,
) -> tuple[Manifest, Measurement]:
    """Write one target's folder, verify it, and return its manifest and its row of the table."""
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
    verified = verify(folder)
    if verified.mismatches and not verified.tolerance:
        raise GateError(
            f"the packaged model does not compute what was planned: {verified.mismatches[0]}",
            where=profile.name,
            hint="report the model; meanwhile keep the operators around that output float in a recipe",
        )
    file = next(f for f in manifest.files if f.name in ("model.onnx", "model.ort"))
    return manifest, row.model_copy(update={"sha256": file.sha256, "size_bytes": file.size_bytes})


def _manifest(
    made: Int8Model, profile: Target, recipe: Recipe, reference: Score, clipped: tuple[ClippedTensor, ...]
) -> Manifest:
    prepared, quantized, data = made.prepared, made.quantized, made.opened.data
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
        verdict=made.verdict,
        clipped=clipped,
        tradeoff=made.curve,
        reference_score=reference,
        notes=(*prepared.notes, *([made.pruned.record.summary] if made.pruned else []), *quantized.notes),
    )
