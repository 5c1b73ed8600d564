"""What the words and marks of a table mean, and which of its rows need a second look; each thing said once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toolchain.measurement import Evidence
from toolchain.report.compare import Comparison
from toolchain.report.derive import Row

EVIDENCE: dict[Evidence, str] = {
    "measured": "measured",
    "host": "this host",
    "emulated": "emulated",
    "estimated": "estimated",
}
_MEANING: dict[Evidence, str] = {
    "measured": "run on the target itself; the target host is the machine named above the table",
    "host": "run on that machine in the device's stead: times in ( ) are not the device's",
    "emulated": "run under an emulator: right answers, no times",
    "estimated": "computed from a model of the device, not run",
}


def legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Words of the table and their meanings, only of what is in it, in the order of its columns."""
    rows = [row for block in comparison.blocks for row in block.rows]
    measurements = [row.measurement for row in rows]
    found = [("MB", "size of the model file"), ("score", "; ".join(_scores(rows)))]
    if any(m.latency for m in measurements):
        found.append(("median ms", "of one inference, with its 95 % interval; nine of ten took less than p90 ms"))
    if compared := [row for row in rows if row.speedup]:
        names = " and ".join(sorted({str(row.baseline) for row in compared}))
        found.append(("speed-up", f"against {names} on the same host, round by round where they ran interleaved"))
        if any(_unsure(row) for row in compared):
            found.append(("~", "the speed-up's 95 % interval includes 1, so there may be none"))
    if empty := [m.memory.baseline_bytes for m in measurements if m.memory]:
        without = f"{max(empty) / 1e6:.0f} without a model"
        found.append(("RAM", f"MB of the process at its peak, loading included; {without}"))
    found += [(EVIDENCE[e], _MEANING[e]) for e in dict.fromkeys(m.evidence for m in measurements)]
    return [(word, meaning) for word, meaning in found if meaning]


def _scores(rows: Sequence[Row]) -> Iterator[str]:
    scores = [row.measurement.score for row in rows if row.measurement.score]
    if any(score.kind == "evaluate" for score in scores):
        yield "what the evaluation returned, higher is better"
    if agreed := [score.samples for score in scores if score.kind == "agreement"]:
        samples = f" on {agreed[0]} samples" if agreed[0] and len(set(agreed)) == 1 else ""
        yield f"≈ agreement with the source model's answers{samples}, not accuracy"


def _unsure(row: Row) -> bool:
    return row.speedup is not None and row.speedup.low <= 1 <= row.speedup.high


def notes(comparison: Comparison) -> list[str]:
    """A sentence each: unsteady rows (!), what was noted of rows, and rows the gate refused."""
    rows = [row for block in comparison.blocks for row in block.rows]
    lines = []
    if len(comparison.blocks) > 1:
        lines.append("Each block is another processor, runtime or number of threads: compare within a block only.")
    shaky = [(f"{r.verdict.kind}, {r.verdict.reason}", r) for r in rows if r.verdict and r.verdict.kind != "steady"]
    lines += [f"! {names(group)}: {text}." for text, group in _grouped(shaky)]
    noted = [(row.measurement.note, row) for row in rows if row.measurement.note]
    lines += [f"{names(group)}: {text.removesuffix('.')}." for text, group in _grouped(noted)]
    for row in comparison.regressions:
        if row.speedup and comparison.max_regression is not None:
            slower, limit = 1 / row.speedup.value - 1, comparison.max_regression
            lines.append(f"REGRESSION {row.label}: {slower:.1%} slower than {row.baseline}, allowed {limit:.1%}.")
    return lines


def _grouped(texts: Iterable[tuple[str, Row]]) -> Iterable[tuple[str, list[Row]]]:
    """Rows by text: those of absent devices are copies of the host's, and would repeat every remark on it."""
    groups: dict[str, list[Row]] = {}
    for text, row in texts:
        groups.setdefault(text, []).append(row)
    return groups.items()


def names(rows: Sequence[Row]) -> str:
    """Rows in words, targets of one model and variant together: ``net int8 for host, rk3588``."""
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for row in rows:
        m = row.measurement
        groups.setdefault((m.model, m.variant, row.source), []).append(m.target or "host")
    return "; ".join(
        f"{model} {variant} for {', '.join(targets)}" + (f" in {source}" if source else "")
        for (model, variant, source), targets in groups.items()
    )
