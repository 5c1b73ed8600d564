"""``toolchain bench`` and ``toolchain compare``."""

from __future__ import annotations

from pathlib import Path

import typer

from toolchain import options
from toolchain.errors import GateError, InputError
from toolchain.files import check_output, write_text
from toolchain.terminal import say, show, working


def bench(
    models: options.Models,
    output: options.ResultsOutput = None,
    target: options.BenchTarget = None,
    threads: options.Threads = None,
    recipe: options.RecipeFile = None,
    format: options.Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """Time models on this machine.

    Each in a fresh process, interleaved round by round.
    """
    from toolchain.bench import Subject
    from toolchain.bench import bench as run
    from toolchain.report import check_format, render
    from toolchain.target import load_target

    check_format(format)
    if output is not None:
        check_output(output)
    settings = options.read_recipe(recipe, None).bench
    profile = load_target(target) if target else None
    names = _distinct_names(models)
    subjects = [Subject(path, name, path.suffix.lstrip(".")) for path, name in zip(models, names, strict=True)]
    with working() as report:
        found = run(
            subjects, settings=settings, target=profile, threads=threads, progress=lambda line: report(line, 0, 0)
        )
        if output is not None:
            found.save(output)
    if as_json:
        show(found.to_json())
        return
    show(render(found, format))


def compare(
    results: options.ResultsFiles,
    baseline: options.Baseline = None,
    max_regression: options.MaxRegression = None,
    format: options.Format = "table",
    output: options.TextOutput = None,
    as_json: options.AsJson = False,
) -> None:
    """Put results side by side; with a limit, act as a gate."""
    from toolchain.report import check_format, html, render
    from toolchain.report import compare as run

    format = "json" if as_json else format
    check_format(format)
    if output is not None:
        check_output(output)
        if format == "table":
            raise InputError("a table is for the terminal", where="--output", hint="give --format html, or another")
    found = run(results, baseline, None if max_regression is None else options.read_share(max_regression))
    # A single export has more to tell than its rows.
    whole = format == "html" and len(results) == 1
    text = html.page(found, html.details(results[0])) if whole else render(found, format)
    if isinstance(text, str) and output is not None:
        write_text(output, text)
        say(f"written: {output}")
    else:
        show(text)
    if found.regressions:
        raise typer.Exit(GateError.exit_code)


def _distinct_names(paths: list[Path]) -> list[str]:
    """Stems, or paths where two stems are the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]
