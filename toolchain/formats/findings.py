"""`Findings`: what an export learnt beside its measurements, so that its report can be made again from its folder.

Precision, certificate and accuracy steps stand in the manifests, samples in the results; nothing is kept twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Part


class ProfiledOperator(Part):
    """A node of the graph that onnxruntime runs. us: median microseconds of an inference.

    layer: the node of the float graph that it computes, where that can be told.
    """

    node: str
    op: str
    us: float
    layer: str | None = None


class Profile(Part):
    """A variant's operators in the order they run, timed one by one on the exporting machine, one thread."""

    variant: str
    operators: tuple[ProfiledOperator, ...]


class BudgetCheck(Part):
    """A limit of a target. value: what the model takes of it, None where it must be measured; fits: likewise."""

    name: str
    unit: str
    limit: float
    value: float | None
    fits: bool | None


class Misfit(Part):
    """Convolutions of one number of output channels that is no multiple of the target's. macs: of all of them."""

    channels: int
    nodes: int
    macs: int
    example: str


class TargetFit(Part):
    """The model on a target: budgets, and which convolutions have unfortunate widths."""

    target: str
    title: str
    channel_multiple: int
    convolutions: int
    misfits: tuple[Misfit, ...]
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
    """Channels that could only be cut together: so many there were, so many stayed. nodes: the products they run in."""

    name: str
    size: int
    kept: int
    nodes: tuple[str, ...]


class CutProof(Part):
    """Whether the cut graph computes what the masked dense one does. error: with its own weights, relative."""

    error: float
    identical: bool
    exact: bool


class Repair(Part):
    """Fidelity of the outputs in dB, as cut and after repair."""

    cut: float
    repaired: float


class Pruning(Part):
    """What was cut before int8, and what that gave; pairs are before and after.

    speedup: of the float model; int8_speedup: of int8 over int8 alone. chosen_by: what widths were chosen by.
    """

    helped: bool
    reason: str
    speedup: float
    int8_speedup: float | None
    fidelity_db: Repair | None
    macs: tuple[int, int]
    parameters: tuple[int, int]
    chosen_by: str
    groups: tuple[CutGroup, ...]
    dropped: tuple[str, ...]
    proof: CutProof | None
    notes: tuple[str, ...]


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
