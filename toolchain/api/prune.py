"""`prune`: make a float model smaller and faster, with unlabelled samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.api.prepare import Prepared
from toolchain.api.recipes import MaxDrop, read_recipe, with_prune
from toolchain.api.request import Freeze, Inputs, Metric, check_request, open_request
from toolchain.conversion.source import ModelSource
from toolchain.core.errors import InputError
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import DataSpec
from toolchain.formats.findings import Pruning
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.target import Target
from toolchain.graph import io
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.pruning.loss import LossLimit, PruningLossError
from toolchain.pruning.sparsity import Sparse, parse_sparsity, sparsify


@dataclass(frozen=True)
class PrunedFile:
    """Result of :func:`prune`.

    Attributes:
        output: the file.
        pruned: the pruned model, and a record of what was removed and gained.
        prepared: the float model before pruning.
        scores: scores before and after pruning.
    """

    output: Path
    pruned: Pruned
    prepared: Prepared
    scores: tuple[Score, Score]


@checked()
def prune(
    source: ModelSource,
    *,
    calibration: DataSpec,
    output: str | Path,
    target: str | Path | Target = "host",
    speedup: float | None = None,
    latency_ms: float | None = None,
    keep: float | None = None,
    criterion: str | None = None,
    minutes: float | None = None,
    for_int8: bool = False,
    sparsity: float | str | None = None,
    max_drop: MaxDrop | None = None,
    preprocess: str | Path | None = None,
    evaluate: Metric | None = None,
    inputs: Inputs = (),
    freeze: Freeze | None = None,
    recipe: Recipe | str | Path | None = None,
    progress: Progress = silent,
) -> PrunedFile:
    """Remove channels, heads and branches of a float model until it reaches a goal, and write it.

    Give one of `speedup`, `latency_ms`, `keep` and `sparsity`, or a recipe with a goal.

    Args:
        source: an ``.onnx`` or ``.pt2`` file, ``package.module:callable`` giving an ``nn.Module``, or a module.
        calibration: unlabelled samples, see :mod:`toolchain.data.calibration`.
        output: the ``.onnx`` file to write.
        target: name of a profile, path of one, or a profile; channel counts stay multiples of its number. Latency is
            measured on this computer for ``host``, and counted from operations for other targets.
        speedup: target speed-up, such as 1.3.
        latency_ms: target latency of one inference, in milliseconds.
        keep: share of the multiply-accumulates to keep, such as 0.7.
        criterion: which channels go first: ``obs``, ``activation``, ``l2``, ``l1`` or ``random``.
        minutes: train for this many minutes after pruning, without labels; needs PyTorch.
        for_int8: measure the latency of the int8 model that is made afterwards.
        sparsity: set single weights to zero instead: a share such as ``0.5``, or N:M such as ``2:4``.
        max_drop: the largest loss of score that is accepted. "off": the model is written whatever it lost. None: the
            recipe's; where it has none, 5 % of the score by `evaluate`, and without `evaluate` the floor of pruning.
        preprocess: the image pipeline for folders of images: ``imagenet``, ``imagenet-squash``, ``unit``, ``signed``,
            or the path of a TOML file.
        evaluate: a function, or ``package.module:callable``: called with ``run(feed) -> outputs``, returns a number,
            higher is better. Without it the score is how often the model agrees with the float model.
        inputs: the inputs of a torch module, such as ``["image:batch,3,224,224"]``; not needed for ONNX files.
        freeze: sizes for dynamic axes, such as ``{"batch": 1}`` or ``["batch=1"]``.
        recipe: a recipe, or the path of one; its ``prune`` part is used.
        progress: is told about every stage.

    Returns:
        The file and the effect of pruning.

    Raises:
        InputError and its subclasses: something given cannot be used; nothing was written.
        PruningLossError: the goal costs more than is allowed; its `curve` shows what smaller cuts gain and lose.
            Nothing was written.
        GateError: parity failed, the goal is out of reach, or the pruned model does not compute what it should;
            nothing was written.
    """
    goal = {"speedup": speedup, "latency_ms": latency_ms, "keep": keep, "criterion": criterion, "minutes": minutes}
    recipe = with_prune(read_recipe(recipe, max_drop), goal)
    check_output(output)
    zeros = parse_sparsity(str(sparsity)) if sparsity is not None else None
    if recipe.prune.has_goal == (zeros is not None):
        what = "a goal and a sparsity are given" if zeros is not None else "no goal is given"
        raise InputError(what, where="prune", hint="give one of --speedup, --latency-ms, --keep and --sparsity")
    request = check_request(
        source,
        calibration,
        targets=[target],
        inputs=inputs,
        freeze=freeze,
        preprocess=preprocess,
        evaluate=evaluate,
        progress=progress,
    )
    opened = open_request(request, recipe.calibrate.samples)
    model, profile = opened.prepared.model, request.targets[0]
    progress("evaluating float")
    before = opened.scorer.score(model)
    limit = opened.scorer.loss_limit(model, before, recipe.max_drop)
    if zeros is not None:
        pruned = _sparse(sparsify(model, zeros), limit)
    else:
        pruned = prune_model(
            model,
            opened.train,
            recipe.prune,
            check=opened.held,
            limit=limit,
            int8=for_int8,
            multiple=profile.channel_multiple,
            here=profile.name == "host",
            progress=progress,
        )
    io.save(pruned.model, output)
    return PrunedFile(Path(output), pruned, opened.prepared, (before, pruned.score or before))


def _sparse(sparse: Sparse, limit: LossLimit) -> Pruned:
    """Return a model with zero weights as a result of pruning.

    Raises:
        PruningLossError: it loses too much.
    """
    loss = limit.loss(sparse.model)
    if loss.fault is not None:
        what = f"{sparse.zeros:.0%} zeros cost too much: {loss.fault}"
        hint = "ask for fewer, or accept the loss with --max-drop"
        raise PruningLossError(what, where="--sparsity", hint=hint, curve=())
    before, after = sparse.compressed_bytes
    note = (
        f"{sparse.zeros:.0%} of the weights are zero: compressed {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB; "
        "no faster, since onnxruntime's CPU provider multiplies zeros like any other number"
    )
    return Pruned(sparse.model, Pruning(helped=True, verdict=loss.verdict, lost=loss.told, notes=(note,)), loss.score)
