"""Making an int8 model that keeps its answer: the part that `export` and `quantize` share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain.api.prepare import Prepared
from toolchain.api.request import OpenedRequest, Request, Scorer, open_request
from toolchain.core.errors import GateError
from toolchain.data.tensors import Feed
from toolchain.evaluation.floor import Limits
from toolchain.evaluation.judge import Judge
from toolchain.formats.manifest import TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Score
from toolchain.formats.verdict import Verdict
from toolchain.graph import io, run
from toolchain.pruning.goal import Pruned, prune_model
from toolchain.quantization.accuracy.float_orders import FloatOrder, by_noise, from_inputs, from_outputs
from toolchain.quantization.accuracy.mixed_precision import Rating, float_macs_share, search
from toolchain.quantization.loop import Quantized, quantize_model
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
        score = opened.scorer.score_float(prepared.model)
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
    request, held = made.opened.request, made.opened.held
    files = write_files(made, folder)
    request.progress("evaluating int8")
    limits = Limits.of(recipe.max_drop, made.score)
    examiner = _Examiner(made.opened.scorer, run.session(files.dense), Judge(made.dense, held), limits)
    planned, feed = made.quantized, next(iter(held))
    score, verdict, fault = examiner.examine(planned.write(planned.encoding))
    for few in (True, False):  # most candidates of the search are told by few samples
        if fault is None:
            break
        _log.info("int8 is not accepted as it is: %s", fault)
        judge = Judge(made.dense, held.take(SEARCH_SAMPLES)) if few else examiner.judge
        rate = replace(examiner, judge=judge).rate
        chosen, curve = search(planned, _orders(planned, verdict if few else None), rate, feed, request.progress)
        made = replace(made, quantized=chosen.with_note(_given_up(planned, chosen, fault)), curve=curve)
        score, verdict, fault = examiner.examine(chosen.write(chosen.encoding))
    if fault is not None:
        hint = "give more representative calibration data, or allow more with --max-drop"
        most = max((point.float_nodes for point in made.curve), default=0)
        raise GateError(f"int8 loses too much with {most} operators left float: {fault}", hint=hint)
    if recipe.quantize.measure and not _gains(made.quantized, files, feed, folder):
        made = replace(made, quantized=_all_float(made.quantized))
        score, verdict, _ = examiner.examine(made.quantized.write(made.quantized.encoding))
    if made.quantized is not planned:
        files = write_files(made, folder)
    pruned = made.pruned.score if made.pruned is not None else None
    return replace(made, verdict=verdict), files, Scores(made.score, pruned, score)


@dataclass(frozen=True)
class _Examiner:
    """Scores and judges models.

    Attributes:
        scorer: has the user's metric, or none.
        reference: the float model's session.
        judge: compares with the float model.
        limits: the most that a model may lose.
    """

    scorer: Scorer
    reference: InferenceSession
    judge: Judge
    limits: Limits

    def examine(self, model: ir.Model) -> tuple[Score, Verdict, str | None]:
        """Return a model's score and verdict, and how it exceeds the limits; None where it keeps to them."""
        verdict = self.judge.verdict(model)
        score = Score(kind="agreement", value=verdict.agreement, samples=verdict.samples)
        if self.scorer.metric is not None:
            score = self.scorer.score(self.reference, run.session(model))
        return score, verdict, self.limits.fault(score, verdict)

    def rate(self, model: ir.Model) -> Rating:
        """Rate a candidate of the search."""
        score, _, fault = self.examine(model)
        return Rating(score.value, accepted=fault is None)


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


def _gains(quantized: Quantized, files: ModelFiles, feed: Feed, folder: Path) -> bool:
    """True where the int8 file is smaller, or measured faster, than the float model it was made from."""
    if not quantized.computing:
        return True
    path = folder / "candidate.onnx"
    io.save_in_place(quantized.write(quantized.encoding), path)
    if path.stat().st_size <= MAX_SIZE_SHARE * (files.pruned or files.dense).stat().st_size:
        return True
    times = race_models(quantized.source, quantized.write(quantized.encoding), feed, seconds=WHOLE_MODEL_RACE_SECONDS)
    return times.medians_s[0] > MIN_GAIN * times.medians_s[1]


def _all_float(quantized: Quantized) -> Quantized:
    reason = "as int8 the model is neither smaller nor faster here, and less accurate"
    return quantized.leaving_float(dict.fromkeys(quantized.computing, reason)).with_note(reason)
