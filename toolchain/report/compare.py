"""`compare` and `compare_results`: results side by side, and a gate on slowing down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.core.errors import ConfigError
from toolchain.formats.results import Results
from toolchain.report.derive import Block, Row, derive


@dataclass(frozen=True)
class Comparison:
    """Merged results. regressions: rows beyond `max_regression`; the gate fails where there are any.

    baseline: what was asked for; None is the default.
    """

    blocks: tuple[Block, ...]
    max_regression: float | None = None
    baseline: str | None = None

    @property
    def without_baseline(self) -> tuple[Row, ...]:
        """Timed rows that no baseline was found for."""
        return tuple(row for block in self.blocks for row in block.rows if row.p50_ms and not row.baseline)

    @property
    def regressions(self) -> tuple[Row, ...]:
        """The rows that failed the gate."""
        return tuple(row for block in self.blocks for row in block.rows if row.regressed)


def compare(
    files: Sequence[str | Path], baseline: str | None = None, max_regression: float | None = None
) -> Comparison:
    """Read results files and hold every row against the baseline of its model on the same host.

    Rows of different processors, runtimes or thread counts come out as separate blocks, and no speed-up
    is computed across them.

    Args:
        files: results files, or folders that hold a ``results.json``, as export writes them.
        baseline: a variant, or the name of one of several files (without its suffix); None is ``fp32``.
        max_regression: how much slower than its baseline a row may be, as a fraction. A row fails where its
            median is slower by more, and the 95 % interval of the ratio leaves no doubt that it is slower at all.

    Raises:
        ConfigError: a file is missing or malformed, the baseline is unknown, the limit is negative, or the
            limit is set and there is not one row to hold against it.
    """
    if not files:
        raise ConfigError("no results file to compare", hint="give at least one")
    check_limit(max_regression)
    paths = [Path(file) for file in files]
    paths = [path / "results.json" if path.is_dir() else path for path in paths]
    unique = len({path.stem for path in paths}) == len(paths)
    names = [path.stem if unique else str(path) for path in paths] if len(paths) > 1 else [None]
    return compare_results(
        [(name, Results.load(path)) for name, path in zip(names, paths, strict=True)], baseline, max_regression
    )


def compare_results(
    results: Sequence[tuple[str | None, Results]], baseline: str | None = None, max_regression: float | None = None
) -> Comparison:
    """As `compare`, of results with the names of their files; None where there is one only."""
    check_limit(max_regression)
    blocks = derive(results, baseline)
    if max_regression is not None:
        if not any(row.speedup for block in blocks for row in block.rows):
            hint = "measure it with them, on the same host, runtime, threads and cores"
            raise ConfigError("no row has a baseline to be held against", hint=hint)
        limit = max_regression
        blocks = tuple(replace(b, rows=tuple(replace(r, regressed=_slower(r, limit)) for r in b.rows)) for b in blocks)
    return Comparison(blocks, max_regression, baseline)


def check_limit(max_regression: float | None) -> None:
    """Refuse a negative one.

    Raises:
        ConfigError: with a hint.
    """
    if max_regression is not None and max_regression < 0:
        raise ConfigError(f"max_regression is {max_regression:g}", hint="give a fraction of 0 or more, like 0.05")


def _slower(row: Row, limit: float) -> bool:
    return row.speedup is not None and 1 / row.speedup.value - 1 > limit and row.speedup.high < 1
