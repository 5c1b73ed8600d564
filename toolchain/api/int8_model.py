"""Making an int8 model that keeps its answer: the part that `export` and `quantize` share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from toolchain.api.prepare import Prepared
from toolchain.api.request import OpenedRequest, Request, open_request
from toolchain.core.errors import GateError
from toolchain.data.tensors import Feed
from toolchain.evaluation.floor import Limits
from toolchain.evaluation.judge import Judge, examine
from toolchain.formats.manifest import TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.verdict import Verdict
from toolchain.graph import io
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.quantization.accuracy.float_orders import FloatOrder, by_noise, from_inputs, from_outputs
from toolchain.quantization.accuracy.mixed_precision import Rate, Rating, float_macs_share, search
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.quantized import Quantized
from toolchain.quantization.races import WHOLE_MODEL_RACE_SECONDS, race_models

MIN_GAIN = 1.02
"""A smaller speed-up cannot be told from none."""
SEARCH_SAMPLES = 16
"""Number of samples by which the search judges its candidates."""
MAX_SIZE_SHARE = 0.98
"""A file counts as smaller up to this share of the float file's size."""

NOT_JUDGED = Verdict(samples=0)
"""The verdict on a model before it was judged."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Int8Model:
    """An int8 model and what it was made from.

    Attributes:
        opened: the request, with the float model before pruning.
        prepared: the float model that was quantized; pruned where the recipe asks for it.
        quantized: the plan and its evidence.
        score: of the float model before pruning.
        pruned: the result of pruning; None without pruning.
        curve: the plans that were tried to keep to the limits.
        verdict: what is left of the float model's answer; without parts before the model was judged.
    """

    opened: OpenedRequest
    prepared: Prepared
    quantized: Quantized
    score: Score
    pruned: Pruned | None = None
    curve: tuple[TradeOff, ...] = ()
    verdict: Verdict = NOT_JUDGED

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
        variant: name of the int8 model's variant in tables; "float" where none of its operators computes in int8.
    """

    dense: Path
    pruned: Path | None
    int8: Path
    outputs: tuple[str, ...]
    variant: str = "int8"

    @property
    def variants(self) -> dict[str, Path]:
        """The files by the name of their variant in tables."""
        if self.pruned is None:
            return {"fp32": self.dense, self.variant: self.int8}
        return {"fp32": self.dense, "pruned": self.pruned, self.variant: self.int8}


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
        GateError: parity failed, or pruning loses too much.
    """
    opened = open_request(request, recipe.calibrate.samples)
    prepared, pruned = opened.prepared, None
    score = Score(kind="agreement", value=1.0, samples=len(opened.held))
    if opened.scorer.metric is not None:
        request.progress("evaluating float")
        score = opened.scorer.score(prepared.model)
    if recipe.prune.has_goal:
        pruned = prune_model(
            prepared.model,
            opened.train,
            recipe.prune,
            check=opened.held,
            limit=opened.scorer.loss_limit(prepared.model, score, recipe.max_drop, option="--prune"),
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
    variant = ("" if pruned is None else "pruned+") + ("int8" if made.quantized.computing else "float")
    files = ModelFiles(folder / "float.onnx", pruned, folder / "int8.onnx", names, variant)
    io.save_in_place(made.dense, files.dense)
    if pruned is not None:
        io.save_in_place(made.prepared.model, pruned)
    io.save_in_place(made.quantized.write(made.quantized.encoding), files.int8)
    return files


def accept(made: Int8Model, recipe: Recipe, folder: Path) -> tuple[Int8Model, ModelFiles, Scores]:
    """Judge the int8 model, and leave operators float until it keeps to the limits.

    Args:
        made: the models.
        recipe: has the largest accepted loss of score.
        folder: where the models' files are written.

    Raises:
        GateError: the limits cannot be kept.
        InputError: the user's metric fails.
    """
    opened, planned = made.opened, made.quantized
    held, progress, scorer = opened.held, opened.request.progress, opened.scorer
    progress("evaluating int8")
    limits, judge = Limits.of(recipe.max_drop, made.score), Judge(made.dense, held)
    measure = scorer.score if scorer.metric is not None else None

    def examined(quantized: Quantized) -> tuple[Score, Verdict, str | None]:
        score, verdict = examine(judge, quantized.write(quantized.encoding), measure)
        return score, verdict, limits.fault(score, verdict)

    def rate_by(judge: Judge) -> Rate:
        def rate(model: ir.Model) -> Rating:
            score, verdict = examine(judge, model, measure)
            return Rating(score.value, accepted=limits.fault(score, verdict) is None)

        return rate

    feed = next(iter(held))
    score, verdict, fault = examined(planned)
    for few in (True, False):  # most candidates of the search are told by few samples
        if fault is None:
            break
        _log.info("int8 is not accepted as it is: %s", fault)
        rate = rate_by(Judge(made.dense, held.take(SEARCH_SAMPLES)) if few else judge)
        chosen, curve = search(planned, _orders(planned, verdict if few else None), rate, feed, progress)
        made = replace(made, quantized=chosen.with_note(_given_up(planned, chosen, fault)), curve=curve)
        score, verdict, fault = examined(chosen)
    if fault is not None:
        hint = "give more representative calibration data, or allow more with --max-drop"
        most = max((point.float_nodes for point in made.curve), default=0)
        raise GateError(f"int8 loses too much with {most} operators left float: {fault}", hint=hint)
    files = write_files(made, folder)
    if recipe.quantize.measure and made.quantized.computing and not _gains(files, feed):
        made = replace(made, quantized=_all_float(made.quantized))
        files = write_files(made, folder)
        score, verdict, _ = examined(made.quantized)
    pruned = made.pruned.score if made.pruned is not None else None
    return replace(made, verdict=verdict), files, Scores(made.score, pruned, score)


def _orders(planned: Quantized, verdict: Verdict | None) -> list[Callable[[], FloatOrder]]:
    """List the orders in which operators may become float: those that lost parts come from, or all operators."""
    parts = verdict.parts if verdict is not None else ()
    lost = [part.tensor for part in parts if part.lost] or [str(output.name) for output in planned.model.graph.outputs]
    kept = [part.tensor for part in parts if not part.lost and part.tensor not in lost]
    return [
        lambda: from_outputs(planned, lost, kept),
        lambda: from_inputs(planned, lost),
        lambda: by_noise(planned, planned.noise_sources()),
    ]


def _given_up(before: Quantized, after: Quantized, fault: str) -> str:
    """Describe the operators that became float, for the notes."""
    count = len(before.computing) - len(after.computing)
    share = float_macs_share(after)
    became = "1 operator became" if count == 1 else f"{count} operators became"
    return f"{became} float, because otherwise {fault}; {share:.0%} of the multiply-accumulates are float now"


def _gains(files: ModelFiles, feed: Feed) -> bool:
    """True where the int8 file is smaller, or measured faster, than the float model it was made from."""
    source = files.pruned or files.dense
    if files.int8.stat().st_size <= MAX_SIZE_SHARE * source.stat().st_size:
        return True
    float_s, int8_s = race_models(source, files.int8, feed, seconds=WHOLE_MODEL_RACE_SECONDS).medians_s
    return float_s > MIN_GAIN * int8_s


def _all_float(quantized: Quantized) -> Quantized:
    reason = "as int8 the model is neither smaller nor faster here, and less accurate"
    return quantized.leaving_float(dict.fromkeys(quantized.computing, reason)).with_note(reason)
