"""`run_chain`: the steps of a training recipe, one after the other, each from what the one before it made.

The teacher of every step is the model that the chain began with. What a step has made is kept in a folder, and so is
the state of the step that runs: a run that was ended goes on where it was, and gives the same bits on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.channels.cut import apply_cuts, parameter_count, separate
from toolchain.channels.groups import Group, groups
from toolchain.channels.index_spaces import leaf_positions
from toolchain.channels.layout import layout
from toolchain.conversion.source import convert
from toolchain.core.errors import ModelError
from toolchain.core.files import write_text
from toolchain.core.progress import Progress, silent
from toolchain.data.calibration import CalibrationData, open_data
from toolchain.data.tensors import Feed
from toolchain.evaluation.fidelity import db_to_power
from toolchain.formats.findings import Evaluation, TrainingStep
from toolchain.formats.training_recipe import (
    BinaryStep,
    DistilStep,
    Int8Step,
    Learn,
    PowerOfTwoStep,
    PruneStep,
    ShareStep,
    Step,
    TrainingRecipe,
)
from toolchain.graph import io
from toolchain.graph.sizes import sizes
from toolchain.ops import cost
from toolchain.ops.weights import product_weights
from toolchain.optimization.passes import optimize
from toolchain.quantization.qdq.writer import Encoding
from toolchain.training.engine.batch_norms import normalized
from toolchain.training.engine.distil import require_trainable
from toolchain.training.engine.feature_adapters import feature_pairs
from toolchain.training.engine.loop import Fitted, Schedule, fit
from toolchain.training.engine.objective import LossConfig, Objective, largest_bytes, paired_heads
from toolchain.training.engine.samples import LABELS
from toolchain.training.engine.technique import Technique
from toolchain.training.techniques import codebook_weights, qat
from toolchain.training.techniques.codebook import Codebook, own_gradients
from toolchain.training.techniques.pruning_masks import Ask, ChannelGroup, Masked, Slot

ENCODINGS: tuple[Encoding, ...] = ("u8", "s8")
LOOKS = 20
"""So often held-out samples are looked at."""
PUSHED, PRUNED = 0.1, 0.6
"""Shares of a training: a regularizer acts until the first, a gradual schedule ends at the second."""
ROUND = 0.3
"""The share of a round of pruning and training after which nothing more goes."""
NORMED = 64
"""Samples that a new student's normalizations begin with."""
RATE, NORMED_RATE, FRESH_RATE = 1e-2, 2e-2, 1e-1
"""Highest learning rates: of what has learnt before, without and with batch normalizations, and of what has not."""
NORMED_BYTES = 1 << 26
"""Batch normalizations need a whole batch at once: they are put in unasked up to tensors of this size."""
WEIGHED = 64
"""Samples that tell how much a weight's error matters."""
GAIN = 1
"""The scale's place among the inputs of a BatchNormalization."""
OBSERVED = 512
"""Samples that ranges are taken from."""
FUTILE = (
    "training found nothing better than what it began with, which is what is kept; a lower rate, or more and more "
    "different samples, may help"
)


@dataclass(frozen=True)
class Stage:
    """What a step made, and what is to be told of it."""

    model: ir.Model
    record: TrainingStep


@dataclass(frozen=True)
class _TrainingTask:
    """What all steps share. key: names the step's files in the folder."""

    teacher: ir.Model
    data: CalibrationData
    held: CalibrationData
    recipe: TrainingRecipe
    students: Mapping[str, ir.Model]
    folder: Path
    progress: Progress


def run_chain(
    model: ir.Model,
    recipe: TrainingRecipe,
    data: CalibrationData,
    held: CalibrationData,
    *,
    folder: Path,
    students: Mapping[str, ir.Model] | None = None,
    progress: Progress = silent,
) -> list[Stage]:
    """Train.

    Args:
        model: an optimized float model; it is also the teacher.
        recipe: the steps.
        data: samples to learn from, with labels or without.
        held: samples to judge by.
        folder: keeps what is done, and the state of what is not. Give an empty one to begin with.
        students: as :func:`read_students` gives them; None: they are read here.
        progress: told about every step.

    Raises:
        ModelError: torch is not installed; an operator cannot be trained through; nothing that could go.
    """
    students = read_students(model, recipe) if students is None else students
    job = _TrainingTask(separate(model), data, held, recipe, students, folder, progress)
    stages: list[Stage] = []
    for number, step in enumerate(recipe.steps):
        now = separate(optimize(stages[-1].model).model) if stages else job.teacher  # which unpacks codes
        stages.append(_iterative(job, f"step-{number}", now, step) if _rounds(step) else _once(job, number, now, step))
    return stages


def read_students(model: ir.Model, recipe: TrainingRecipe) -> dict[str, ir.Model]:
    """The models that a recipe's steps name as `student`, which is an ONNX file or a callable that gives a module.

    Raises:
        InputError and its subclasses: a student is not a model; it cannot be trained, or compared with the teacher.
    """
    students: dict[str, ir.Model] = {}
    for step in recipe.steps:
        if not isinstance(step, DistilStep):
            continue
        if step.student is not None and step.student not in students:
            inputs = () if step.student.endswith(".onnx") else io.inputs(model)
            student = separate(optimize(convert(step.student, inputs=inputs).model).model)
            require_trainable(student)
            paired_heads(student, model)
            students[step.student] = student
        feature_pairs(students[step.student] if step.student else model, model, step.features)
    return students


def _rounds(step: Step) -> bool:
    return isinstance(step, PruneStep) and step.schedule == "iterative"


def _once(job: _TrainingTask, number: int, model: ir.Model, step: Step) -> Stage:
    if isinstance(step, PruneStep):
        return _kept(job, f"step-{number}", partial(_prune, job, model, step, step.amount))
    if isinstance(step, DistilStep):
        return _kept(job, f"step-{number}", partial(_distil, job, model, step))
    if isinstance(step, ShareStep | PowerOfTwoStep | BinaryStep):
        return _kept(job, f"step-{number}", partial(_code, job, model, step))
    return _kept(job, f"step-{number}", partial(_int8, job, model, step))


def _kept(job: _TrainingTask, key: str, make: Callable[[str], Stage]) -> Stage:
    """What `make` gives, or what it gave before, read from the folder in either case."""
    model, record = job.folder / f"{key}.onnx", job.folder / f"{key}.json"
    if not record.exists():
        made = make(key)
        io.save(made.model, model)
        write_text(record, made.record.model_dump_json())
        (job.folder / f"{key}.pt").unlink(missing_ok=True)
    return Stage(io.load(model), TrainingStep.model_validate_json(record.read_text(encoding="utf-8")))


def _learn(
    job: _TrainingTask,
    key: str,
    model: ir.Model,
    step: Learn,
    technique: Technique,
    *,
    must_move: bool = False,
    norms: bool = False,
    inner: bool = True,
    rounds: int = 1,
) -> tuple[Objective, Fitted]:
    """A lesson, learnt. rounds: that the step's time is divided among."""
    features = step.features if isinstance(step, DistilStep) else None
    aims = LossConfig(step.labels, step.temperature, inner and not norms, step.batch, step.augment, norms, features)
    lesson = Objective(model, job.teacher, job.data, technique=technique, aims=aims, seed=job.recipe.seed)
    schedule = Schedule(
        minutes=step.minutes / rounds if step.minutes else Schedule.minutes,
        steps=None if step.minutes else lesson.samples.steps(step.epochs / rounds, step.batch),
        rate=step.rate or (RATE if not norms else FRESH_RATE if isinstance(step, DistilStep) else NORMED_RATE),
        looks=tuple((i + 1) / LOOKS for i in range(LOOKS - 1)),
        patience=step.patience,
    )
    found = fit(
        lesson,
        job.held,
        schedule,
        threads=job.recipe.threads,
        checkpoint=job.folder / f"{key}.pt",
        must_move=must_move,
        progress=lambda what, done=0, total=0: job.progress(f"{what}, {key}", done, total),
    )
    return lesson, found


def _stage(
    model: ir.Model, step: Step, summary: str, found: Fitted, notes: Sequence[str] = (), dense: ir.Model | None = None
) -> Stage:
    """dense: the model in floats, where it is coded or quantized."""
    dense = dense or model
    if found.steps and not found.improved:
        notes = [*notes, FUTILE]
    size = sizes(model)
    zeros = [array == 0 for _, _, array in _products(dense)]
    record = TrainingStep(
        technique=step.technique,
        summary=summary,
        seconds=found.seconds,
        steps=found.steps,
        checkpoints=tuple(found.looks),
        kept=found.kept,
        macs=sum(macs or 0 for macs in cost.count(dense).macs.values()),
        parameters=parameter_count(dense),
        zeros=float(np.mean(np.concatenate([z.reshape(-1) for z in zeros]))) if zeros else 0.0,
        bytes=size.raw,
        zip_bytes=size.zipped,
        wire_bytes=size.wire,
        notes=tuple(notes),
    )
    return Stage(model, record)


# ------------------------------------------------------------------------------------------------ the steps


def _distil(job: _TrainingTask, model: ir.Model, step: DistilStep, key: str) -> Stage:
    """Of what is there, or of the user's student; the normalizations of a fresh one are folded away afterwards."""
    fresh = False
    if step.student is not None:
        fresh = not step.student.endswith(".onnx") if step.fresh is None else step.fresh
        model = job.students[step.student]
    if fresh:
        model = normalized(model, _unlabelled(job.data.take(NORMED)))
    lesson, found = _learn(job, key, model, step, Technique(), norms=fresh)
    made = lesson.written() if found.improved else model
    made = separate(optimize(made).model) if fresh else made
    whose = f"{step.student}, " if step.student else ""
    return _stage(made, step, f"{whose}taught by the float model", found)


def _code(job: _TrainingTask, model: ir.Model, step: ShareStep | PowerOfTwoStep | BinaryStep, key: str) -> Stage:
    """Weights of few values, stored as codes."""
    importance = None
    if isinstance(step, ShareStep):
        together = step.per if isinstance(step.per, int) else 1 if step.per == "channel" else None
        letters: codebook_weights.CodebookKind = codebook_weights.SharedWeights(step.bits, together)
        importance = own_gradients(model, job.data.take(WEIGHED), job.recipe.seed)
        whose = f"a {step.per}" if isinstance(step.per, str) else f"every {step.per} channels"
        summary = f"{2**step.bits} values {whose}"
    elif isinstance(step, PowerOfTwoStep):
        letters = codebook_weights.PowerOfTwoWeights(step.bits, step.terms)
        summary = f"{step.bits} bits, {'powers' if step.terms == 1 else 'sums of two powers'} of two"
    else:
        letters, summary = codebook_weights.BinaryWeights(), "one number and its negative a channel"
    technique = Codebook(model, letters, importance=importance)
    lesson, found = _learn(job, key, model, step, technique)
    note = "no faster: onnxruntime unpacks the codes when it loads the file, and computes with floats"
    made = technique.finish(lesson.written())
    return _stage(made, step, summary, found, [note], dense=optimize(made).model)


def _int8(job: _TrainingTask, model: ir.Model, step: Int8Step, key: str) -> Stage:
    """From the plan of static int8 to one with better weights. What the step leaves is the quantized file."""
    data, check = (open_data(_unlabelled(some), io.inputs(model)) for some in (job.data.take(OBSERVED), job.held))
    quantized = qat.planned(model, data, check, job.folder / f"{key}-choices.json", job.progress)
    if not quantized.plan.products:
        raise ModelError("has no product that could be int8", where=key, hint="leave the step out")
    pupil = qat.qat_student(quantized)
    lesson, found = _learn(job, key, pupil.model, step, pupil.technique, inner=False)
    if found.improved:
        quantized = qat.trained_plan(pupil, lesson.written())
    for encoding in ENCODINGS:
        io.save(quantized.write(encoding), encoded(job.folder, encoding))
    chosen = quantized.plan.int8_nodes()
    what = f"{len(chosen)} of {len(quantized.plan.choices)} operators int8, trained with their rounding"
    return _stage(quantized.write(quantized.encoding), step, what, found, quantized.notes, dense=quantized.model)


def encoded(folder: Path, encoding: Encoding) -> Path:
    """Where a chain that ends in int8 leaves its model for targets of an encoding: the same integers."""
    return folder / f"{encoding}.onnx"


def _unlabelled(data: CalibrationData) -> list[Feed]:
    return [{name: array for name, array in feed.items() if name != LABELS} for feed in data]


def _prune(job: _TrainingTask, model: ir.Model, step: PruneStep, amount: float, key: str) -> Stage:
    """Once or gradually; channels are cut out of the graph at the end."""
    begin, end = {"once": (0.0, 0.0), "gradual": (0.0, PRUNED), "iterative": (0.0, ROUND)}[step.schedule]
    if step.criterion in ("l1", "l2"):
        begin, end = PUSHED, max(PUSHED, end)
    ask = Ask(amount, step.criterion, begin, end, step.strength, step.revive, step.multiple, job.recipe.seed)
    norms = _normalizes(model, step)
    if norms:
        model = separate(normalized(model, _unlabelled(job.data.take(NORMED))))
    technique = _masked(model, step, ask)
    rounds = step.rounds if step.schedule == "iterative" else 1
    lesson, found = _learn(job, key, model, step, technique, must_move=True, norms=norms, rounds=rounds)
    made = technique.finish(lesson.written())
    if norms and step.structure != "channels":
        made = separate(optimize(made).model)
    what = f"{step.structure}, {amount:.0%} by {step.criterion}, {step.schedule}"
    if step.structure != "channels":
        note = "no faster: onnxruntime's CPU provider multiplies zeros like any other number"
        return _stage(made, step, what, found, [note])
    cuts = {name: np.flatnonzero(kept.numpy()).tolist() for name, kept in technique.kept.items() if not kept.all()}
    return _stage(separate(optimize(apply_cuts(made, cuts)).model), step, what, found)


def _normalizes(model: ir.Model, step: PruneStep) -> bool:
    """Whether batch normalizations help the training along."""
    if not step.epochs or not any(node.op_type == "Conv" for node in model.graph):
        return False
    return step.batch * largest_bytes(model) <= NORMED_BYTES if step.norms is None else step.norms


def _iterative(job: _TrainingTask, key: str, model: ir.Model, step: Step) -> Stage:
    """Rounds of pruning and training; one that loses too much is taken back, and is the last."""
    assert isinstance(step, PruneStep)
    rounds: list[Stage] = []
    first: Evaluation | None = None
    notes: list[str] = []
    for number in range(step.rounds):
        now = rounds[-1].model if rounds else model
        goal, before = (step.amount * share / step.rounds for share in (number + 1, number))
        amount = 1 - (1 - goal) / (1 - before) if step.structure == "channels" else goal
        make = partial(_prune, job, now, step, amount)
        done = _kept(job, f"{key}-round-{number}", make)
        first = first or done.record.before
        if _loss_of(done.record.after) - _loss_of(first) > step.max_drop:
            notes.append(f"round {number + 1} of {step.rounds} lost too much, and was taken back")
            break
        rounds.append(done)
    if not rounds:
        hint = "ask for less, for more rounds or epochs, or allow a larger drop"
        raise ModelError("loses too much in the first round of pruning", where=key, hint=hint)
    return _joined(step, rounds, notes)


def _loss_of(found: Evaluation) -> float:
    """What rounds are judged by: wrong classes, or the outputs' error."""
    return db_to_power(found.fidelity_db) if found.accuracy is None else 1 - found.accuracy


def _joined(step: PruneStep, rounds: Sequence[Stage], notes: Sequence[str]) -> Stage:
    """The last round, with the looks of all."""
    looks = [
        look.model_copy(update={"share": (number + look.share) / len(rounds)})
        for number, stage in enumerate(rounds)
        for look in stage.record.checkpoints
    ]
    last = rounds[-1].record
    kept = len(looks) - len(last.checkpoints) + last.kept
    summed = {"seconds": sum(s.record.seconds for s in rounds), "steps": sum(s.record.steps for s in rounds)}
    what = f"{step.structure}, {step.amount:.0%} by {step.criterion}, {len(rounds)} rounds"
    return Stage(
        rounds[-1].model,
        last.model_copy(
            update={
                **summed,
                "checkpoints": tuple(looks),
                "kept": kept,
                "summary": what,
                "notes": (*last.notes, *notes),
            }
        ),
    )


# ------------------------------------------------------------------------------------ what a graph has to give


def _masked(model: ir.Model, step: PruneStep, ask: Ask) -> Masked:
    if step.structure == "channels":
        return Masked(channels(model), ask)
    found = {str(value.name): axis for value, axis, _ in _products(model)}
    return Masked(list(found), ask, pattern=step.pattern, axes=found)


def channels(model: ir.Model) -> list[ChannelGroup]:
    """The groups of channels that may be cut, as weights' axes.

    Raises:
        ModelError: there are none.
    """
    found = layout(model)
    values = {str(value.name): value for value in found.axes}
    summed = {(value, axis) for value, axis, _ in _products(model)}

    def slots(group: Group, read: bool) -> tuple[Slot, ...]:
        chosen = [(values[m.parameter], m.axis, m.makes) for m in group.members]
        return tuple(
            Slot(
                weight=str(value.name),
                axis=axis,
                owner=leaf_positions(found.axes[value][axis], group.leaf),
                behind=len(found.axes[value]) - axis - 1,
                gain=any(use.node.op_type == "BatchNormalization" and use.idx == GAIN for use in value.uses()),
            )
            for value, axis, makes in chosen
            if ((value, axis) in summed or not makes) == read  # beside a residual sum, an axis does both
        )

    free = [group for group in groups(model, found) if group.free]
    if not free:
        raise ModelError("has no channels that may be cut", where=model.graph.name, hint="prune its weights instead")
    pairs = [(group, slots(group, False), slots(group, True)) for group in free]
    return [ChannelGroup(group.name, group.size, made, read or made) for group, made, read in pairs]


def _products(model: ir.Model) -> list[tuple[ir.Value, int, np.ndarray]]:
    """Weights of products, the axis that is summed over, and what they are."""
    return list(
        {weight.value: (weight.value, weight.axes.in_, weight.array) for weight in product_weights(model)}.values()
    )
