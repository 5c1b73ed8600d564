"""`Findings`: results of an export or a training run, other than measurements, for its report.

The report can be made again from the files of the folder. Precision, certificate and accuracy steps are in the
manifests, times are in the results, and the rest is here; nothing is stored twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Record
from toolchain.formats.results import OperatorTime, Score
from toolchain.formats.verdict import Verdict


class Profile(Record):
    """Times of the operators of one variant, measured on the exporting machine with one thread."""

    variant: str
    """Name of the variant, such as "int8"."""
    operators: tuple[OperatorTime, ...]
    """The operators in the order they run."""


class BudgetCheck(Record):
    """One limit of a target, compared with the model."""

    name: str
    """What is limited: size, memory or latency."""
    unit: str
    """Unit of limit and value."""
    limit: float
    """The limit."""
    value: float | None
    """What the model needs at least; null where only a measurement can tell."""
    fits: bool | None
    """True where the value is within the limit; null where only a measurement can tell."""


class WidthMisfit(Record):
    """Convolutions with the same number of output channels, which is no multiple of the target's."""

    channels: int
    """The number of output channels."""
    nodes: int
    """Number of these convolutions."""
    macs: int
    """Multiply-accumulates of all of them."""
    example: str
    """Name of the first one."""


class TargetFit(Record):
    """The model compared with a target's profile."""

    target: str
    """Name of the target."""
    title: str
    """Name of the device for people."""
    channel_multiple: int
    """Multiple of output channels that the target's kernels want."""
    convolutions: int
    """Number of convolutions in the model."""
    misfits: tuple[WidthMisfit, ...]
    """Convolutions with other widths, by their number of channels."""
    budgets: tuple[BudgetCheck, ...]
    """The target's limits."""


class NoiseSource(Record):
    """One rounding and its part of the error at the outputs."""

    kind: Literal["activation", "weight"]
    """What is rounded."""
    at: str
    """Name of the tensor; for a weight, name of its node."""
    op: str
    """Operator that computes the tensor, or that has the weight."""
    share: float
    """Part of the summed squared errors of all sources."""
    fidelity_db: float
    """Fidelity of the outputs in dB with only this rounding."""

    @property
    def label(self) -> str:
        """Operator and name, as tables show them."""
        return f"{self.op} {self.at}" + (" (weight)" if self.kind == "weight" else "")


class ClippedTensor(Record):
    """A tensor with values outside its int8 range, on samples that no range was taken from."""

    tensor: str
    """Name of the tensor."""
    share: float
    """Share of its values that lie outside."""
    beyond: float
    """Distance of the farthest value from the range, in widths of the range."""


class CutGroup(Record):
    """Coupled channels, which can only be cut together."""

    name: str
    """Name of the group."""
    size: int
    """Number of channels before."""
    kept: int
    """Number of channels after."""
    nodes: tuple[str, ...]
    """Names of the convolutions and matrix products that the channels run through."""


class CutProof(Record):
    """A comparison of the cut graph with the dense one in which the cut channels are masked to zero."""

    error: float
    """Largest difference with the model's own weights, relative to the largest output."""
    identical: bool
    """True where the outputs have the same bits with selection weights, which only pick channels."""
    exact: bool
    """True where they must have the same bits, because no operator multiplies two activations."""
    mismatches: tuple[str, ...] = ()
    """One sentence for each output that differs by more than is allowed."""


class CutFidelity(Record):
    """Fidelity of the outputs to those of the dense model in dB, on held-out samples."""

    cut: float
    """Before repair and training."""
    repaired: float
    """After repair and training."""


class CutPoint(Record):
    """A smaller model that was tried: what it gains and what it loses."""

    factor: float
    """Speed-up; where the goal is a share of the multiply-accumulates, the factor by which they were reduced."""
    fidelity_db: float | None
    """Fidelity of the worst part of the outputs in dB, after repair; null where nothing can be compared number by
    number."""
    score: Score
    """Its score, after repair."""
    fault: str = ""
    """How it exceeds the limits; empty where it keeps to them."""


class Pruning(Record):
    """The channels and branches cut from a float model, and the effect; pairs are before and after."""

    helped: bool
    """False where the model was left as it was."""
    reason: str = ""
    """Why pruning did not help."""
    speedup: float = 1.0
    """Speed-up of the float model on the machine that pruned, with one thread, interleaved."""
    speedup_interval: tuple[float, float] | None = None
    """Its 95 % interval; null where nothing was cut."""
    int8_speedup: float | None = None
    """Speed-up of int8 over int8 of the dense model; null where int8 does not follow."""
    int8_speedup_interval: tuple[float, float] | None = None
    """Its 95 % interval."""
    fidelity_db: CutFidelity | None = None
    """Fidelity of the outputs."""
    verdict: Verdict | None = None
    """What is left of the dense model's answer, part by part; null where nothing was judged."""
    lost: tuple[str, ...] = ()
    """What fell under the floor and was accepted by the user's own limit, one clause each."""
    macs: tuple[int, int] = (0, 0)
    """Multiply-accumulates."""
    parameters: tuple[int, int] = (0, 0)
    """Number of parameters."""
    chosen_by: str = ""
    """The cost by which widths were chosen."""
    groups: tuple[CutGroup, ...] = ()
    """Groups of channels that were cut."""
    dropped: tuple[str, ...] = ()
    """Residual branches that were removed, by the name of their sum."""
    proof: CutProof | None = None
    """Proof that the cut is right, made before repair."""
    notes: tuple[str, ...] = ()
    """Facts that users should know, one sentence each."""

    @property
    def summary(self) -> str:
        """One sentence for the manifest."""
        if not self.helped:
            return f"not pruned: {self.reason}"
        before, after = self.macs
        branches = f" and {len(self.dropped)} residual branches" if self.dropped else ""
        return (
            f"pruned before int8: {len(self.groups)} groups of channels{branches}, {1 - after / before:.0%} of the "
            "multiply-accumulates; checked: it computes what the original does with those channels switched off"
        )


class Evaluation(Record):
    """A model in training, measured on held-out samples by its outputs alone.

    The loss decides which of two states is better: of two models with the same fidelity of scores, the one with larger
    scores usually gives the right classes.
    """

    loss: float
    """Mean loss of the samples."""
    fidelity_db: float
    """Mean fidelity to the teacher in dB."""
    accuracy: float | None = None
    """Part of the samples with the right class, by labels where there are any, else by the teacher; null where the
    outputs are not classes."""


class Checkpoint(Record):
    """An evaluation during training."""

    share: float
    """Part of the step's training that was over, 0 to 1."""
    evaluation: Evaluation
    """The result on held-out samples."""


class TrainingStep(Record):
    """The result of one step of a training recipe."""

    technique: str
    """Name of the technique."""
    summary: str
    """The technique's settings in a few words."""
    seconds: float
    """Duration of the training."""
    steps: int
    """Number of steps of the optimizer."""
    checkpoints: tuple[Checkpoint, ...]
    """Evaluations in the order they were made."""
    kept: int
    """Index of the checkpoint whose state was kept."""
    macs: int
    """Multiply-accumulates of the resulting model."""
    parameters: int
    """Number of parameters of the resulting model."""
    zeros: float
    """Part of the weights of convolutions and matrix products that are zero."""
    bytes: int
    """Size of the resulting file."""
    zip_bytes: int
    """Its size compressed as app stores compress."""
    wire_bytes: int
    """Its size compressed by xz, the smallest that Python's standard library can make."""
    score: float | None = None
    """Result of the user's function or of the labels, where there are any, else the agreement with the float model."""
    verdict: Verdict | None = None
    """What is left of the float model's answer, part by part."""
    notes: tuple[str, ...] = ()
    """Facts that users should know, one sentence each."""

    @property
    def before(self) -> Evaluation:
        """The evaluation before the first step of training."""
        return self.checkpoints[0].evaluation

    @property
    def after(self) -> Evaluation:
        """The evaluation of the state that was kept."""
        return self.checkpoints[self.kept].evaluation


class Findings(Document):
    """Findings of an export or a training run, besides measurements."""

    KIND: ClassVar[str] = "findings file"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    when: str
    """Date and time of the measurements it belongs to."""
    profiles: tuple[Profile, ...] = ()
    """Times of operators, for every variant."""
    macs: dict[str, int] = pydantic.Field(default_factory=dict)
    """Multiply-accumulates of every node of the float graph for which they are known."""
    fits: tuple[TargetFit, ...] = ()
    """Comparison with every target's profile."""
    pruning: Pruning | None = None
    """What was cut from the float model; null where nothing was to be cut."""
    causes: tuple[NoiseSource, ...] = ()
    """Sources of the error at the outputs, the largest first; empty where they were not asked for."""
    training: tuple[TrainingStep, ...] = ()
    """Results of the steps of a training recipe."""
