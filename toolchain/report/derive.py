"""From raw measurements to rows with derived statistics, grouped so that only comparable rows stand together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.benchmark.stats import Estimate, Steadiness, difference, median, speedup, verdict
from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.formats.results import Host, Latency, Measurement, Results

DEFAULT_BASELINE = "fp32"


@dataclass(frozen=True)
class Row:
    """A measurement and what follows from it; what cannot be derived is None.

    source: the results file, where there are several.
    baseline: the name of what `speedup` is relative to, in the same block; a row without speed-up is it.
    regressed: slower than the baseline beyond the limit that was set.
    """

    measurement: Measurement
    source: str | None = None
    p50_ms: Estimate | None = None
    verdict: Steadiness | None = None
    baseline: str | None = None
    speedup: Estimate | None = None
    regressed: bool = False

    @property
    def difference(self) -> str | None:
        """The speed-up in words: ``no significant difference`` or ``5.1 % slower (95 %: ...)``."""
        return difference(self.speedup) if self.speedup else None

    @property
    def label(self) -> str:
        """The row in words, for messages."""
        m = self.measurement
        return " ".join(filter(None, [m.model, m.variant, f"for {m.target}" if m.target else None, _in(self.source)]))


@dataclass(frozen=True)
class Block:
    """Rows that may be compared: of one processor, runtime, number of threads (None where nothing was timed) and
    choice of its cores (empty: all).
    """

    host: Host
    threads: int | None
    rows: tuple[Row, ...]
    cpus: tuple[int, ...] = ()


def derive(results: Sequence[tuple[str | None, Results]], baseline: str | None = None) -> tuple[Block, ...]:
    """Blocks in order of first appearance, the rows of one model together.

    Args:
        results: with the name of each one's file; None where there is only one.
        baseline: a variant, or a file's name, then every row is held against the same row there;
            None is the variant ``fp32``, and there need be none.

    Raises:
        ConfigError: no such baseline (with a near match), or nothing to show.
    """
    rows = [Row(m, source) for source, result in results for m in result.measurements]
    if not rows:
        raise ConfigError("the results hold no measurement", hint="run `toolchain bench` first")
    known = {r.measurement.variant for r in rows} | {r.source for r in rows if r.source}
    if baseline is not None and baseline not in known:
        raise ConfigError(f"unknown baseline {baseline!r}", hint=did_you_mean(baseline, known))
    groups: dict[tuple[object, int | None, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.measurement.host.key, *_share(row.measurement)), []).append(row)
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
    """The row to hold `row` against: of the same model, and best of the same run, file and target."""
    m = row.measurement
    same = [r for r in block if r.measurement.model == m.model and r.measurement.latency]
    found = [r for r in same if r.measurement.variant == name]
    if not found:
        here = m.variant, m.target
        found = [r for r in same if r.source == name and (r.measurement.variant, r.measurement.target) == here]

    def likeness(other: Row) -> tuple[bool, bool, bool, bool]:
        o = other.measurement
        return other is row, _together(other, row), o.target == m.target, o.target in (None, "host")

    return max(found, key=likeness, default=None)


def _speedup(base: Row, row: Row, latency: Latency) -> Estimate | None:
    reference = base.measurement.latency
    return speedup(reference, latency, paired=_together(base, row)) if reference else None


def _together(a: Row, b: Row) -> bool:
    """Whether two rows were interleaved in one run."""
    return (a.source, a.measurement.when) == (b.source, b.measurement.when)


def _by_model(rows: Sequence[Row]) -> list[Row]:
    order = list(dict.fromkeys(r.measurement.model for r in rows))
    return sorted(rows, key=lambda r: order.index(r.measurement.model))


def _share(measurement: Measurement) -> tuple[int | None, tuple[int, ...]]:
    """The threads, and the processors they were bound to."""
    latency = measurement.latency
    return (latency.threads, latency.cpus) if latency else (None, ())


def _in(source: str | None) -> str | None:
    return f"in {source}" if source else None
