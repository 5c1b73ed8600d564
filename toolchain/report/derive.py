"""Rows of the results table: measurements with their statistics, grouped into blocks of comparable rows.

The statistics themselves are computed in `toolchain.benchmark.stats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.benchmark.stats import Estimate, Steadiness, difference, median, speedup, verdict
from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.formats.results import Host, Latency, Measurement, Results

DEFAULT_BASELINE = "fp32"


@dataclass(frozen=True)
class Row:
    """A measurement and its statistics; a statistic is None if it cannot be computed.

    Attributes:
        measurement: the measurement.
        source: name of the results file; None if there is only one.
        p50_ms: median latency.
        verdict: a judgement of whether the latency samples were steady.
        baseline: name of the row in the same block that `speedup` is relative to. The baseline row itself has this name
            and no speed-up.
        speedup: the baseline's latency divided by this row's.
        regressed: True if the row is slower than the baseline by more than the gate's limit.
    """

    measurement: Measurement
    source: str | None = None
    p50_ms: Estimate | None = None
    verdict: Steadiness | None = None
    baseline: str | None = None
    speedup: Estimate | None = None
    regressed: bool = False

    @property
    def uncertain(self) -> bool:
        """True if the 95 % interval of the speed-up includes 1: there may be no difference."""
        return self.speedup is not None and self.speedup.low <= 1 <= self.speedup.high

    @property
    def difference(self) -> str | None:
        """The speed-up as text: ``no significant difference`` or ``5.1 % slower (95 %: ...)``."""
        return difference(self.speedup) if self.speedup else None

    @property
    def label(self) -> str:
        """Name of the row in messages, e.g. ``net int8 for rk3588 in before``."""
        m = self.measurement
        return " ".join(filter(None, [m.model, m.variant, f"for {m.target}" if m.target else None, _in(self.source)]))


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other: same processor, runtime, thread count and cores.

    Attributes:
        host: the machine.
        threads: number of threads; None if nothing was timed.
        rows: the rows, those of one model together.
        cpus: the cores that the benchmark was pinned to; empty: all.
    """

    host: Host
    threads: int | None
    rows: tuple[Row, ...]
    cpus: tuple[int, ...] = ()


def derive(results: Sequence[tuple[str | None, Results]], baseline: str | None = None) -> tuple[Block, ...]:
    """Group measurements into blocks and compute their statistics.

    Args:
        results: each with the name of its file, or None if there is only one.
        baseline: a variant, or the name of a file (every row is then compared with the same row of that file).
            None is the variant ``fp32``, which may be absent.

    Returns:
        Blocks in order of first appearance, the rows of one model together.

    Raises:
        ConfigError: the baseline does not exist (with a suggestion), or there is no measurement.
    """
    rows = [Row(m, source) for source, result in results for m in result.measurements]
    if not rows:
        raise ConfigError("the results hold no measurement", hint="run `toolchain bench` first")
    known = {r.measurement.variant for r in rows} | {r.source for r in rows if r.source}
    if baseline is not None and baseline not in known:
        raise ConfigError(f"unknown baseline {baseline!r}", hint=did_you_mean(baseline, known))
    groups: dict[tuple[object, int | None, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.measurement.host.key, *_threads_and_cpus(row.measurement)), []).append(row)
    # Rows without latency join the first timed block of their host.
    for key, untimed in [(host, group) for (host, threads, _), group in groups.items() if threads is None]:
        timed = next((group for (host, threads, _), group in groups.items() if host == key and threads), None)
        if timed is not None:
            timed.extend(untimed)
            del groups[key, None, ()]
    return tuple(
        Block(group[0].measurement.host, threads, tuple(_finish(r, group, baseline) for r in _by_model(group)), cpus)
        for (_, threads, cpus), group in groups.items()
    )


def _finish(row: Row, block: Sequence[Row], baseline: str | None) -> Row:
    m = row.measurement
    if m.latency is None:
        return row
    name = baseline or DEFAULT_BASELINE
    base = _find_baseline(row, block, name)
    return Row(
        measurement=m,
        source=row.source,
        p50_ms=median(m.latency.samples_ms),
        verdict=verdict(m.latency, m.conditions, m.sustained),
        baseline=name if base else None,
        speedup=_speedup(base, row, m.latency) if base and base is not row else None,
    )


def _find_baseline(row: Row, block: Sequence[Row], name: str) -> Row | None:
    """Return the row to compare `row` with. It has the same model; the same run is preferred, then the same target."""
    m = row.measurement
    same = [r for r in block if r.measurement.model == m.model and r.measurement.latency]
    candidates = [r for r in same if r.measurement.variant == name]
    if not candidates:
        here = m.variant, m.target
        candidates = [r for r in same if r.source == name and (r.measurement.variant, r.measurement.target) == here]

    def similarity(other: Row) -> tuple[bool, bool, bool, bool]:
        o = other.measurement
        return other is row, _interleaved(other, row), o.target == m.target, o.target in (None, "host")

    return max(candidates, key=similarity, default=None)


def _speedup(base: Row, row: Row, latency: Latency) -> Estimate | None:
    reference = base.measurement.latency
    return speedup(reference, latency, paired=_interleaved(base, row)) if reference else None


def _interleaved(a: Row, b: Row) -> bool:
    """Return True if two rows were measured in turn, in one run."""
    return (a.source, a.measurement.when) == (b.source, b.measurement.when)


def _by_model(rows: Sequence[Row]) -> list[Row]:
    order = list(dict.fromkeys(r.measurement.model for r in rows))
    return sorted(rows, key=lambda r: order.index(r.measurement.model))


def _threads_and_cpus(measurement: Measurement) -> tuple[int | None, tuple[int, ...]]:
    latency = measurement.latency
    return (latency.threads, latency.cpus) if latency else (None, ())


def _in(source: str | None) -> str | None:
    return f"in {source}" if source else None
