"""Mixed precision: leave as few operators float as the allowed loss of accuracy permits.

Clusters of operators (`sensitivity.noise_clusters`) are left float in their order. Their number is searched by doubling
and bisection; each number is tried with a real plan, its score and its measured latency. The tried plans are the points
of the trade-off curve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import onnx_ir as ir

from toolchain.core.progress import Progress
from toolchain.data.tensors import Feed
from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import TradeOff
from toolchain.graph import run
from toolchain.latency.race import race
from toolchain.quantization.accuracy.sensitivity import noise_clusters
from toolchain.quantization.loop import Quantized

Score = Callable[[ir.Model], float]
"""Scores a quantized model, higher is better."""

MAX_RACE_S = 1.0
"""Seconds of a race between a plan and the float model; the recipe's ``bench.min_time_s`` is used where it is less."""

_log = logging.getLogger(__name__)


def search(
    quantized: Quantized,
    sources: Sequence[NoiseSource],
    score: Score,
    min_score: float,
    feed: Feed,
    progress: Progress,
    *,
    points: int | None = None,
) -> tuple[Quantized, tuple[TradeOff, ...]]:
    """Find the plan with the fewest clusters left float whose score is at least `min_score`.

    Args:
        quantized: a plan with everything in int8 that is not slower as int8.
        sources: the noise sources of that plan.
        score: scores a quantized model.
        min_score: the score to reach. Where no plan reaches it, the plan with the best score is returned.
        feed: inputs for measuring latency.
        progress: called for every plan that is tried.
        points: measure the whole curve at this many evenly spaced points instead of searching.

    Returns:
        The plan, and the points of the trade-off curve that were measured.
    """
    clusters = noise_clusters(quantized.model, quantized.plan, sources)
    float_session = run.session(quantized.source, threads=1)
    race_s = min(MAX_RACE_S, quantized.planner.recipe.bench.min_time_s)
    tried: dict[int, tuple[Quantized, TradeOff]] = {}

    def score_of(count: int) -> float:
        """Score the plan with the first `count` clusters left float."""
        if count not in tried:
            progress("searching precision", len(tried))
            reasons = {
                name: f"left float for accuracy: {cluster.error_share(1)}"
                for cluster in clusters[:count]
                for name in cluster.nodes
            }
            candidate = quantized.leaving_float(reasons)
            written = candidate.write(candidate.encoding)
            times = race(float_session, run.session(written, threads=1), feed, seconds=race_s).medians_s
            point = TradeOff(float_nodes=len(reasons), score=score(written), speedup=times[0] / times[1])
            _log.info("%d operators left float: score %.4f, speed-up %.2f", len(reasons), point.score, point.speedup)
            tried[count] = candidate, point
        return tried[count][1].score

    if points is not None:
        for step in range(points):
            score_of(round(step * len(clusters) / max(points - 1, 1)))
    else:
        _bisect(score_of, len(clusters), min_score)
    sufficient = [count for count, (_, point) in tried.items() if point.score >= min_score]
    if not sufficient:
        best = max(tried, key=score_of)
    else:
        best = min(sufficient, key=lambda count: -tried[count][1].speedup if points else count)
    return tried[best][0], tuple(tried[count][1] for count in sorted(tried))


def _bisect(score_of: Callable[[int], float], largest: int, min_score: float) -> None:
    """Try the counts that lead to the lowest one with a sufficient score, if the score grows with the count."""
    if score_of(0) >= min_score:
        return
    low, high = 0, 1
    while score_of(min(high, largest)) < min_score:
        if high >= largest:
            return
        low, high = high, 2 * high
    high = min(high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if score_of(middle) >= min_score else (middle, high)
