"""Precision by operator: the fewest operators left float for which the model loses no more than is allowed.

Clusters of operators (`sensitivity.clusters`) are left float in their order, and their number is searched, doubling and
bisecting, each time with a real plan, its score and its measured latency. These points are the trade-off curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from toolchain.core.progress import Progress
from toolchain.data.tensors import Feed
from toolchain.formats.findings import NoiseSource
from toolchain.formats.manifest import TradeOff
from toolchain.graph import run
from toolchain.latency.race import race
from toolchain.quantization.accuracy.sensitivity import clusters
from toolchain.quantization.loop import Quantized

Rate = Callable[[ir.Model], float]
"""From a quantized model to its score, higher is better."""

RACE_SECONDS = 1.0


def search(
    quantized: Quantized,
    noises: Sequence[NoiseSource],
    rate: Rate,
    least_score: float,
    feed: Feed,
    progress: Progress,
    *,
    points: int | None = None,
) -> tuple[Quantized, tuple[TradeOff, ...]]:
    """The plan with the fewest clusters left float whose score is at least `least_score`, and the curve on the way.

    Args:
        quantized: everything int8 that pays.
        noises: of its plan.
        rate: scores a quantized model.
        least_score: what is asked for. Where nothing reaches it, the best-scoring plan found is returned.
        feed: inputs for measuring latency.
        progress: told about every step.
        points: do not search, but measure the whole curve at so many even places.
    """
    order = clusters(quantized.model, quantized.plan, noises)
    engine = run.session(quantized.source, threads=1)
    tried: dict[int, tuple[Quantized, TradeOff]] = {}

    def attempt(count: int) -> float:
        if count not in tried:
            progress("searching precision", len(tried), 0)
            reasons = {
                name: f"its int8 would cost accuracy: rounding {cluster.tensor!r} is {cluster.share:.1%} of the error"
                for cluster in order[:count]
                for name in cluster.nodes
            }
            found = quantized.leaving_float(reasons)
            written = found.write(found.encoding)
            first, second = race(engine, run.session(written, threads=1), feed, seconds=RACE_SECONDS).medians_s
            point = TradeOff(float_nodes=len(reasons), score=rate(written), speedup=first / second)
            tried[count] = found, point
        return tried[count][1].score

    if points is not None:
        for step in range(points):
            attempt(round(step * len(order) / max(points - 1, 1)))
    else:
        _bisect(attempt, len(order), least_score)
    enough = [count for count, (_, point) in tried.items() if point.score >= least_score]
    best = min(enough, key=lambda n: -tried[n][1].speedup if points else n) if enough else max(tried, key=attempt)
    curve = tuple(tried[count][1] for count in sorted(tried))
    return tried[best][0], curve


def _bisect(score: Callable[[int], float], largest: int, least: float) -> None:
    """Find the fewest that are enough, taking the score to grow with the number."""
    if score(0) >= least:
        return
    low, high = 0, 1
    while score(min(high, largest)) < least:
        if high >= largest:
            return
        low, high = high, 2 * high
    high = min(high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if score(middle) >= least else (middle, high)
