"""Making an int8 model whose score is within the limit: the part that `export` and `quantize` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from toolchain.api.prepare import Prepared
from toolchain.api.request import OpenedRequest, Request, open_request
from toolchain.core.errors import GateError
from toolchain.formats.manifest import TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.graph import io, run
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.quantization.accuracy.mixed_precision import search
from toolchain.quantization.loop import Quantized, quantize_model


@dataclass(frozen=True)
class Int8Model:
    """An int8 model and what it was made from.

    Attributes:
        opened: the request, with the float model before pruning.
        prepared: the float model that was quantized; pruned where the recipe asks for it.
        quantized: the plan and its evidence.
        score: of the float model before pruning.
        pruned: the result of pruning; None without pruning.
        curve: the plans that were tried to meet ``max_drop``.
    """

    opened: OpenedRequest
    prepared: Prepared
    quantized: Quantized
    score: Score
    pruned: Pruned | None = None
    curve: tuple[TradeOff, ...] = ()

    @property
    def dense(self) -> ir.Model:
        """The float model before pruning."""
        return self.opened.prepared.model


@dataclass(frozen=True)
class ModelFiles:
    """Files of the float models, and of the int8 model as this computer runs it; all targets have the same integers.

    Attributes:
        dense: the float model.
        pruned: the pruned float model; None where nothing was pruned.
        int8: the int8 model.
        outputs: names of the models' outputs.
    """

    dense: Path
    pruned: Path | None
    int8: Path
    outputs: tuple[str, ...]

    @property
    def variants(self) -> dict[str, Path]:
        """The files by the name of their variant in tables."""
        if self.pruned is None:
            return {"fp32": self.dense, "int8": self.int8}
        return {"fp32": self.dense, "pruned": self.pruned, "pruned+int8": self.int8}


@dataclass(frozen=True)
class Scores:
    """Scores of the float model, of the pruned one (None where nothing was pruned) and of the int8 model."""

    dense: Score
    pruned: Score | None
    int8: Score


def make_int8(request: Request, recipe: Recipe) -> Int8Model:
    """Convert, optimize, prune, observe and plan.

    Raises:
        InputError and its subclasses: something given cannot be used.
        GateError: parity failed.
    """
    opened = open_request(request, recipe.calibrate.samples)
    prepared, pruned = opened.prepared, None
    score = Score(kind="agreement", value=1.0, samples=len(opened.held))
    if opened.scorer.metric is not None:
        request.progress("evaluating float")
        score = opened.scorer.score_float(prepared.model)
    if recipe.prune.has_goal:
        pruned = prune_model(
            prepared.model,
            opened.train,
            recipe.prune,
            check=opened.held,
            int8=True,
            multiple=max(profile.channel_multiple for profile in request.targets),
            here=any(profile.name == "host" for profile in request.targets),
            progress=request.progress,
        )
        prepared = prepared.with_model(pruned.model)
    quantized = quantize_model(prepared.model, opened.train, recipe, check=opened.held, progress=request.progress)
    return Int8Model(opened, prepared, quantized, score, pruned)


def write_files(made: Int8Model, folder: Path) -> ModelFiles:
    """Write the models into a scratch folder."""
    names = tuple(spec.name for spec in io.outputs(made.dense))
    pruned = folder / "pruned.onnx" if made.pruned is not None and made.pruned.record.helped else None
    files = ModelFiles(folder / "float.onnx", pruned, folder / "int8.onnx", names)
    io.save_in_place(made.dense, files.dense)
    if pruned is not None:
        io.save_in_place(made.prepared.model, pruned)
    io.save_in_place(made.quantized.write(made.quantized.encoding), files.int8)
    return files


def meet_max_drop(made: Int8Model, recipe: Recipe, folder: Path) -> tuple[Int8Model, ModelFiles, Scores]:
    """Score the models. If int8 loses more than ``max_drop``, keep operators in float until it does not.

    Raises:
        GateError: the limit cannot be met.
        InputError: the user's metric fails.
    """
    files, opened, progress = write_files(made, folder), made.opened, made.opened.request.progress
    reference, scorer, before = run.session(files.dense), opened.scorer, made.score
    pruned = scorer.score(reference, run.session(files.pruned)) if files.pruned is not None else None
    progress("evaluating int8")
    after = scorer.score(reference, run.session(files.int8))
    allowed = recipe.max_drop
    if allowed is None or before.value - after.value <= allowed:
        return made, files, Scores(before, pruned, after)
    if pruned is not None and before.value - pruned.value > allowed:
        raise GateError(
            f"the pruned model scores {pruned.value:.4f} where the original scores {before.value:.4f}, "
            f"a drop of more than {allowed:g}",
            hint="prune less, give more calibration data, or allow a larger drop",
        )

    def rate(model: ir.Model) -> float:
        return scorer.score(reference, run.session(model)).value

    quantized, feed = made.quantized, next(iter(opened.held))
    chosen, curve = search(quantized, quantized.noise_sources(), rate, before.value - allowed, feed, progress)
    made = replace(made, quantized=chosen, curve=curve)
    files = write_files(made, folder)
    after = scorer.score(reference, run.session(files.int8))
    if before.value - after.value > allowed:
        raise GateError(
            f"int8 scores {after.value:.4f} where float scores {before.value:.4f}, a drop of more than {allowed:g}, "
            f"with {curve[-1].float_nodes} operators left float",
            hint="give more representative calibration data, or allow a larger drop",
        )
    return made, files, Scores(before, pruned, after)
