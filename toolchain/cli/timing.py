"""The commands ``bench`` and ``compare``."""

from __future__ import annotations

import typer

from toolchain.cli import options
from toolchain.cli.command import app, command
from toolchain.cli.terminal import say, show, working
from toolchain.core.errors import GateError


@command(
    app,
    "bench model.onnx int8.onnx --threads 1,2,4",
    "bench model.onnx --on ssh:pi@raspberrypi.local -o pi.json",
    "bench base.onnx new.onnx --baseline base --max-regression 5%",
)
def bench(
    models: options.Models = None,
    on: options.BenchPlace = "local",
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
    operators: options.Operators = False,
    sustained: options.SustainedFor = None,
    baseline: options.Baseline = None,
    max_regression: options.MaxRegression = None,
    format: options.Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """Time models, here or on another device.

    The models run in fresh processes and take turns, round by round.
    """
    from toolchain.api.bench import bench
    from toolchain.report import operators as report_operators
    from toolchain.report.render import check_format, render

    check_format(format)
    with working() as progress:
        measured = bench(
            models or (),
            on=on,
            output=output,
            suite=suite,
            target=target,
            threads=threads,
            cpus=cpus,
            arena=arena,
            recipe=recipe,
            python=python,
            library=library,
            ndk=ndk,
            operators=operators,
            sustained=sustained,
            baseline=baseline,
            max_regression=max_regression,
            progress=progress,
        )
    if as_json:
        show(measured.results.to_json())
    else:
        if measured.description:
            show(f"{measured.description}\n\n")
        show(render(measured.comparison, format))
        if operators and format == "table":
            show(report_operators.render(measured.results))
    if not measured.timed and not as_json:
        from toolchain.benchmark.emulated import NO_LATENCY

        say(f"no latency: {NO_LATENCY}")
    if measured.comparison.regressions:
        raise typer.Exit(GateError.exit_code)


@command(
    app,
    "compare laptop.json pi.json",
    "compare exported --format html -o report.html",
    "compare results.json --baseline fp32 --max-regression 5%",
)
def compare(
    results: options.ResultsFiles,
    baseline: options.Baseline = None,
    max_regression: options.MaxRegression = None,
    format: options.Format = "table",
    output: options.TextOutput = None,
    as_json: options.AsJson = False,
) -> None:
    """Put results side by side; with a limit, fail on a slowdown."""
    from toolchain.api.compare import compare, render_text
    from toolchain.report.render import render

    format = "json" if as_json else format
    comparison = compare(results, baseline=baseline, max_regression=max_regression, format=format, output=output)
    if output is not None:
        say(f"written: {output}")
    else:
        show(render(comparison) if format == "table" else render_text(comparison, results, format))
    if comparison.regressions:
        raise typer.Exit(GateError.exit_code)
