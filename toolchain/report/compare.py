"""Comparison of results, and the gate that fails when a model became slower.

`compare` reads files, `compare_results` takes results that are in memory already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.core.errors import ConfigError
from toolchain.formats.results import Results
from toolchain.report.derive import DEFAULT_BASELINE, Block, Row, derive


@dataclass(frozen=True)
class Comparison:
    """Results of one or several files, ready to be rendered.

    Attributes:
        blocks: rows that may be compared with each other, one block for each machine and setting.
        max_regression: the gate's limit, as a fraction of the baseline's latency; None: no gate.
        baseline: the baseline that the user gave; None: the default one.
    """

    blocks: tuple[Block, ...]
    max_regression: float | None = None
    baseline: str | None = None

    @property
    def without_baseline(self) -> tuple[Row, ...]:
        """Timed rows for which there is no baseline."""
        return tuple(row for block in self.blocks for row in block.rows if row.p50_ms and not row.baseline)

    @property
    def regressions(self) -> tuple[Row, ...]:
        """Rows that fail the gate."""
        return tuple(row for block in self.blocks for row in block.rows if row.regressed)


def compare(
    files: Sequence[str | Path], baseline: str | None = None, max_regression: float | None = None
) -> Comparison:
    """Read results files and compare every row with the baseline of its model on the same host.

    Rows of different processors, runtimes, thread counts or cores go into separate blocks, and no speed-up
    is computed between blocks.

    Args:
        files: results files, or folders that hold a ``results.json``, as export writes them.
        baseline: a variant, or the name of one of several files (without its suffix); None is ``fp32``.
        max_regression: how much slower than its baseline a row may be, as a fraction. A row fails if its
            median is slower by more than that and the 95 % interval of the ratio excludes equal speed.

    Raises:
        ConfigError: a file is missing or malformed, the baseline is unknown, the limit is negative, or there is
            a limit and no row has a baseline.
    """
    if not files:
        raise ConfigError("no results file to compare", hint="give at least one")
    check_limit(max_regression)
    paths = [Path(file) for file in files]
    paths = [path / "results.json" if path.is_dir() else path for path in paths]
    unique = len({path.stem for path in paths}) == len(paths)
    names = [path.stem if unique else str(path) for path in paths] if len(paths) > 1 else [None]
    results = [(name, Results.load(path)) for name, path in zip(names, paths, strict=True)]
    return compare_results(results, baseline, max_regression)


def compare_results(
    results: Sequence[tuple[str | None, Results]], baseline: str | None = None, max_regression: float | None = None
) -> Comparison:
    """Compare results as `compare` does; each comes with its file's name, or None if there is only one.

    Raises:
        ConfigError: the baseline is unknown, the limit is negative, or there is a limit and no row has a baseline.
    """
    check_limit(max_regression)
    blocks = derive(results, baseline)
    if max_regression is not None:
        if not any(row.speedup for block in blocks for row in block.rows):
            message = f"no row can be compared with the baseline {baseline or DEFAULT_BASELINE!r}"
            hint = "measure both together, on the same host with the same runtime, threads and cores"
            raise ConfigError(message, hint=hint)
        limit = max_regression
        blocks = tuple(replace(b, rows=tuple(replace(r, regressed=_slower(r, limit)) for r in b.rows)) for b in blocks)
    return Comparison(blocks, max_regression, baseline)


def check_limit(max_regression: float | None) -> None:
    """Refuse a negative limit.

    Raises:
        ConfigError: the limit is negative.
    """
    if max_regression is not None and max_regression < 0:
        raise ConfigError(f"max_regression is {max_regression:g}", hint="give a fraction of 0 or more, like 0.05")


def _slower(row: Row, limit: float) -> bool:
    return row.speedup is not None and 1 / row.speedup.value - 1 > limit and row.speedup.high < 1
