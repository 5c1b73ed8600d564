"""`prune`: a model and unlabelled data in, a smaller and faster float ONNX file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.api.request import Prepared, open_job
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import InputError
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import DataSpec
from toolchain.devices.catalogue import load_target
from toolchain.evaluation.score import Evaluate
from toolchain.formats.findings import Pruning
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.pruning.sparsity import parse_sparsity, sparsify


@dataclass(frozen=True)
class PrunedFile:
    """What :func:`prune` made. scores: before and after."""

    output: Path
    pruned: Pruned
    prepared: Prepared
    scores: tuple[Score, Score]


def prune(
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
    for_int8: bool = False,
    sparsity: str | None = None,
    progress: Progress = silent,
) -> PrunedFile:
    """Prune a model and write it.

    Args:
        source: a model as :func:`toolchain.api.export.export` takes it, and so all that follows.
        calibration: unlabelled samples.
        output: the ``.onnx`` file to write.
        target: whose channel multiple is kept; latency is measured here for ``host`` and counted for others.
        inputs: what a torch module takes.
        freeze: sizes for dynamic axes.
        preprocess: the image pipeline, for folders of images.
        evaluate: scores the model before and after; None: agreement.
        recipe: its ``prune`` says how far and how.
        for_int8: int8 follows, so latency is int8's.
        sparsity: a share or N:M of single weights to zero, instead of a goal for the graph.
        progress: told about every step.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        GateError: the cut could not be proved.
    """
    recipe = recipe or Recipe()
    profile = load_target(target) if isinstance(target, str) else target
    check_output(output)
    zeros = parse_sparsity(sparsity) if sparsity is not None else None
    if recipe.prune.has_goal == (zeros is not None):
        both = "a goal and a sparsity are given" if zeros is not None else "no goal is given"
        raise InputError(both, where="prune", hint="give one of --speedup, --latency-ms, --keep and --sparsity")
    job = open_job(
        source, calibration, inputs, freeze, preprocess=preprocess, evaluate=evaluate, recipe=recipe, progress=progress
    )
    model = job.prepared.model
    if zeros is not None:
        sparse = sparsify(model, zeros)
        before, after = sparse.compressed_bytes
        note = (
            f"{sparse.zeros:.0%} of the weights are zero: compressed {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB; "
            "no faster, since onnxruntime's CPU provider multiplies zeros like any other number"
        )
        found = Pruned(sparse.model, Pruning(helped=True, notes=(note,)))
    else:
        found = prune_model(
            model,
            job.train,
            recipe.prune,
            check=job.held,
            int8=for_int8,
            multiple=profile.channel_multiple,
            here=profile.name == "host",
            progress=progress,
        )
    if found.record.helped and zeros is None:
        found = replace(found, model=job.prepared.with_model(found.model).model)
    progress("evaluating", 0, 0)
    reference, engine = run.session(model), run.session(found.model)
    scores = job.score(reference, reference), job.score(reference, engine)
    io.save(found.model, output)
    return PrunedFile(Path(output), found, job.prepared, scores)
