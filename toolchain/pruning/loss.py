"""`LossLimit`: the most that a pruned model may lose, and `PruningLossError`, which says what was lost.

The limits are those of every step (:mod:`toolchain.evaluation.floor`). Where neither the user's metric nor a largest
loss of score decides, pruning has a higher floor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from toolchain.core.errors import GateError
from toolchain.evaluation.floor import Limits
from toolchain.evaluation.judge import Judge, examine
from toolchain.formats.findings import CutPoint
from toolchain.formats.results import Score
from toolchain.formats.verdict import Verdict

# Chosen on pruned models whose labelled accuracy was measured (docs/decisions/pruning-results.md). From 12.9 dB upward
# no classifier lost more than 1.8 points; between 12 and 9.3 dB they lost 0.4 to 2.6, between 9.2 and 7.4 dB 2.4 to
# 8.8, and at 2.2 dB 42. Agreement alone does not tell these apart: 0.84 came with a loss of 5 points in one model, 0.83
# with none in another. It is a second limit, for answers that change although the outputs are near.
MIN_FIDELITY_DB = 12.0
"""Lowest accepted fidelity of every part of the outputs in dB."""
MIN_AGREEMENT = 0.8
"""Lowest accepted agreement with the dense model."""


@dataclass(frozen=True)
class Loss:
    """A judgement of a smaller model.

    Attributes:
        score: the score of the smaller model.
        verdict: the comparison with the dense model.
        fault: how the limits are exceeded, a clause; None where they are kept.
        told: what fell under the floor, one clause each, also where the limits allow it.
    """

    score: Score
    verdict: Verdict
    fault: str | None
    told: tuple[str, ...]

    @property
    def fidelity_db(self) -> float | None:
        """Fidelity of the worst part in dB; None where no part can be compared number by number."""
        return self.verdict.worst.fidelity_db if self.verdict.worst else None

    def point(self, factor: float) -> CutPoint:
        """Return it as a point of the trade-off, for a model that is this many times as fast or as small."""
        return CutPoint(factor=factor, fidelity_db=self.fidelity_db, score=self.score, fault=self.fault or "")


@dataclass(frozen=True)
class LossLimit:
    """The most that a model may lose.

    Attributes:
        judge: compares with the dense model.
        measure: scores a model; not called where the score is the agreement, which the judge gives.
        before: the dense model's score.
        max_drop: the largest accepted loss of score; "off": no limit; None: the floor, or a share of the user's metric.
        option: the command's option for a speed-up, for hints.
    """

    judge: Judge
    measure: Callable[[ir.Model], Score]
    before: Score
    max_drop: float | Literal["off"] | None = None
    option: str = "--speedup"

    def loss(self, model: ir.Model) -> Loss:
        """Judge and score a model."""
        measure = self.measure if self.before.kind != "agreement" else None
        score, verdict = examine(self.judge, model, measure)
        by_default = self._default_fault(score, verdict)
        fault = Limits.of(self.max_drop, self.before).fault(score, verdict)
        if fault is None and self.max_drop is None:
            fault = by_default
        return Loss(score, verdict, fault, (*verdict.lost, *([by_default] if by_default else [])))

    def _default_fault(self, score: Score, verdict: Verdict) -> str | None:
        """Say how too much is lost where the user gives no limit, in a clause; lost parts are not looked at."""
        if score.kind == "evaluate":
            return Limits.of(None, self.before).fault(score, Verdict(samples=0))
        return floor_fault(score, verdict)


def floor_fault(score: Score, verdict: Verdict) -> str | None:
    """Say how a model fell under the floor of pruning, in a clause; None where it did not.

    Args:
        score: agreement with the dense model.
        verdict: the comparison with it.
    """
    if score.value < MIN_AGREEMENT:
        return f"agreement is {score.value:.3f}, and at least {MIN_AGREEMENT:g} is wanted"
    worst = verdict.worst
    if worst is not None and worst.fidelity_db < MIN_FIDELITY_DB:
        return f"{worst.name} has {worst.fidelity_db:.1f} dB, and at least {MIN_FIDELITY_DB:g} dB are wanted"
    return None


class PruningLossError(GateError):
    """The goal of pruning costs more than the limits allow.

    Attributes:
        curve: smaller models that were tried, the largest first; the last one meets the goal.
    """

    def __init__(self, what: str, *, where: object = None, hint: str, curve: Sequence[CutPoint]) -> None:
        super().__init__(what, where=where, hint=hint)
        self.curve = tuple(curve)
