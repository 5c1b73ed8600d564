"""TODO."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from toolchain.api.request import OpenedRequest, Prepared, open_job
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import GateError
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import DataSpec
from toolchain.devices.catalogue import load_target
from toolchain.evaluation.score import Evaluate
from toolchain.formats.manifest import TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.quantization.accuracy.mixed_precision import search
from toolchain.quantization.loop import Quantized, quantize_model


@dataclass(frozen=True)
class QuantizedFile:
    """What :func:`quantize` made. scores: of float and of int8. curve: the plans that were tried for ``max_drop``."""

    output: Path
    quantized: Quantized
    scores: tuple[Score, Score]
    curve: tuple[TradeOff, ...] = ()


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


@dataclass(frozen=True)
class _Work:
    """Everything up to the plan. prepared: the float model the plan is for, pruned where that was asked for.
    dense: the float model as it came. curve: the plans that were tried for ``max_drop``.
    """

    job: OpenedRequest
    prepared: Prepared
    quantized: Quantized
    pruned: Pruned | None = None
    curve: tuple[TradeOff, ...] = ()

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
    if recipe.prune.has_goal:
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
    thinned = folder / "pruned.onnx" if work.pruned is not None and work.pruned.record.helped else None
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
    found, curve = search(work.quantized, work.quantized.noise_sources(), rate, before.value - allowed, feed, progress)
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
