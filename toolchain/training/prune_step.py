"""The step `prune`: zeros in weights or fewer channels, at once, gradually, or in rounds of pruning and training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from toolchain.channels.cut import apply_cuts, separate
from toolchain.channels.groups import Group, groups
from toolchain.channels.index_spaces import leaf_positions
from toolchain.channels.layout import layout
from toolchain.core.errors import ModelError
from toolchain.evaluation.fidelity import db_to_power
from toolchain.formats.findings import Evaluation
from toolchain.formats.training_recipe import PruneStep
from toolchain.optimization.passes import optimize
from toolchain.training.engine.batch_norms import with_batch_norms
from toolchain.training.engine.comparison import largest_bytes
from toolchain.training.step import (
    BN_INIT_SAMPLES,
    StepResult,
    TrainingContext,
    load_or_make,
    step_result,
    train_student,
    weight_matrices,
    without_labels,
)
from toolchain.training.techniques.pruning_masks import ChannelGroup, MaskConfig, PruningMasks, WeightAxis

LOGGER = logging.getLogger(__name__)

REGULARIZER_END, GRADUAL_END = 0.1, 0.6
"""Fractions of a training: a regularizer acts until the first, a gradual schedule ends at the second."""
ROUND_END = 0.3
"""Fraction of a round of pruning and training after which nothing more is pruned."""
MAX_BN_BYTES = 1 << 26
"""Batch normalizations need a whole batch at once: by default they are inserted up to tensors of this size in bytes."""
BN_SCALE_INPUT = 1
"""Position of the scale among the inputs of a BatchNormalization."""


def prune_step(context: TrainingContext, model: ir.Model, step: PruneStep, amount: float, key: str) -> StepResult:
    """Prune and train a model; channels are cut out of the graph at the end.

    Args:
        context: inputs and settings of the recipe.
        model: the model to prune.
        step: settings of the step.
        amount: share of the given model that is pruned.
        key: first part of the names of the step's files.
    """
    begin, end = {"once": (0.0, 0.0), "gradual": (0.0, GRADUAL_END), "iterative": (0.0, ROUND_END)}[step.schedule]
    if step.criterion in ("l1", "l2"):
        begin, end = REGULARIZER_END, max(REGULARIZER_END, end)
    config = MaskConfig(
        amount=amount,
        criterion=step.criterion,
        begin=begin,
        end=end,
        strength=step.strength,
        revive=step.revive,
        multiple=step.multiple,
        seed=context.recipe.seed,
    )
    batch_norms = _uses_batch_norms(model, step)
    if batch_norms:
        model = separate(with_batch_norms(model, without_labels(context.data.take(BN_INIT_SAMPLES))))
    masks = _masks(model, step, config)
    rounds = step.rounds if step.schedule == "iterative" else 1
    objective, fitted = train_student(
        context, key, model, step, masks, skip_first=True, batch_norms=batch_norms, rounds=rounds
    )
    pruned = masks.finish(objective.to_model())
    summary = f"{step.structure}, {amount:.0%} by {step.criterion}, {step.schedule}"
    if step.structure != "channels":
        if batch_norms:
            pruned = separate(optimize(pruned).model)
        note = "Not faster: onnxruntime's CPU provider multiplies zeros like any other number."
        return step_result(pruned, step, summary, fitted, [note])
    cuts = {name: np.flatnonzero(kept.numpy()).tolist() for name, kept in masks.kept.items() if not kept.all()}
    for name, channels in cuts.items():
        LOGGER.info("%s: %s keeps %d of %d channels", key, name, len(channels), len(masks.kept[name]))
    return step_result(separate(optimize(apply_cuts(pruned, cuts)).model), step, summary, fitted)


def prune_in_rounds(context: TrainingContext, key: str, model: ir.Model, step: PruneStep) -> StepResult:
    """Prune and train in rounds; a round that loses too much is undone and ends the step.

    Raises:
        ModelError: the first round loses too much.
    """
    rounds: list[StepResult] = []
    first: Evaluation | None = None
    notes: list[str] = []
    for number in range(step.rounds):
        current = rounds[-1].model if rounds else model
        goal, before = (step.amount * share / step.rounds for share in (number + 1, number))
        amount = 1 - (1 - goal) / (1 - before) if step.structure == "channels" else goal
        result = load_or_make(context, f"{key}-round-{number}", partial(prune_step, context, current, step, amount))
        first = first or result.record.before
        drop = _round_loss(result.record.after) - _round_loss(first)
        LOGGER.info("%s: round %d of %d changed the loss by %+.4f", key, number + 1, step.rounds, drop)
        if drop > step.max_drop:
            notes.append(
                f"Round {number + 1} of {step.rounds} lost more than max_drop = {step.max_drop:g}; it was undone."
            )
            break
        rounds.append(result)
    if not rounds:
        hint = "prune less, use more rounds or epochs, or raise max_drop"
        raise ModelError("loses more than max_drop in the first round of pruning", where=key, hint=hint)
    return _joined(step, rounds, notes)


def _round_loss(evaluation: Evaluation) -> float:
    """Compute the loss by which rounds are compared: the share of wrong classes, or the error of the outputs."""
    return db_to_power(evaluation.fidelity_db) if evaluation.accuracy is None else 1 - evaluation.accuracy


def _joined(step: PruneStep, rounds: Sequence[StepResult], notes: Sequence[str]) -> StepResult:
    """Join the records of all rounds to one; the model is that of the last round."""
    checkpoints = [
        checkpoint.model_copy(update={"share": (number + checkpoint.share) / len(rounds)})
        for number, result in enumerate(rounds)
        for checkpoint in result.record.checkpoints
    ]
    last = rounds[-1].record
    record = last.model_copy(
        update={
            "seconds": sum(result.record.seconds for result in rounds),
            "steps": sum(result.record.steps for result in rounds),
            "checkpoints": tuple(checkpoints),
            "kept": len(checkpoints) - len(last.checkpoints) + last.kept,
            "summary": f"{step.structure}, {step.amount:.0%} by {step.criterion}, {len(rounds)} rounds",
            "notes": (*last.notes, *notes),
        }
    )
    return StepResult(rounds[-1].model, record)


def _uses_batch_norms(model: ir.Model, step: PruneStep) -> bool:
    """Check whether batch normalizations are inserted for the training."""
    if not step.epochs or not any(node.op_type == "Conv" for node in model.graph):
        return False
    return step.batch * largest_bytes(model) <= MAX_BN_BYTES if step.norms is None else step.norms


def _masks(model: ir.Model, step: PruneStep, config: MaskConfig) -> PruningMasks:
    if step.structure == "channels":
        return PruningMasks(channel_groups(model), config)
    axes = {str(value.name): axis for value, axis, _ in weight_matrices(model)}
    return PruningMasks(list(axes), config, pattern=step.pattern, axes=axes)


def channel_groups(model: ir.Model) -> list[ChannelGroup]:
    """Find the groups of channels that may be cut, as axes of weights.

    Raises:
        ModelError: there are none.
    """
    spaces = layout(model)
    values = {str(value.name): value for value in spaces.axes}
    summed = {(value, axis) for value, axis, _ in weight_matrices(model)}

    def axes_of(group: Group, consumers: bool) -> tuple[WeightAxis, ...]:
        members = [(values[m.parameter], m.axis, m.makes) for m in group.members]
        return tuple(
            WeightAxis(
                weight=str(value.name),
                axis=axis,
                owner=leaf_positions(spaces.axes[value][axis], group.leaf),
                trailing=len(spaces.axes[value]) - axis - 1,
                is_norm_scale=any(
                    use.node.op_type == "BatchNormalization" and use.idx == BN_SCALE_INPUT for use in value.uses()
                ),
            )
            for value, axis, makes in members
            if ((value, axis) in summed or not makes) == consumers  # beside a residual sum, an axis does both
        )

    free = [group for group in groups(model, spaces) if group.free]
    if not free:
        raise ModelError(
            "has no channels that may be cut", where=model.graph.name, hint='prune its weights: structure = "weights"'
        )
    pairs = [(group, axes_of(group, False), axes_of(group, True)) for group in free]
    return [ChannelGroup(group.name, group.size, made, read or made) for group, made, read in pairs]
