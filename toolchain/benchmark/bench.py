"""`bench`: measure latency and memory of models in one place, in fresh processes that take turns (see `rounds`).

Every sample is kept; statistics are computed from them later (see `stats`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from toolchain.benchmark.comparison import compare_answers
from toolchain.benchmark.job import BenchJob
from toolchain.benchmark.local import Local
from toolchain.benchmark.model_files import model_bytes
from toolchain.benchmark.place import Place, ReserveAnswering, ReserveTiming, TargetEvidence, host_evidence
from toolchain.benchmark.rounds import Extras, JobMeasurement, measure
from toolchain.core.errors import DeviceError, InputError, ModelError
from toolchain.core.files import sha256
from toolchain.core.progress import Progress, silent
from toolchain.data.tensors import Feed
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Conditions, Evidence, Host, Measurement, Results, Score
from toolchain.formats.target import Target

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model file to be timed, and the names of its row in the results.

    Attributes:
        path: ``.onnx`` or ``.ort``.
        model: the row's model, e.g. ``mobilenetv2``.
        variant: the row's variant, e.g. ``int8``.
        target: the row's target, e.g. ``raspberry-pi-5``; None is the target given to `bench`.
        evidence: None derives it: `measured` for this machine, `host` for any other target.
        feeds: inputs of every inference; None generates them (seeded noise for floats, 0 for integers).
        dims: sizes of named axes of a generated feed; axes not listed have size 1.
        score: an accuracy to show in the row.
        note: a remark to show in the row.
        threads: None is the number given to `bench`.
        arena: True lets the runtime keep freed memory for itself, which is its default.
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

    def job(self, session_options: Mapping[str, str], threads: int = 1, cpus: str | None = None) -> BenchJob:
        """Return the way this file is run; `threads` applies where the subject names no number of its own."""
        return BenchJob(
            path=self.path,
            threads=self.threads or threads,
            session_options=session_options,
            feed=self.feeds,
            dims=self.dims,
            arena=self.arena,
            cpus=cpus,
        )


@dataclass(frozen=True)
class _Settings:
    """The arguments of `bench` that all subjects share."""

    bench: Bench
    target: Target | None
    threads: int | None
    cpus: str | None
    extras: Extras
    progress: Progress

    @property
    def session_options(self) -> Mapping[str, str]:
        return self.target.runtime.session_options if self.target else {}


@dataclass(frozen=True)
class _PlaceResults:
    """Results from one place.

    Attributes:
        host: the machine.
        about: the target that the rows are about, and the kind of evidence.
        measurements: one for each subject, in their order; None if the place cannot time.
        notes: remarks for the rows, in the same order.
        conditions: readings of the machine.
    """

    host: Host
    about: TargetEvidence
    measurements: Sequence[JobMeasurement | None]
    notes: Sequence[str | None]
    conditions: Conditions


def bench(
    subjects: Sequence[Subject],
    *,
    settings: Bench,
    target: Target | None = None,
    threads: int | None = None,
    place: Place | None = None,
    cpus: str | None = None,
    extras: Extras | None = None,
    progress: Progress = silent,
) -> Results:
    """Time the subjects in one place, all with the same session options.

    If the place has no latency (an emulated CPU), each model is run once there and once here, and the row's note says
    how far the outputs differ.

    Args:
        subjects: in the order of the results.
        settings: warm-up, rounds and least times; the rounds share `min_time_s` and `min_runs`.
        target: its session options are used, and its number of threads as far as the place has cores.
        threads: overrides the number of the settings, which overrides the target's.
        place: a place as `find_place` returns it; None is this machine.
        cpus: processors to run on: a list such as ``0-3,6``, or ``big`` or ``little``; None is all.
        extras: measurements to take after the rounds; None is none.
        progress: counts rounds x models while timing.

    Raises:
        InputError: no subject, or several for a sustained run.
        ModelError: a file is missing, or onnxruntime refuses it or its feed.
        DeviceError: the place cannot be reached or used, is busy or has no such processors, or a process was killed
            or did not answer.
    """
    extras = extras or Extras()
    _check(subjects, extras)
    place = place or Local()
    shared = _Settings(settings, target, threads, cpus, extras, progress)
    if place.timing is not None:
        results = _time(place.timing, subjects, shared)
    elif place.answering is not None:
        results = _compare(place.answering, place.name, subjects, shared)
    else:
        raise DeviceError("can neither time nor run models", where=place.name, hint="use another place")
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    rows = zip(subjects, results.measurements, results.notes, strict=True)
    return Results(measurements=tuple(_row(s, results, measured, note, when) for s, measured, note in rows))


def _check(subjects: Sequence[Subject], extras: Extras) -> None:
    if not subjects:
        raise InputError("no model to bench", hint="give at least one")
    if extras.sustained_s and len(subjects) > 1:
        what = f"a sustained run takes one model, but {len(subjects)} are given"
        raise InputError(what, hint="give one at a time, since each heats the device for the next")
    for subject in subjects:
        if not subject.path.is_file():
            raise ModelError("no such model file", where=subject.path, hint="check the path")


def _time(reserve: ReserveTiming, subjects: Sequence[Subject], shared: _Settings) -> _PlaceResults:
    with reserve(shared.progress) as device:
        host, about = device.describe(), device.evidence_for(shared.target)
        target_threads = (shared.target or device.detect()).runtime.threads
        threads = shared.threads or shared.bench.threads or max(1, min(target_threads, host.cores))
        LOGGER.info("timing %d models on %s, onnxruntime %s", len(subjects), host.name, host.onnxruntime)
        jobs = [subject.job(shared.session_options, threads, shared.cpus) for subject in subjects]
        measurements, conditions = measure(device, jobs, shared.bench, shared.extras, shared.progress)
    return _PlaceResults(host, about, measurements, [subject.note for subject in subjects], conditions)


def _compare(reserve: ReserveAnswering, name: str, subjects: Sequence[Subject], shared: _Settings) -> _PlaceResults:
    notes = []
    with reserve(shared.progress) as device:
        host, about = device.describe(), device.evidence_for(shared.target)
        for number, subject in enumerate(subjects):
            shared.progress(f"running each model here and on {name}", number, len(subjects))
            note = compare_answers(device, subject.job(shared.session_options))
            notes.append(f"{subject.note}; {note}" if subject.note else note)
    return _PlaceResults(host, about, [None] * len(subjects), notes, Conditions())


def _row(
    subject: Subject, results: _PlaceResults, measured: JobMeasurement | None, note: str | None, when: str
) -> Measurement:
    about = host_evidence(subject.target) if subject.target else results.about
    return Measurement(
        model=subject.model,
        variant=subject.variant,
        sha256=sha256(subject.path),
        size_bytes=model_bytes(subject.path),
        target=about.target,
        evidence=subject.evidence or about.evidence,
        host=results.host,
        latency=measured.latency if measured else None,
        memory=measured.memory if measured else None,
        conditions=results.conditions,
        sustained=measured.sustained if measured else (),
        operators=measured.operators if measured else (),
        score=subject.score,
        note=note,
        when=when,
    )
