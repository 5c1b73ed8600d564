"""`Findings`: what an export learnt beside its measurements, so that its report can be made again from its folder.

Precision, certificate and accuracy steps stand in the manifests, samples in the results; nothing is kept twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Part
from toolchain.formats.results import OperatorTime


class Profile(Part):
    """The operators of one variant in the order they run, timed on the exporting machine with one thread."""

    variant: str
    operators: tuple[OperatorTime, ...]


class BudgetCheck(Part):
    """One limit of a target, compared with the model.

    value: what the model needs at least, in the same unit. fits: value is within the limit. Both are None where only a
    measurement can tell.
    """

    name: str
    unit: str
    limit: float
    value: float | None
    fits: bool | None


class WidthMisfit(Part):
    """Convolutions with the same number of output channels, which is no multiple of the target's.

    nodes: number of these convolutions. macs: multiply-accumulates of all of them. example: the first one's name.
    """

    channels: int
    nodes: int
    macs: int
    example: str


class TargetFit(Part):
    """The model compared with a target's profile. convolutions: number of them. misfits: by number of channels."""

    target: str
    title: str
    channel_multiple: int
    convolutions: int
    misfits: tuple[WidthMisfit, ...]
    budgets: tuple[BudgetCheck, ...]


class NoiseSource(Part):
    """One rounding and its part of the error at the outputs.

    at: name of the tensor; for a weight, name of its node. op: the operator that computes the tensor or has the weight.
    share: of the summed squared errors of all sources. fidelity_db: fidelity of the outputs with this rounding alone.
    """

    kind: Literal["activation", "weight"]
    at: str
    op: str
    share: float
    fidelity_db: float

    @property
    def label(self) -> str:
        """Operator and name, as tables show them."""
        return f"{self.op} {self.at}" + (" (weight)" if self.kind == "weight" else "")


class CutGroup(Part):
    """Coupled channels, which can only be cut together.

    size, kept: number of channels before and after. nodes: the convolutions and matrix products they run through.
    """

    name: str
    size: int
    kept: int
    nodes: tuple[str, ...]


class CutProof(Part):
    """A comparison of the cut graph with the dense one whose cut channels are masked to zero.

    error: largest difference with the model's own weights, relative to the largest output. identical: outputs have the
    same bits with selection weights, which only pick channels. exact: they must have, because no operator multiplies
    two activations. mismatches: one sentence for each output that differs by more than is allowed.
    """

    error: float
    identical: bool
    exact: bool
    mismatches: tuple[str, ...] = ()


class CutFidelity(Part):
    """Fidelity of the outputs to those of the dense model in dB, on held-out samples: as cut, and after repair."""

    cut: float
    repaired: float


class Pruning(Part):
    """The channels and branches cut from a float model, and the effect; pairs are before and after.

    helped: False where the model is left as it was; reason then says why. speedup: of the float model on the machine
    that pruned, one thread, interleaved. int8_speedup: of int8 over int8 of the dense model, where int8 follows.
    macs: multiply-accumulates. chosen_by: the cost by which widths were chosen. dropped: residual branches removed, by
    the name of their sum. proof: made before repair.
    """

    helped: bool
    reason: str = ""
    speedup: float = 1.0
    int8_speedup: float | None = None
    fidelity_db: CutFidelity | None = None
    macs: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    chosen_by: str = ""
    groups: tuple[CutGroup, ...] = ()
    dropped: tuple[str, ...] = ()
    proof: CutProof | None = None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence for the manifest."""
        if not self.helped:
            return f"not pruned: {self.reason}"
        before, after = self.macs
        branches = f" and {len(self.dropped)} residual branches" if self.dropped else ""
        return (
            f"pruned before int8: {len(self.groups)} groups of channels{branches}, {1 - after / before:.0%} of the "
            "multiply-accumulates, proved against the dense graph with masks"
        )


class Evaluation(Part):
    """A model in training, measured on held-out samples by its outputs alone.

    The loss decides which of two states is better: of two models with the same fidelity of scores, the one with larger
    scores usually gives the right classes.

    loss: mean over the samples. fidelity_db: mean fidelity to the teacher in dB. accuracy: part of the samples with the
    right class, by labels where there are any, else by the teacher; None where the outputs are not classes.
    """

    loss: float
    fidelity_db: float
    accuracy: float | None = None


class Checkpoint(Part):
    """An evaluation during training. share: part of the step's training that was over, 0 to 1."""

    share: float
    evaluation: Evaluation


class TrainingStep(Part):
    """The result of one step of a training recipe.

    checkpoints: in the order they were measured. kept: index of the checkpoint whose state the step ended with.
    macs, parameters: of the resulting model. zeros: part of the weights of its products that are zero.
    bytes: size of its file; zip_bytes: compressed as app stores do; wire_bytes: compressed by xz, the smallest that
    Python's standard library makes of it.
    """

    technique: str
    summary: str
    seconds: float
    steps: int
    checkpoints: tuple[Checkpoint, ...]
    kept: int
    macs: int
    parameters: int
    zeros: float
    bytes: int
    zip_bytes: int
    wire_bytes: int
    score: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> Evaluation:
        """The evaluation before the first step of training."""
        return self.checkpoints[0].evaluation

    @property
    def after(self) -> Evaluation:
        """The evaluation of the state that was kept."""
        return self.checkpoints[self.kept].evaluation


class Findings(Document):
    """when: that of the measurements it belongs to. macs: multiply-accumulates by node of the float graph, where known.

    causes: the largest first; empty where they were not asked for.
    """

    KIND: ClassVar[str] = "findings file"

    schema_version: Literal[1] = 1
    when: str
    profiles: tuple[Profile, ...] = ()
    macs: dict[str, int] = pydantic.Field(default_factory=dict)
    fits: tuple[TargetFit, ...] = ()
    pruning: Pruning | None = None
    causes: tuple[NoiseSource, ...] = ()
    training: tuple[TrainingStep, ...] = ()
