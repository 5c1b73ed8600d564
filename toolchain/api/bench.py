"""`bench`: time models side by side, on this computer or on another device; with a limit, it acts as a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.api.arguments import checked
from toolchain.api.compare import read_share
from toolchain.api.recipes import read_recipe
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.bench import bench as run_bench
from toolchain.benchmark.find import find_place
from toolchain.benchmark.rounds import Extras
from toolchain.core.errors import ConfigError, InputError, did_you_mean
from toolchain.core.files import check_output
from toolchain.core.progress import Progress, silent
from toolchain.devices.catalogue import load_target
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Results
from toolchain.formats.suite import load_suite
from toolchain.formats.target import Target
from toolchain.report.compare import Comparison, compare_results

ARENA = {"on": (True,), "off": (False,), "both": (True, False)}
"""The values of ``arena``, each with the settings that are timed."""
MOST_THREADS = 1024
"""onnxruntime starts as many threads as it is asked for, and ends when the system refuses one."""
PROFILE_RUNS = 20
"""Inferences under onnxruntime's profiler for ``operators``."""


@dataclass(frozen=True)
class Benchmark:
    """Result of :func:`bench`.

    Attributes:
        results: the measurements with all their samples.
        comparison: the measurements as rows of a table; its ``regressions`` lists the rows above ``max_regression``.
        timed: False for an emulated CPU, which has no latency; the rows' notes then compare its outputs.
        description: the suite's description of its models; empty without a suite.
    """

    results: Results
    comparison: Comparison
    timed: bool = True
    description: str = ""


@checked()
def bench(
    models: Sequence[str | Path] | str | Path = (),
    *,
    on: str = "local",
    output: str | Path | None = None,
    suite: str | Path | None = None,
    target: str | Path | Target | None = None,
    threads: int | Sequence[int] | str | None = None,
    cpus: str | None = None,
    arena: str = "on",
    recipe: Recipe | str | Path | None = None,
    python: str | None = None,
    library: str | Path | None = None,
    ndk: str | Path | None = None,
    operators: bool = False,
    sustained: float | None = None,
    baseline: str | None = None,
    max_regression: float | str | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Time models in fresh processes, in turn, round by round.

    Args:
        models: ``.onnx`` or ``.ort`` files.
        on: ``local``, ``ssh:HOST``, ``adb:SERIAL``, or ``emulator:CPU``, which gives outputs and no times.
        output: write the results to this file.
        suite: time the models of this file or folder instead of `models`.
        target: use the threads and session options of this profile: its name, its path, or the profile.
        threads: number of threads, or several numbers to compare: ``2``, ``[1, 2, 4]`` or ``"1,2,4"``.
        cpus: run on these cores only: ``0-3,6``, ``big`` or ``little``.
        arena: whether the runtime keeps freed memory: ``on``, ``off``, or ``both`` to compare.
        recipe: a recipe, or the path of one; its ``bench`` part is used.
        python: with ``ssh:HOST``, an interpreter there that has numpy and onnxruntime.
        library: with ``adb:SERIAL``, the device's ``libonnxruntime.so``.
        ndk: with ``adb:SERIAL``, the folder of the Android NDK; None: ``$ANDROID_NDK_HOME``.
        operators: also measure how long each operator takes.
        sustained: afterwards, run continuously for this many minutes.
        baseline: the name (file name without suffix) of the model that the others are compared with.
        max_regression: a model is a regression if it is slower than the baseline by more than this: ``0.05`` or
            ``"5%"``.
        progress: is told about every stage.

    Returns:
        The measurements and their comparison.

    Raises:
        InputError and its subclasses: something given cannot be used.
        DeviceError: the device cannot be reached or used.
    """
    given = [Path(model) for model in ([models] if isinstance(models, str | Path) else models)]
    library, ndk = (None if path is None else Path(path) for path in (library, ndk))
    place = find_place(on, python=python, library=library, ndk=ndk)
    if operators and not place.profiles_operators:
        hint = "measure operators on this computer or over SSH"
        raise InputError(f"has no meaning for {on}", where="--operators", hint=hint)
    if output is not None:
        check_output(output)
    limit = read_share(max_regression)
    description, groups = _suite(suite, given) if suite is not None else ("", [_subjects(given, baseline)])
    groups = [_with_settings(group, read_threads(threads), arena) for group in groups]
    _check_gate(groups, baseline, limit)
    extras = Extras(PROFILE_RUNS if operators else 0, 60 * _minutes(sustained))
    settings = read_recipe(recipe).bench
    profile = target if target is None or isinstance(target, Target) else load_target(target)
    parts = [
        run_bench(group, settings=settings, target=profile, place=place, cpus=cpus, extras=extras, progress=progress)
        for group in groups
    ]
    results = Results(measurements=tuple(row for part in parts for row in part.measurements))
    if output is not None:
        results.save(output)
    comparison = compare_results([(None, results)], baseline, limit)
    return Benchmark(results, comparison, place.timing is not None, description)


def read_threads(threads: int | Sequence[int] | str | None) -> list[int | None]:
    """Read ``--threads``: text such as ``1,2,4``, one number or several; None is the profile's number.

    Raises:
        InputError: it is not a list of positive whole numbers.
    """
    if threads is None:
        return [None]
    if isinstance(threads, int):
        threads = [threads]
    texts = threads.split(",") if isinstance(threads, str) else [str(number) for number in threads]
    if not texts or not all(text.isdecimal() and 0 < int(text) <= MOST_THREADS for text in texts):
        raise InputError(f"is {threads!r}", where="--threads", hint="give numbers like 2 or 1,2,4")
    return [int(text) for text in texts]


def _subjects(paths: Sequence[Path], baseline: str | None) -> list[Subject]:
    """Return a row for each file: each file is a model of its own; with a baseline, all are variants of one model."""
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path.with_suffix("")) for path in paths]
    if baseline is not None:
        return [Subject(path, "model", name) for path, name in zip(paths, names, strict=True)]
    return [Subject(path, name, path.suffix.lstrip(".")) for path, name in zip(paths, names, strict=True)]


def _suite(path: str | Path, models: Sequence[Path]) -> tuple[str, list[list[Subject]]]:
    """Return a suite's description, and its rows grouped by model."""
    if models:
        raise InputError(f"is given together with {models[0]}", where="--suite", hint="give a suite or models")
    suite, folder = load_suite(path)
    groups: dict[str, list[Subject]] = {}
    for row in suite.rows:
        groups.setdefault(row.model, []).append(Subject(folder / row.file, row.model, row.variant, dims=row.dims))
    return suite.description, list(groups.values())


def _with_settings(subjects: Sequence[Subject], threads: Sequence[int | None], arena: str) -> list[Subject]:
    """Return every subject with each number of threads and each setting of the arena."""
    if arena not in ARENA:
        raise InputError(f"is {arena!r}", where="--arena", hint=did_you_mean(arena, ARENA))
    return [
        replace(s, threads=number, arena=kept, variant=s.variant if kept else f"{s.variant}, no arena")
        for s in subjects
        for number in threads
        for kept in ARENA[arena]
    ]


def _check_gate(groups: Sequence[Sequence[Subject]], baseline: str | None, limit: float | None) -> None:
    """Refuse a gate that could never decide anything.

    Raises:
        ConfigError: unknown baseline.
        InputError: a limit without a baseline.
    """
    variants = {subject.variant for group in groups for subject in group}
    if baseline is not None and baseline not in variants:
        raise ConfigError(f"unknown baseline {baseline!r}", where="--baseline", hint=did_you_mean(baseline, variants))
    if limit is not None and not any(len({s.variant for s in group}) > 1 for group in groups):
        hint = "give the files of the baseline and of the candidate, and --baseline NAME, the baseline's file name"
        raise InputError("has no baseline to compare with", where="--max-regression", hint=hint)


def _minutes(sustained: float | None) -> float:
    if sustained is not None and not 0 < sustained < float("inf"):
        raise InputError(f"is {sustained:g}", where="--sustained", hint="give minutes, such as 10")
    return sustained or 0.0
