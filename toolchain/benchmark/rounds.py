"""`measure`: time all models in turn, round by round, in fresh processes.

Rounds go A B, B A, A B and so on. Slow changes of the machine (clock, temperature, other users) then affect all models
alike, and so does the position in a round. The position of a process in memory changes its speed by about 1 % for its
whole life, so several fresh processes share the rounds, one after the other.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median
from typing import Any

import numpy as np

from toolchain.benchmark.job import BenchJob
from toolchain.benchmark.place import Runner, TimingDevice
from toolchain.core.errors import DeviceError
from toolchain.core.progress import Progress, silent
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Conditions, Latency, Memory, OperatorTime, Reading, Window

LOGGER = logging.getLogger(__name__)

READING_INTERVAL_S = 1.0
"""Least time between two readings of the machine's conditions."""

SUSTAINED_WINDOW_S = 5.0
"""Longest window of a sustained run."""

MIN_SUSTAINED_WINDOWS = 12
"""Number of windows that a short sustained run is divided into."""


@dataclass(frozen=True)
class Extras:
    """Measurements to take after the rounds.

    Attributes:
        profile_runs: number of inferences under the runtime's profiler; 0 makes no profile.
        sustained_s: length of a run without a pause, in seconds; 0 makes none.
    """

    profile_runs: int = 0
    sustained_s: float = 0.0


@dataclass(frozen=True)
class JobMeasurement:
    """The measurements of one job."""

    latency: Latency
    memory: Memory
    operators: tuple[OperatorTime, ...]
    sustained: tuple[Window, ...]


@dataclass(frozen=True)
class _Answers:
    """The runners' answers for one job.

    Attributes:
        processes: for each process, its answers to start, load, warm-up and memory in one dictionary.
        rounds: the answer for each round.
    """

    processes: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)


def measure(
    device: TimingDevice,
    jobs: Sequence[BenchJob],
    settings: Bench,
    extras: Extras,
    progress: Progress = silent,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[JobMeasurement], Conditions]:
    """Time all jobs. One runs at a time; the others wait without using the processor.

    Args:
        device: where the processes run.
        jobs: the models.
        settings: warm-up, rounds and least times; the rounds share `min_time_s` and `min_runs`.
        extras: measurements to take after the rounds.
        progress: counts rounds x models while timing, seconds during a sustained run.
        clock: time in seconds, for the readings of the conditions and the length of a sustained run.

    Raises:
        ModelError: the runtime refuses a model or its feed.
        DeviceError: a process was killed or did not answer, or the device has no such processors.
    """
    answers = [_Answers() for _ in jobs]
    operators: list[tuple[OperatorTime, ...]] = []
    sustained: list[tuple[Window, ...]] = []
    done, rounds = 0, settings.rounds
    readings: list[Reading] = []
    start_s, before = clock(), device.read_conditions()
    processes = min(settings.processes, settings.rounds)
    for process in range(processes):
        with ExitStack() as stack:
            runners = [stack.enter_context(device.open(job)) for job in jobs]
            for number, (job, runner) in enumerate(zip(jobs, runners, strict=True)):
                if not done:  # later processes start while the bar counts the rounds
                    progress("loading and warming up", number, len(jobs))
                answers[number].processes.append(_start(job, runner, settings.warmup_s))
            readings.append(_read(device, clock, start_s))
            if not done:
                rounds = _affordable_rounds(settings, max(answer.processes[0]["first_ms"] for answer in answers))
            share = {"seconds": settings.min_time_s / rounds, "runs": math.ceil(settings.min_runs / rounds)}
            total = rounds * len(jobs)
            progress("timing", done, total)
            turns = np.array_split(np.arange(rounds), processes)[process]
            for turn in turns.tolist():
                for i in range(len(jobs)) if turn % 2 == 0 else reversed(range(len(jobs))):
                    answers[i].rounds.append(runners[i].ask("round", share))
                    done += 1
                    progress("timing", done, total)
                if turn == turns[-1] or clock() - start_s - readings[-1].at_s > READING_INTERVAL_S:
                    readings.append(_read(device, clock, start_s))
            for answer, runner in zip(answers, runners, strict=True):
                answer.processes[-1] |= runner.ask("memory")
            if done == total:
                operators = _profile(runners, extras.profile_runs, progress)
                sustained = [_sustain(device, runner, extras.sustained_s, progress, clock) for runner in runners]
    LOGGER.info("%d rounds of %d models took %.1f s", rounds, len(jobs), clock() - start_s)
    measurements = [
        JobMeasurement(_latency(job, answer), _memory(job, answer.processes[0]), times, windows)
        for job, answer, times, windows in zip(jobs, answers, operators, sustained, strict=True)
    ]
    return measurements, _conditions(before, readings)


def _affordable_rounds(settings: Bench, slowest_ms: float) -> int:
    """Return the number of rounds: fewer for a slow model, of which already one inference a round takes too long."""
    affordable = math.ceil(settings.min_time_s * 1e3 / slowest_ms) if slowest_ms else settings.rounds
    return min(settings.rounds, max(affordable, settings.min_runs, settings.processes))


def _read(device: TimingDevice, clock: Callable[[], float], start_s: float) -> Reading:
    reading = device.read_conditions()
    return reading.model_copy(update={"at_s": round(clock() - start_s, 3)})


def _start(job: BenchJob, runner: Runner, warmup_s: float) -> dict[str, Any]:
    answer = runner.started()
    if job.cpus and not answer.get("cpus"):
        what = answer.get("refused", "the runner there cannot be bound to processors")
        hint = "give numbers like 0-3, big or little, or leave the option out"
        raise DeviceError(what, where=f"processors {job.cpus}", hint=hint)
    return answer | runner.ask("load") | runner.ask("warmup", {"seconds": warmup_s})


def _profile(runners: Sequence[Runner], runs: int, progress: Progress) -> list[tuple[OperatorTime, ...]]:
    if not runs:
        return [()] * len(runners)
    profiles = []
    for number, runner in enumerate(runners):
        progress("profiling operators", number, len(runners))
        operators = runner.ask("profile", {"runs": runs})["operators"]
        profiles.append(tuple(OperatorTime(**operator) for operator in operators))
    return profiles


def _sustain(
    device: TimingDevice, runner: Runner, seconds: float, progress: Progress, clock: Callable[[], float]
) -> tuple[Window, ...]:
    """Run without a pause; the progress counts whole seconds."""
    windows: list[Window] = []
    start_s, now_s = clock(), 0.0
    window = {"seconds": min(SUSTAINED_WINDOW_S, seconds / MIN_SUSTAINED_WINDOWS), "runs": 1}
    while now_s < seconds:
        progress("sustained run", math.floor(now_s), math.ceil(seconds))
        samples = runner.ask("round", window)["samples_ms"]
        reading = _read(device, clock, start_s)
        now_s = reading.at_s
        windows.append(
            Window(
                at_s=now_s,
                p50_ms=median(samples),
                runs=len(samples),
                clock_mhz=reading.clock_mhz,
                temperature_c=reading.temperature_c,
                throttled=reading.throttled,
            )
        )
    return tuple(windows)


def _latency(job: BenchJob, answers: _Answers) -> Latency:
    samples = [answer["samples_ms"] for answer in answers.rounds]
    computed = [answer.get("cpu_ms", []) for answer in answers.rounds]
    processes = answers.processes
    return Latency(
        samples_ms=tuple(sample for part in samples for sample in part),
        rounds=tuple(accumulate((len(part) for part in samples[:-1]), initial=0)),
        load_ms=median(answer["load_ms"] for answer in processes),
        first_ms=median(answer["first_ms"] for answer in processes),
        warmup_runs=sum(answer["runs"] for answer in processes),
        settled=all(answer["settled"] for answer in processes),
        threads=job.threads,
        session_options=dict(job.session_options),
        cpu_ms=tuple(sample for part in computed for sample in part) if all(computed) else (),
        processes=len(processes),
        cpus=tuple(processes[0].get("cpus") or ()),
    )


def _memory(job: BenchJob, answer: dict[str, Any]) -> Memory:
    return Memory(
        baseline_bytes=answer["baseline_bytes"],
        peak_load_bytes=answer["peak_load_bytes"],
        peak_run_bytes=answer["peak_run_bytes"],
        peak_reset=answer["peak_reset"],
        pss_run_bytes=answer.get("pss_run_bytes"),
        arena=job.arena,
    )


def _conditions(before: Reading, during: Sequence[Reading]) -> Conditions:
    warm, after = during[0], during[-1]
    return Conditions(
        load_before=before.load,
        load_after=after.load,
        clock_mhz_before=warm.clock_mhz,
        clock_mhz_after=after.clock_mhz,
        temperature_c_before=before.temperature_c,
        temperature_c_after=after.temperature_c,
        throttled_before=before.throttled,
        throttled_after=after.throttled,
        governor=after.governor,
        during=tuple(during),
    )
