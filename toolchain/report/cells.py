"""TODO."""

from __future__ import annotations

from collections.abc import Callable

from toolchain.benchmark.stats import Estimate
from toolchain.report.derive import Block, Row
from toolchain.report.legend import EVIDENCE

# Header, and for columns of words the width below which they are not folded when a table is too wide.
_COLUMNS: dict[str, int | None] = {
    "model": 12,
    "target": 13,
    "variant": 10,
    "MB": None,
    "score": None,
    "median ms": None,
    "p90 ms": None,
    "speed-up": None,
    "RAM": None,
    "evidence": 9,
}


def _lines(block: Block, interval: Callable[[Estimate], str]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a block; the column of models only where there are several."""
    rows = [_cells(row, interval) for row in block.rows]
    first = 0 if len({row[0] for row in rows}) > 1 else 1
    return list(_COLUMNS)[first:], [row[first:] for row in rows]


def cells(block: Block) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a block, as the terminal shows them."""
    return _lines(block, _plus_minus)


def is_words(header: str) -> bool:
    """Whether a column holds words, and is set left."""
    return _COLUMNS[header] is not None


def heading(block: Block) -> list[str]:
    """The model, where the block has only one, and the machine."""
    return _heading(block)


def _heading(block: Block) -> list[str]:
    """The model, where the block has only one, and the machine."""
    host = block.host
    facts = [
        host.cpu,
        _plural(host.cores, "core"),
        *([f"{host.memory_mib / 1024:.1f} GiB"] if host.memory_mib else []),  # an emulated processor has none
        f"onnxruntime {host.onnxruntime}",
    ]
    facts += [_plural(block.threads, "thread")] if block.threads else []
    facts += [f"bound to {', '.join(map(str, block.cpus))}"] if block.cpus else []
    facts += [f"governor {host.governor}"] if host.governor else []
    models = {row.measurement.model for row in block.rows}
    return [*(models if len(models) == 1 else ()), f"{host.name}: {', '.join(facts)}"]


def _cells(row: Row, interval: Callable[[Estimate], str]) -> list[str]:
    m = row.measurement
    away = "({})" if m.evidence == "host" else "{}"
    p50 = p90 = faster = memory = ""
    if m.latency and row.p50_ms:
        p50 = away.format(f"{_short(row.p50_ms.value)} {interval(row.p50_ms)}")
        p50 += " !" if row.verdict and row.verdict.kind != "steady" else ""
        p90 = away.format(_short(m.latency.p90_ms))
    if row.speedup:
        unsure = "~" if row.speedup.low <= 1 <= row.speedup.high else ""
        faster = away.format(f"{unsure}{row.speedup.value:.2f}×")
    elif row.baseline:
        faster = "1×"
    if m.memory:
        memory = f"{max(m.memory.peak_load_bytes, m.memory.peak_run_bytes) / 1e6:.0f}"
    return [
        m.model,
        m.target or "host",
        f"{m.variant} ({row.source})" if row.source else m.variant,
        _short(m.size_bytes / 1e6),
        "" if m.score is None else f"{'≈' if m.score.kind == 'agreement' else ''}{m.score.value:.4g}",
        p50,
        p90,
        faster,
        memory,
        EVIDENCE[m.evidence],
    ]


def _plus_minus(estimate: Estimate) -> str:
    return f"±{estimate.uncertainty:.0%}"


def _bracket(estimate: Estimate) -> str:
    return f"[{_short(estimate.low)}–{_short(estimate.high)}]"


def _short(value: float) -> str:
    """Three significant digits or the whole part, at most three decimals, no exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
