"""Mixed precision: leave as few operators float as it takes to keep the answer or the score.

Operators become float in several orders (`float_orders`). In each order the smallest number that is sufficient is
found by bisection; each number is tried with a real plan, its score and its measured latency. Of the sufficient plans,
the one with the fewest multiply-accumulates in float is found. Then multiples of its number are tried, too: where int8
operators stand between float ones, leaving more of them float may cost no time. Of the plans that are as fast, the one
with the best score is taken. The tried plans are the points of the trade-off curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain.core.progress import Progress
from toolchain.data.tensors import Feed
from toolchain.formats.manifest import TradeOff
from toolchain.graph import run
from toolchain.latency.race import race
from toolchain.ops.cost import macs_by_node
from toolchain.quantization.accuracy.float_orders import FloatOrder
from toolchain.quantization.quantized import Quantized

MAX_RACE_S = 0.3
"""Seconds of a race between a plan and the float model; the recipe's ``bench.min_time_s`` is used where it is less."""
SMALL_FLOAT_SHARE = 0.05
"""A sufficient plan that leaves at most this share of all multiply-accumulates float ends the search."""
MULTIPLES = (2, 4, 8)
"""Multiples of the sufficient number of operators that are tried for a better score."""
SAME_SPEED = 0.95
"""A plan with at least this share of another one's speed-up counts as equally fast: short races tell no less, and speed
gives way to an answer that was lost."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rating:
    """A quantized model's score, higher is better, and whether the model may be shipped."""

    score: float
    accepted: bool


Rate = Callable[[ir.Model], Rating]
"""Rates a quantized model."""


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried.

    Attributes:
        quantized: the plan.
        rating: its rating.
        point: its point of the trade-off curve.
        float_share: share of the multiply-accumulates that are float.
    """

    quantized: Quantized
    rating: Rating
    point: TradeOff
    float_share: float


def search(
    quantized: Quantized, orders: Iterable[Callable[[], FloatOrder]], rate: Rate, feed: Feed, progress: Progress
) -> tuple[Quantized, tuple[TradeOff, ...]]:
    """Find an accepted plan with few operators left float.

    Args:
        quantized: a plan with everything in int8 that is not slower as int8.
        orders: make the orders to try; later ones are made only if the earlier ones leave much float.
        rate: rates a quantized model.
        feed: inputs for measuring latency.
        progress: called for every plan that is tried.

    Returns:
        The plan, or the one with the best score where none is accepted; and the tried points of the trade-off curve.
    """
    trials = _Trials(quantized, rate, feed, progress)
    start = best = trials.candidate({})
    more: list[dict[str, str]] = []
    for make_order in orders:
        if best.rating.accepted and best.float_share <= start.float_share + SMALL_FLOAT_SHARE:
            break
        order = make_order()
        count = _fewest(lambda n, order=order: trials.candidate(order.first(n)).rating.accepted, len(order.groups))  # type: ignore[misc]
        found = trials.candidate(order.first(count))
        if _rank(found) > _rank(best):
            best = found
            more = [order.first(n) for factor in MULTIPLES if (n := count * factor) < len(order.groups)]
    if best.rating.accepted:
        for reasons in more:
            trials.candidate(reasons)
        best = trials.best_as_fast_as(best)
    return best.quantized, trials.curve()


def trade_off_curve(
    quantized: Quantized, order: FloatOrder, rate: Rate, feed: Feed, progress: Progress, points: int
) -> tuple[TradeOff, ...]:
    """Measure evenly spaced points of the curve, from all int8 to the whole order in float."""
    trials = _Trials(quantized, rate, feed, progress)
    for step in range(points):
        trials.candidate(order.first(round(step * len(order.groups) / max(points - 1, 1))))
    return trials.curve()


def _rank(candidate: Candidate) -> tuple[bool, float]:
    """Order candidates: accepted ones by what is int8, others by their score."""
    accepted = candidate.rating.accepted
    return accepted, -candidate.float_share if accepted else candidate.rating.score


def _fewest(is_enough: Callable[[int], bool], most: int) -> int:
    """Find the smallest sufficient number up to `most` by bisection, if all larger ones are sufficient, too."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


@dataclass
class _Trials:
    """Plans that were tried, each once."""

    quantized: Quantized
    rate: Rate
    feed: Feed
    progress: Progress
    tried: dict[frozenset[str], Candidate] = field(default_factory=dict)
    reference: InferenceSession | None = None

    def candidate(self, reasons: dict[str, str]) -> Candidate:
        """Plan with the nodes of `reasons` left float, rate the plan, and time it."""
        key = frozenset(reasons)
        if key not in self.tried:
            self.progress("searching precision", len(self.tried))
            self.tried[key] = self._try(reasons)
        return self.tried[key]

    def best_as_fast_as(self, candidate: Candidate) -> Candidate:
        """Return the accepted plan with the best score among those that are as fast as a candidate."""
        enough = SAME_SPEED * candidate.point.speedup
        fast = [c for c in self.tried.values() if c.rating.accepted and c.point.speedup >= enough]
        return max([candidate, *fast], key=lambda c: c.rating.score)

    def _try(self, reasons: dict[str, str]) -> Candidate:
        planned = self.quantized.leaving_float(reasons) if reasons else self.quantized
        written = planned.write(planned.encoding)
        self.reference = self.reference or run.session(self.quantized.source, threads=1)
        seconds = min(MAX_RACE_S, planned.planner.recipe.bench.min_time_s)
        times = race(self.reference, run.session(written, threads=1), self.feed, seconds=seconds).medians_s
        rating = self.rate(written)
        point = TradeOff(float_nodes=len(reasons), score=rating.score, speedup=times[0] / times[1])
        decision = "sufficient" if rating.accepted else "not sufficient"
        what = "%d operators left float: score %.4f, speed-up %.2f, %s"
        _log.info(what, point.float_nodes, point.score, point.speedup, decision)
        return Candidate(planned, rating, point, float_macs_share(planned))

    def curve(self) -> tuple[TradeOff, ...]:
        """Return the tried points, from all int8 on."""
        return tuple(sorted((c.point for c in self.tried.values()), key=lambda point: point.float_nodes))


def float_macs_share(quantized: Quantized) -> float:
    """Return the share of the multiply-accumulates that a plan leaves float."""
    macs, computing = macs_by_node(quantized.model), set(quantized.computing)
    left = sum(count for name, count in macs.items() if name not in computing)
    return left / (sum(macs.values()) or 1)
