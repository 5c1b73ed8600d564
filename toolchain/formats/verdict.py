"""`Verdict`: the comparison of a model with its float model, part by part."""

from __future__ import annotations

from typing import Literal

from toolchain.formats.base import Record

WHOLE_DB = 90.0
"""From this fidelity on, in dB, a difference is the rounding of float32 itself."""


class PartFidelity(Record):
    """One part of an output, or of the scores behind it, compared with the float model's."""

    name: str
    """Name of the part, such as "output0[:, 4:84]"."""
    tensor: str
    """Name of the tensor in the float model that holds the part."""
    fidelity_db: float
    """Variance of the float values over the mean squared error in dB, mean over the indices; 0: nothing is left."""
    worst_index: int | None = None
    """The index of the feature axis that is nearest to its floor; null where the part is judged as a whole."""
    worst_db: float | None = None
    """The fidelity of that index in dB."""
    indices: int = 1
    """Number of indices that were judged."""
    constant: int = 0
    """Number of indices that are constant in float, which are left out."""
    lost: bool = False
    """True where the part or one of its indices fell under the floor."""


DecisionKind = Literal[
    "top-1", "top-5", "positives", "order", "cosine", "nearest neighbour", "boxes", "set", "sequence", "exact", "text"
]
"""`top-1`: the class with the largest score is the same. `top-5`: float's best class is among the five best.
`positives`: F1 of the elements above a threshold. `order`: rank correlation of the scores. `cosine`: similarity of
vectors. `nearest neighbour`: the most similar other sample is the same. `boxes`: intersection over union.
`set`: rows that are found in any order. `sequence`: equal sequences of best classes, repetitions merged.
`exact`: equal integers. `text`: equal texts."""


class Decision(Record):
    """A decision that a program would make from an output, and how often it stays the same."""

    part: str
    """Name of the part it is made from."""
    kind: DecisionKind
    """The kind of decision."""
    kept: float
    """Share of decisions that stay the same, or a mean similarity; 1 is best."""
    count: int
    """Number of decisions."""

    @property
    def label(self) -> str:
        """Kind and number, as tables show them."""
        return f"{self.kind} {self.kept:.3f}"


class Verdict(Record):
    """Comparison of a model with its float model, on samples that no statistic was taken from."""

    samples: int
    """Number of samples."""
    agreement: float = 1.0
    """How often the answer is the same, see `toolchain.evaluation.score`; it is no accuracy."""
    parts: tuple[PartFidelity, ...] = ()
    """The parts that can be compared number by number."""
    decisions: tuple[Decision, ...] = ()
    """Decisions."""
    lost: tuple[str, ...] = ()
    """What fell under the floor, one sentence each; empty where the answer is kept."""
    doubtful: tuple[str, ...] = ()
    """What looks lost on samples that are too few to tell, one sentence each."""

    @property
    def judged(self) -> bool:
        """True where anything could be compared."""
        return bool(self.parts or self.decisions)

    @property
    def worst(self) -> PartFidelity | None:
        """The part with the lowest fidelity; None where no part can be compared number by number."""
        return min(self.parts, key=lambda part: part.fidelity_db, default=None)
