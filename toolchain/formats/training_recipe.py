"""`TrainingRecipe`: a file with a sequence of training steps. Each step starts from the result of the step before it.

The model that the sequence begins with is the teacher of every step.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Record
from toolchain.formats.recipe import Bench


class LearningSettings(Record):
    """Settings that every training step has."""

    epochs: float = pydantic.Field(default=10.0, ge=0)
    """Number of times that every sample is used; 0 applies the technique without training."""
    minutes: float | None = pydantic.Field(default=None, gt=0)
    """Minutes of training; takes the place of epochs."""
    batch: int = pydantic.Field(default=32, ge=1)
    """Samples in one step of the optimizer."""
    rate: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Peak learning rate: the largest change of a weight in one step, as a part of its channel's root mean square.
    Default: 0.01; 0.02 with batch normalizations; 0.1 for a fresh student."""
    labels: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Part of the loss that comes from labels, where the data has any; the rest comes from the teacher's outputs."""
    temperature: float = pydantic.Field(default=2.0, gt=0)
    """Temperature of the teacher's and the student's class scores."""
    augment: bool | None = None
    """Change images at random. Default: only where there are no labels."""
    patience: int = pydantic.Field(default=0, ge=0)
    """Stop after this number of evaluations without an improvement; 0 never stops early."""


class PruneStep(LearningSettings):
    """Weights or channels become zero while the rest is trained."""

    technique: Literal["prune"]
    """Name of the technique."""
    amount: float = pydantic.Field(default=0.5, gt=0, lt=1)
    """Part of the weights or channels to remove. For the criterion threshold: weights below this number of root mean
    squares are removed."""
    criterion: Literal["magnitude", "threshold", "random", "l1", "l2"] = "magnitude"
    """Order in which weights or channels are removed. l1 and l2 add a regularizer in the first 10 % of training."""
    structure: str = "channels"
    """channels: they are cut out of the graph, which becomes faster. weights, or a pattern such as 2:4 (2 of every 4
    weights): the compressed file becomes smaller, but nothing becomes faster."""
    schedule: Literal["once", "gradual", "iterative"] = "gradual"
    """once: before the first step. gradual: along a cubic curve over the first 60 % of the training. iterative: in
    rounds of pruning and training."""
    rounds: int = pydantic.Field(default=4, ge=1)
    """Number of rounds of the iterative schedule."""
    max_drop: float = pydantic.Field(default=0.02, ge=0)
    """Iterative schedule: a round that loses more than this on held-out samples is undone, and is the last."""
    strength: float = pydantic.Field(default=0.2, gt=0)
    """Strength of the regularizer of the criteria l1 and l2."""
    multiple: int = pydantic.Field(default=8, ge=1)
    """Numbers of channels are kept at multiples of this."""
    revive: bool = False
    """Weights that are zero may become non-zero again during the training."""
    norms: bool | None = None
    """Put batch normalizations behind convolutions during the training. Default: where a batch is small."""

    @pydantic.field_validator("structure")
    @classmethod
    def _known_structure(cls, text: str) -> str:
        pattern = re.fullmatch(r"(\d+):(\d+)", text)
        if text not in ("channels", "weights") and not (pattern and 0 < int(pattern[1]) < int(pattern[2])):
            raise ValueError(f"{text!r} is neither channels, weights nor a pattern such as 2:4")
        return text

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M of an N:M pattern; None for channels and weights."""
        n, colon, m = self.structure.partition(":")
        return (int(n), int(m)) if colon else None


class ShareStep(LearningSettings):
    """Weights share 2^bits values, found by k-means."""

    technique: Literal["share"]
    """Name of the technique."""
    bits: int = pydantic.Field(default=4, ge=1, le=8)
    """Bits of a weight's code."""
    per: Literal["tensor", "channel"] | Annotated[int, pydantic.Field(ge=1)] = "tensor"
    """What has a set of values of its own: a tensor, a channel, or this number of channels together."""


class PowerOfTwoStep(LearningSettings):
    """Weights become zero, a power of two or a sum of two powers, times a scale for each channel."""

    technique: Literal["power-of-two"]
    """Name of the technique."""
    bits: int = pydantic.Field(default=4, ge=2, le=8)
    """Bits of a weight's code."""
    terms: Literal[1, 2] = 1
    """Number of powers in a sum."""


class BinaryStep(LearningSettings):
    """Weights become one number or its negative in each channel; the first and the last layer stay float."""

    technique: Literal["binary"]
    """Name of the technique."""


class Int8Step(LearningSettings):
    """Quantization-aware training: it starts from the plan that `toolchain quantize` makes, and improves its weights.

    It is the last step of a recipe: integers cannot be trained any further.
    """

    technique: Literal["int8"]
    """Name of the technique."""


class DistilStep(LearningSettings):
    """Training towards the teacher's outputs (and labels), without any constraint."""

    technique: Literal["distil"]
    """Name of the technique."""
    student: str | None = None
    """A smaller model with the same inputs and outputs: ``package.module:callable`` or an ONNX file. Default: the
    result of the step before."""
    fresh: bool | None = None
    """The student is untrained, so it gets batch normalizations until the end and a higher learning rate. Default: true
    for a callable, false for a file."""
    features: Literal["stages"] | dict[str, str] | None = None
    """Inner tensors to compare besides the outputs, through adapters that are trained as well. "stages": the last
    tensors of every resolution. A table: tensors of the student, each with one of the teacher's."""


Step = Annotated[
    PruneStep | ShareStep | PowerOfTwoStep | BinaryStep | Int8Step | DistilStep,
    pydantic.Field(discriminator="technique"),
]


class TrainingRecipe(Document):
    """Training steps in order, and the data and time for them."""

    KIND: ClassVar[str] = "training recipe"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    samples: int | None = pydantic.Field(default=None, ge=1)
    """Number of samples to read at most; without it, all."""
    held: int = pydantic.Field(default=256, ge=1)
    """Number of samples that are held out of the training, to evaluate the model."""
    threads: int = pydantic.Field(default=0, ge=0)
    """Number of threads; 0 uses every processor."""
    steps: tuple[Step, ...] = pydantic.Field(min_length=1)
    """The steps."""
    bench: Bench = Bench()
    """How latency is measured at the end."""

    @pydantic.field_validator("steps")
    @classmethod
    def _integers_come_last(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if any(isinstance(step, Int8Step) for step in steps[:-1]):
            raise ValueError("int8 has to be the last step: integers cannot be trained any further")
        return steps
