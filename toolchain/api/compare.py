"""`compare`: put results side by side; with a limit, find what became slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.core.errors import InputError
from toolchain.core.files import check_output, write_text
from toolchain.report.compare import Comparison
from toolchain.report.compare import compare as compare_files
from toolchain.report.html import page
from toolchain.report.render import check_format, render


@checked()
def compare(
    results: Sequence[str | Path] | str | Path,
    *,
    baseline: str | None = None,
    max_regression: float | str | None = None,
    format: str = "table",
    output: str | Path | None = None,
) -> Comparison:
    """Put results files side by side; with a limit, find what became slower.

    Args:
        results: results files, or folders that ``export`` or ``train`` wrote.
        baseline: a variant, or the name of one of several files; None is ``fp32``.
        max_regression: a row is a regression if it is slower than its baseline by more than this: ``0.05`` or ``"5%"``.
        format: ``table``, ``markdown``, ``csv``, ``json`` or ``html``.
        output: write the comparison to this file, in a format other than ``table``.

    Returns:
        The rows; ``regressions`` lists those that are slower than allowed.

    Raises:
        ConfigError: a file is missing or malformed, or the baseline is unknown.
        InputError: a limit or format that cannot be used.
    """
    check_format(format)
    if output is not None:
        check_output(output)
        if format == "table":
            hint = "give --format markdown, csv, json or html"
            raise InputError("needs another format than table, which is for the terminal", where="--output", hint=hint)
    files = [results] if isinstance(results, str | Path) else list(results)
    comparison = compare_files(files, baseline, read_share(max_regression))
    if output is not None:
        write_text(output, render_text(comparison, files, format))
    return comparison


def render_text(comparison: Comparison, files: Sequence[str | Path], format: str) -> str:
    """Return a comparison as text. The page of a single export also shows the findings and manifests in its folder."""
    if format == "html" and len(files) == 1:
        return page.render(comparison, page.read_details(files[0]))
    return str(render(comparison, format))


def read_share(share: float | str | None) -> float | None:
    """Read the limit of ``--max-regression``, ``5%`` or ``0.05``, as a fraction.

    Raises:
        InputError: it is not a fraction of 0 or more.
    """
    if share is None:
        return None
    try:
        text = str(share)
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"is {share!r}", where="--max-regression", hint="give a share like 5% or 0.05")
    return value
