"""`TrainingRecipe`: a chain of techniques with gradients, in a file. Each step starts from what the one before it made.

The model that the chain begins with is the teacher of every step.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Part
from toolchain.formats.recipe import Bench


class Learn(Part):
    """How a step learns.

    epochs: so often every sample is seen; 0: the technique without training. minutes: so long, whatever `epochs` says.
    batch: samples a step. rate: the highest learning rate, a share of a channel's root mean square a step; None: 0.01,
    0.02 with batch normalizations, and 0.1 for a student that begins anew.
    labels: the share that labels have of the loss, where the data has any; the teacher's answers have the rest.
    temperature: of the teacher's and the student's scores. augment: images are changed at random; None: where there
    are no labels. patience: end after so many looks at held-out samples without anything better; 0: never.
    """

    epochs: float = pydantic.Field(default=10.0, ge=0)
    minutes: float | None = pydantic.Field(default=None, gt=0)
    batch: int = pydantic.Field(default=32, ge=1)
    rate: float | None = pydantic.Field(default=None, gt=0, le=1)
    labels: float = pydantic.Field(default=0.5, ge=0, le=1)
    temperature: float = pydantic.Field(default=2.0, gt=0)
    augment: bool | None = None
    patience: int = pydantic.Field(default=0, ge=0)


class PruneStep(Learn):
    """Zeros while the rest learns.

    amount: the share that goes, of weights or of channels; for the criterion threshold the number of root mean squares
    below which a weight goes. structure: channels are cut out of the graph and make it faster; weights, or N of every M
    of them, make the compressed file smaller and nothing faster.
    schedule: once: before the first step. gradual: cubic, over the first 60 % of the training. iterative: in `rounds`
    of pruning and training; a round after which held-out samples lose more than `max_drop` is taken back, and ends it.
    For the criteria l1 and l2 a regularizer of this `strength` acts over the first 10 %.
    revive: what is zero may come back while the others learn.
    norms: batch normalizations stand behind convolutions for the time of the training; None: where a batch is small.
    """

    technique: Literal["prune"]
    amount: float = pydantic.Field(default=0.5, gt=0, lt=1)
    criterion: Literal["magnitude", "threshold", "random", "l1", "l2"] = "magnitude"
    structure: str = "channels"
    schedule: Literal["once", "gradual", "iterative"] = "gradual"
    rounds: int = pydantic.Field(default=4, ge=1)
    max_drop: float = pydantic.Field(default=0.02, ge=0)
    strength: float = pydantic.Field(default=0.2, gt=0)
    multiple: int = pydantic.Field(default=8, ge=1)
    revive: bool = False
    norms: bool | None = None

    @pydantic.field_validator("structure")
    @classmethod
    def _known_structure(cls, text: str) -> str:
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if text not in ("channels", "weights") and not (found and 0 < int(found[1]) < int(found[2])):
            raise ValueError(f"{text!r} is neither channels, weights nor a pattern such as 2:4")
        return text

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M."""
        n, colon, m = self.structure.partition(":")
        return (int(n), int(m)) if colon else None


class ShareStep(Learn):
    """Weights that take 2^bits values, found by k-means. per: what has a set of values of its own, a tensor, a channel,
    or so many channels together.
    """

    technique: Literal["share"]
    bits: int = pydantic.Field(default=4, ge=1, le=8)
    per: Literal["tensor", "channel"] | Annotated[int, pydantic.Field(ge=1)] = "tensor"


class PowerOfTwoStep(Learn):
    """Weights that are zero or a power of two (terms = 1), or a sum of two powers, times a scale for each channel."""

    technique: Literal["power-of-two"]
    bits: int = pydantic.Field(default=4, ge=2, le=8)
    terms: Literal[1, 2] = 1


class BinaryStep(Learn):
    """Weights that are one number or its negative in each channel; the first and the last layer stay float."""

    technique: Literal["binary"]


class Int8Step(Learn):
    """Quantization-aware training: from the plan that `toolchain quantize` makes to one with better weights.

    The last of a recipe's steps: integers cannot be trained any further.
    """

    technique: Literal["int8"]


class DistilStep(Learn):
    """Training by the teacher (and labels) without any constraint.

    student: ``package.module:callable`` or an ONNX file, a smaller model with the same inputs and outputs; None: what
    the step before has left. fresh: the student knows nothing yet, so it gets batch normalizations until the end and a
    higher rate; None: a callable's does, a file's was made from the teacher.
    features: what is compared beside the answers, through adapters that learn as well: `stages`, the last tensors of
    every resolution, or a table of the student's tensors, each with a teacher's.
    """

    technique: Literal["distil"]
    student: str | None = None
    fresh: bool | None = None
    features: Literal["stages"] | dict[str, str] | None = None


Step = Annotated[
    PruneStep | ShareStep | PowerOfTwoStep | BinaryStep | Int8Step | DistilStep,
    pydantic.Field(discriminator="technique"),
]


class TrainingRecipe(Document):
    """What to do, in order. samples: at most so many are read. held: so many judge, and are not trained on.
    threads: 0 takes one for every processor. bench: how latency is measured in the end.
    """

    KIND: ClassVar[str] = "training recipe"

    schema_version: Literal[1] = 1
    seed: int = 0
    samples: int | None = pydantic.Field(default=None, ge=1)
    held: int = pydantic.Field(default=256, ge=1)
    threads: int = pydantic.Field(default=0, ge=0)
    steps: tuple[Step, ...] = pydantic.Field(min_length=1)
    bench: Bench = Bench()

    @pydantic.field_validator("steps")
    @classmethod
    def _integers_come_last(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if any(isinstance(step, Int8Step) for step in steps[:-1]):
            raise ValueError("int8 has to be the last step: integers cannot be trained any further")
        return steps
