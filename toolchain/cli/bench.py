"""``toolchain bench`` and ``toolchain compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from toolchain.cli import options
from toolchain.cli.terminal import say, show, working
from toolchain.core.errors import ConfigError, GateError, InputError, did_you_mean
from toolchain.core.files import check_output, write_text

if TYPE_CHECKING:
    from toolchain.benchmark.bench import Subject

ARENA = {"on": (True,), "off": (False,), "both": (True, False)}
PROFILE_RUNS = 20


def bench(
    models: options.Models = None,
    on: options.Place = "local",
    output: options.ResultsOutput = None,
    suite: options.SuiteFile = None,
    target: options.BenchTarget = None,
    threads: options.Threads = None,
    cpus: options.Cpus = None,
    arena: options.Arena = "on",
    recipe: options.RecipeFile = None,
    python: options.PlacePython = None,
    library: options.PlaceLibrary = None,
    ndk: options.PlaceNdk = None,
    profile: options.Profiled = False,
    sustained: options.SustainedFor = None,
    baseline: options.Baseline = None,
    max_regression: options.MaxRegression = None,
    format: options.Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """Time models, here or on another device.

    In fresh processes, interleaved round by round; with a limit, act as a gate. An emulated CPU gives answers.
    """
    from toolchain.benchmark.bench import bench as run
    from toolchain.benchmark.find import find_place
    from toolchain.benchmark.rounds import Extras
    from toolchain.devices.catalogue import load_target
    from toolchain.formats.results import Results
    from toolchain.report import operators
    from toolchain.report.compare import compare_results
    from toolchain.report.render import check_format, render

    check_format(format)
    place = find_place(on, python=python, library=library, ndk=ndk)
    if profile and not place.profiles_operators:
        raise InputError(f"has no meaning for {on}", where="--profile", hint="profile the model here or over SSH")
    if output is not None:
        check_output(output)
    limit = None if max_regression is None else options.read_share(max_regression)
    title, groups = _suite(suite, models) if suite else ("", [_subjects(models or (), baseline)])
    groups = [_varied(group, options.read_threads(threads), arena) for group in groups]
    _check_gate(groups, baseline, limit)
    extras = Extras(PROFILE_RUNS if profile else 0, 60 * _positive(sustained))
    settings = options.read_recipe(recipe, None).bench
    device_profile = load_target(target) if target else None
    with working() as report:
        parts = [
            run(
                group,
                settings=settings,
                target=device_profile,
                place=place,
                cpus=cpus,
                extras=extras,
                progress=report,
            )
            for group in groups
        ]
        found = Results(measurements=tuple(row for part in parts for row in part.measurements))
        if output is not None:
            found.save(output)
    compared = compare_results([(None, found)], baseline, limit)
    if as_json:
        show(found.to_json())
    else:
        if title:
            show(f"{title}\n\n")
        show(render(compared, format))
        if profile and format == "table":
            show(operators.render(found))
    if place.timing is None and not as_json:
        from toolchain.benchmark.emulated import NO_LATENCY

        say(f"no latency: {NO_LATENCY}")
    if compared.regressions:
        raise typer.Exit(GateError.exit_code)


def compare(
    results: options.ResultsFiles,
    baseline: options.Baseline = None,
    max_regression: options.MaxRegression = None,
    format: options.Format = "table",
    output: options.TextOutput = None,
    as_json: options.AsJson = False,
) -> None:
    """Put results side by side; with a limit, act as a gate."""
    from toolchain.report.compare import compare as run
    from toolchain.report.html import page
    from toolchain.report.render import check_format, render

    format = "json" if as_json else format
    check_format(format)
    if output is not None:
        check_output(output)
        if format == "table":
            raise InputError("a table is for the terminal", where="--output", hint="give --format html, or another")
    found = run(results, baseline, None if max_regression is None else options.read_share(max_regression))
    # A single export has more to tell than its rows.
    whole = format == "html" and len(results) == 1
    text = page.render(found, page.read_details(results[0])) if whole else render(found, format)
    if isinstance(text, str) and output is not None:
        write_text(output, text)
        say(f"written: {output}")
    else:
        show(text)
    if found.regressions:
        raise typer.Exit(GateError.exit_code)


def _subjects(paths: Sequence[Path], baseline: str | None) -> list[Subject]:
    """A model each; with a baseline, variants of one model."""
    from toolchain.benchmark.bench import Subject

    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]
    if baseline is not None:
        return [Subject(path, "model", name) for path, name in zip(paths, names, strict=True)]
    return [Subject(path, name, path.suffix.lstrip(".")) for path, name in zip(paths, names, strict=True)]


def _suite(path: Path, models: Sequence[Path] | None) -> tuple[str, list[list[Subject]]]:
    """What a suite describes itself as, and its rows model by model."""
    from toolchain.benchmark.bench import Subject
    from toolchain.formats.suite import load_suite

    if models:
        raise InputError(f"is given beside {models[0]}", where="--suite", hint="give a suite or models")
    suite, folder = load_suite(path)
    groups: dict[str, list[Subject]] = {}
    for row in suite.rows:
        groups.setdefault(row.model, []).append(Subject(folder / row.file, row.model, row.variant, dims=row.dims))
    return suite.description, list(groups.values())


def _varied(subjects: Sequence[Subject], threads: Sequence[int | None], arena: str) -> list[Subject]:
    """Every subject with every number of threads, and with an arena, without or both."""
    if arena not in ARENA:
        raise InputError(f"is {arena!r}", where="--arena", hint=did_you_mean(arena, ARENA))
    return [
        replace(s, threads=number, arena=kept, variant=s.variant if kept else f"{s.variant}, no arena")
        for s in subjects
        for number in threads
        for kept in ARENA[arena]
    ]


def _check_gate(groups: Sequence[Sequence[Subject]], baseline: str | None, limit: float | None) -> None:
    variants = {subject.variant for group in groups for subject in group}
    if baseline is not None and baseline not in variants:
        raise ConfigError(f"unknown baseline {baseline!r}", where="--baseline", hint=did_you_mean(baseline, variants))
    if limit is not None and not any(len({s.variant for s in group}) > 1 for group in groups):
        hint = "give the files of the baseline and of the candidate, and --baseline NAME, the stem of the one"
        raise InputError("has nothing to be held against", where="--max-regression", hint=hint)


def _positive(minutes: float | None) -> float:
    if minutes is not None and not 0 < minutes < float("inf"):
        raise InputError(f"is {minutes:g}", where="--sustained", hint="give minutes, such as 10")
    return minutes or 0.0
