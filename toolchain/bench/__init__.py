"""Latency and memory of models in one place, each in a fresh process, interleaved round by round.

Every sample is kept; statistics are derived from them (``stats``). A round of A is followed by a round
of B, then A again, so that what drifts (clock, temperature, neighbours) drifts for all alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from toolchain.bench.emulated import Emulated
from toolchain.bench.host import conditions, describe_host
from toolchain.bench.local import Local
from toolchain.bench.model_files import model_bytes
from toolchain.bench.place import Device, Place
from toolchain.data import Feed
from toolchain.errors import InputError, ModelError
from toolchain.files import sha256
from toolchain.measurement import Conditions, Evidence, Latency, Measurement, Memory, Results, Score
from toolchain.recipe import Bench
from toolchain.target import Target

__all__ = ["Subject", "bench", "describe_host", "model_bytes"]


@dataclass(frozen=True)
class Subject:
    """A model file to be timed and the row it becomes.

    path: ``.onnx`` or ``.ort``. model, variant, target: the row's names, e.g. ``mobilenetv2``, ``int8``,
        ``raspberry-pi-5``; target None takes the one given to `bench`.
    evidence: None derives it: `measured` for this machine, `host` for any other target.
    feeds: the inputs of every inference; None makes them up (seeded; integers are 0).
    dims: sizes of named axes for a made-up feed; others are 1.
    """

    path: Path
    model: str
    variant: str
    target: str | None = None
    evidence: Evidence | None = None
    feeds: Feed | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    score: Score | None = None
    note: str | None = None


def bench(
    subjects: Sequence[Subject],
    *,
    settings: Bench,
    target: Target | None = None,
    threads: int | None = None,
    place: Place | None = None,
    progress: Callable[[str], None] | None = None,
) -> Results:
    """Time the subjects in one place, all with the same threads and session options.

    Args:
        subjects: in the order of the results.
        settings: warm-up, rounds and least times; the rounds share `min_time_s` and `min_runs`.
        target: whose session options, and threads as far as the place has cores, are used.
        threads: overrides those of the settings, which override the target's.
        place: as `find_place` gives it; None is this machine.
        progress: called with one short line before every step.

    Raises:
        InputError: no subject. ModelError: a file is missing, or onnxruntime refuses it or its feed.
        DeviceError: the place cannot be reached or used or is busy, or a process was killed or hung.
    """
    if not subjects:
        raise InputError("no model to bench", hint="give at least one")
    for subject in subjects:
        if not subject.path.is_file():
            raise ModelError("no such model file", where=subject.path, hint="check the path")
    place, say = place or Local(), progress or (lambda line: None)
    options = target.runtime.session_options if target else {}
    with place.reserve(say) as device:
        host = device.describe()
        name, evidence = _standing(device, target)
        timings: Sequence[tuple[Latency | None, Memory | None]]
        notes: Sequence[str | None] = [subject.note for subject in subjects]
        if isinstance(device, Emulated):
            timings, around = [(None, None)] * len(subjects), Conditions()
            notes = [_compare(device, subject, options, say) for subject in subjects]
        else:
            wanted = (target or device.detect()).runtime.threads
            threads = threads or settings.threads or max(1, min(wanted, host.cores))
            timings, around = _interleave(device, subjects, settings, threads, options, say)
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Results(
        measurements=tuple(
            Measurement(
                model=subject.model,
                variant=subject.variant,
                sha256=sha256(subject.path),
                size_bytes=model_bytes(subject.path),
                target=subject.target or name,
                evidence=subject.evidence or (_evidence(subject.target) if subject.target else evidence),
                host=host,
                latency=latency,
                memory=memory,
                conditions=around,
                score=subject.score,
                note=note,
                when=when,
            )
            for subject, (latency, memory), note in zip(subjects, timings, notes, strict=True)
        )
    )


def _interleave(
    device: Device,
    subjects: Sequence[Subject],
    settings: Bench,
    threads: int,
    options: Mapping[str, str],
    say: Callable[[str], None],
) -> tuple[list[tuple[Latency, Memory]], Conditions]:
    """Run all subjects, round by round, one at a time; the others wait without using the processor."""
    names = [f"{s.model} {s.variant}" for s in subjects]
    share = {"seconds": settings.min_time_s / settings.rounds, "runs": math.ceil(settings.min_runs / settings.rounds)}
    before = device.read_conditions()
    with ExitStack() as stack:
        say(f"starting {len(subjects)} benchmark processes")
        runners = [
            stack.enter_context(
                device.open(s.path, threads=threads, session_options=options, feed=s.feeds, dims=s.dims)
            )
            for s in subjects
        ]
        answers = [runner.started() for runner in runners]
        for name, runner, answer in zip(names, runners, answers, strict=True):
            say(f"{name}: loading and warming up")
            answer |= runner.ask("load") | runner.ask("warmup", {"seconds": settings.warmup_s})
        warm = device.read_conditions()
        rounds: list[list[list[float]]] = [[] for _ in subjects]
        for number in range(settings.rounds):
            for name, runner, samples in zip(names, runners, rounds, strict=True):
                say(f"{name}: round {number + 1} of {settings.rounds}")
                samples.append(runner.ask("round", share)["samples_ms"])
        after = device.read_conditions()
        for runner, answer in zip(runners, answers, strict=True):
            answer |= runner.ask("memory")
    # The clock of an idle core says nothing: both are read under way.
    around = conditions(replace(before, clock_mhz=warm.clock_mhz), after)
    timings = [
        (_latency(answer, samples, threads, options), _memory(answer))
        for answer, samples in zip(answers, rounds, strict=True)
    ]
    return timings, around


def _latency(answer: dict[str, Any], rounds: list[list[float]], threads: int, options: Mapping[str, str]) -> Latency:
    starts = accumulate((len(samples) for samples in rounds[:-1]), initial=0)
    return Latency(
        samples_ms=tuple(sample for samples in rounds for sample in samples),
        rounds=tuple(starts),
        load_ms=answer["load_ms"],
        first_ms=answer["first_ms"],
        warmup_runs=answer["runs"],
        settled=answer["settled"],
        threads=threads,
        session_options=dict(options),
    )


def _memory(answer: dict[str, Any]) -> Memory:
    return Memory(
        baseline_bytes=answer["baseline_bytes"],
        peak_load_bytes=answer["peak_load_bytes"],
        peak_run_bytes=answer["peak_run_bytes"],
        peak_reset=answer["peak_reset"],
    )


def _compare(device: Emulated, subject: Subject, options: Mapping[str, str], say: Callable[[str], None]) -> str:
    say(f"{subject.model} {subject.variant}: answering here and on {device.name}")
    found = device.compare(subject.path, session_options=options, feed=subject.feeds, dims=subject.dims)
    return f"{subject.note}; {found}" if subject.note else found


def _standing(device: Device, target: Target | None) -> tuple[str | None, Evidence]:
    """The name of the rows' target, and whether the device is that target."""
    if isinstance(device, Emulated):
        return target.name if target else device.cpu, "emulated"
    if isinstance(device, Local):
        return target.name if target else None, _evidence(target.name if target else None)
    here = device.detect()
    if target is None:
        return here.name, "measured"
    alike = target.architecture == here.architecture and {c.core for c in target.cores} == {c.core for c in here.cores}
    return target.name, "measured" if alike else "host"


def _evidence(target: str | None) -> Evidence:
    return "measured" if target in (None, "host") else "host"
