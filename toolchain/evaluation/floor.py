"""The floor: below it, an answer counts as lost, and no model is shipped unless its user says so.

The bounds were measured. Over the benchmark models, whose int8 versions lose 0 to 0.8 points of their metric, the worst
piece has 15 dB and more, and the worst class of an ImageNet classifier 12 dB. Where an answer was gone (scores of a
detector that became 0, spectra that became constant), some part had 0 to 8 dB. In between, 10 dB is an error of a third
of what a part varies by.

An index that was active in few samples has an uncertain fidelity: if its squares come from n samples alone, their mean
has a relative standard deviation of about √(1 / n). For error and variance together that is (10 / ln 10)·√(2 / n) dB,
and the worst of k indices lies √(2 ln k) of these below the mean. So the floor of an index is lower by that much.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import numpy as np

from toolchain.core.arrays import F64
from toolchain.formats.results import Score
from toolchain.formats.verdict import Decision, DecisionKind, PartFidelity, Verdict

PART_FLOOR_DB = 10.0
"""Lowest accepted fidelity of a piece, and of an index that is known exactly, in decibels."""
DECISION_FLOORS: dict[DecisionKind, float] = {
    "top-1": 0.5,
    "positives": 0.5,
    "boxes": 0.5,
    "set": 0.3,
    "exact": 0.5,
    "text": 0.5,
}
"""Lowest accepted share of kept decisions. It is low, because noise exchanges classes that are nearly equal: a good
int8 MobileNetV2 keeps 0.9 of its answers on difficult photographs."""
MIN_DECISIONS = 10
"""Decisions are held against the floor from this number on."""
METRIC_SHARE = 0.05
"""A model may lose this share of the user's metric where no limit is given."""
LOST_DB = 1.0
"""Up to this fidelity, messages say that nothing is left."""


def index_floors_db(samples: F64) -> F64:
    """Return the lowest accepted fidelity of each index, float64 [indices] in decibels.

    Args:
        samples: number of samples that the variance of each index comes from.
    """
    deviation = 10 / log(10) * np.sqrt(2 / np.maximum(samples, 1))
    return np.asarray(PART_FLOOR_DB - sqrt(2 * log(max(len(samples), 2))) * deviation, np.float64)


def lost_part(part: PartFidelity, source: str, index_floor_db: float) -> str | None:
    """Say that a part fell under the floor; None where it did not.

    Args:
        part: what was measured.
        source: the operator that computes the part.
        index_floor_db: the floor of its worst index.
    """
    if part.fidelity_db < PART_FLOOR_DB:
        return f"{part.name}, computed by {source}: {_left(part.fidelity_db)}"
    if part.worst_db is not None and part.worst_db < index_floor_db:
        return f"{part.name}, computed by {source}, index {part.worst_index}: {_left(part.worst_db)}"
    return None


def doubtful_part(part: PartFidelity, samples: int) -> str | None:
    """Say that an index of a part that is not lost may be; None where it has the full floor.

    Args:
        part: what was measured.
        samples: number of samples it was measured on.
    """
    if part.lost or part.worst_db is None or part.worst_db >= PART_FLOOR_DB:
        return None
    return (
        f"{part.name}, index {part.worst_index}: {part.worst_db:.1f} dB on {samples} held-out samples, too few to tell"
    )


def _left(fidelity_db: float) -> str:
    if fidelity_db < LOST_DB:
        return "nothing is left of float's answer"
    return f"{fidelity_db:.1f} dB are left of float's answer, and at least {PART_FLOOR_DB:g} dB are wanted"


def lost_decision(decision: Decision) -> str | None:
    """Say that decisions changed too often; None where they did not, or are too few to tell."""
    least = DECISION_FLOORS.get(decision.kind)
    if least is None or decision.count < MIN_DECISIONS:
        return None
    if decision.kept + 1 / sqrt(decision.count) >= least:  # two standard deviations of a share
        return None
    return f"{decision.part}: {decision.kept:.0%} of {decision.count} decisions ({decision.kind}) are kept"


@dataclass(frozen=True)
class Limits:
    """The most that a model may lose.

    Attributes:
        min_score: the lowest accepted score; None where the score does not decide.
        parts: no part of the answer may be lost.
    """

    min_score: float | None
    parts: bool

    @classmethod
    def of(cls, max_drop: float | Literal["off"] | None, before: Score) -> Limits:
        """Return the limits for a largest loss of score.

        Args:
            max_drop: the user's limit; "off": none; None: the floor, or :data:`METRIC_SHARE` of the user's own metric.
            before: the float model's score.
        """
        if max_drop == "off":
            return cls(None, parts=False)
        own_metric = before.kind == "evaluate"
        if max_drop is None:
            return cls(before.value - METRIC_SHARE * abs(before.value) if own_metric else None, parts=not own_metric)
        return cls(before.value - max_drop, parts=not own_metric)

    def fault(self, score: Score, verdict: Verdict) -> str | None:
        """Say how a model exceeds the limits, in a clause; None where it keeps to them."""
        if self.min_score is not None and not score.value >= self.min_score:
            return f"it scores {score.value:.4f}, and at least {self.min_score:.4f} is wanted"
        if self.parts and verdict.lost:
            more = f" (and {len(verdict.lost) - 1} more)" if len(verdict.lost) > 1 else ""
            return f"{verdict.lost[0]}{more}"
        return None
