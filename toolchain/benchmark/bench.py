"""Latency and memory of models in one place, in fresh processes, interleaved round by round (``rounds``).

Every sample is kept; statistics are derived from them (``stats``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from toolchain.benchmark.emulated import Emulated
from toolchain.benchmark.host import describe_host
from toolchain.benchmark.local import Local
from toolchain.benchmark.model_files import model_bytes
from toolchain.benchmark.place import Device, Place
from toolchain.benchmark.rounds import BenchJob, Extras, Found, measure
from toolchain.core.errors import InputError, ModelError
from toolchain.core.files import sha256
from toolchain.data.tensors import Feed
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Conditions, Evidence, Measurement, Results, Score
from toolchain.formats.target import Target

__all__ = ["Extras", "Subject", "bench", "describe_host", "model_bytes"]


@dataclass(frozen=True)
class Subject:
    """A model file to be timed and the row it becomes.

    path: ``.onnx`` or ``.ort``. model, variant, target: the row's names, e.g. ``mobilenetv2``, ``int8``,
        ``raspberry-pi-5``; target None takes the one given to `bench`.
    evidence: None derives it: `measured` for this machine, `host` for any other target.
    feeds: the inputs of every inference; None makes them up (seeded; integers are 0).
    dims: sizes of named axes for a made-up feed; others are 1.
    threads: None takes those of `bench`. arena: whether the runtime keeps freed memory for itself, as it does by
        default.
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
    threads: int | None = None
    arena: bool = True


def bench(
    subjects: Sequence[Subject],
    *,
    settings: Bench,
    target: Target | None = None,
    threads: int | None = None,
    place: Place | None = None,
    cpus: str | None = None,
    extras: Extras | None = None,
    progress: Callable[[str], None] | None = None,
) -> Results:
    """Time the subjects in one place, all with the same session options.

    Args:
        subjects: in the order of the results.
        settings: warm-up, rounds and least times; the rounds share `min_time_s` and `min_runs`.
        target: whose session options, and threads as far as the place has cores, are used.
        threads: overrides those of the settings, which override the target's.
        place: as `find_place` gives it; None is this machine.
        cpus: the processors to be bound to: a list like ``0-3,6``, or ``big`` or ``little``; None is all.
        extras: what else is measured, behind the rounds; None is nothing.
        progress: called with one short line before every step.

    Raises:
        InputError: no subject, or several for a sustained run.
        ModelError: a file is missing, or onnxruntime refuses it or its feed.
        DeviceError: the place cannot be reached or used, is busy or has no such processors, or a process was killed
            or hung.
    """
    if not subjects:
        raise InputError("no model to bench", hint="give at least one")
    extras = extras or Extras()
    if extras.sustained_s and len(subjects) > 1:
        what = f"a sustained run is of one model, and these are {len(subjects)}"
        raise InputError(what, hint="the second would start on a device that the first has heated: run one at a time")
    for subject in subjects:
        if not subject.path.is_file():
            raise ModelError("no such model file", where=subject.path, hint="check the path")
    place, say = place or Local(), progress or (lambda line: None)
    options = target.runtime.session_options if target else {}
    with place.reserve(say) as device:
        host = device.describe()
        name, evidence = _standing(device, target)
        measured: Sequence[Found | None]
        notes: Sequence[str | None] = [subject.note for subject in subjects]
        if isinstance(device, Emulated):
            measured, around = [None] * len(subjects), Conditions()
            notes = [_compare(device, subject, options, say) for subject in subjects]
        else:
            wanted = (target or device.detect()).runtime.threads
            threads = threads or settings.threads or max(1, min(wanted, host.cores))
            jobs = [_job(subject, threads, options, cpus) for subject in subjects]
            measured, around = measure(device, jobs, settings, extras, say)
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
                latency=found.latency if found else None,
                memory=found.memory if found else None,
                conditions=around,
                sustained=found.sustained if found else (),
                operators=found.operators if found else (),
                score=subject.score,
                note=note,
                when=when,
            )
            for subject, found, note in zip(subjects, measured, notes, strict=True)
        )
    )


def _job(subject: Subject, threads: int, options: Mapping[str, str], cpus: str | None) -> BenchJob:
    return BenchJob(
        name=f"{subject.model} {subject.variant}",
        path=subject.path,
        threads=subject.threads or threads,
        session_options=options,
        arena=subject.arena,
        cpus=cpus,
        feed=subject.feeds,
        dims=subject.dims,
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
