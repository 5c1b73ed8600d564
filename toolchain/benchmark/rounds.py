"""The measuring: rounds of all models in turn, in fresh processes, and what comes of it.

Rounds go A B, B A, A B and so on: what drifts (clock, temperature, neighbours) drifts for all alike, and coming first
is shared. Where a process's memory happens to lie moves its speed by about 1 % for all of its life, so a few fresh
processes take the rounds one after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from toolchain.benchmark.place import Device, Runner
from toolchain.core.errors import DeviceError
from toolchain.data.tensors import Feed
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Conditions, Latency, Memory, OperatorTime, Reading, Window

LOOK_S = 1.0  # least time between two looks at the machine
WINDOW_S = 5.0  # of a sustained run
_WINDOWS = 12  # at least, of a short one


@dataclass(frozen=True)
class BenchJob:
    """A model file and how it is run; see `place.Device.open`. name: for messages."""

    name: str
    path: Path
    threads: int
    session_options: Mapping[str, str]
    arena: bool = True
    cpus: str | None = None
    feed: Feed | None = None
    dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Extras:
    """What is measured after the rounds. profile_runs: inferences under the runtime's profiler; sustained_s: length of
    a run without a pause; 0 is none.
    """

    profile_runs: int = 0
    sustained_s: float = 0.0


@dataclass(frozen=True)
class Found:
    """What was measured of one job."""

    latency: Latency
    memory: Memory
    operators: tuple[OperatorTime, ...]
    sustained: tuple[Window, ...]


def measure(
    device: Device, jobs: Sequence[BenchJob], settings: Bench, extras: Extras, say: Callable[[str], None]
) -> tuple[list[Found], Conditions]:
    """Run all jobs, one at a time; the others wait without using the processor.

    Raises:
        ModelError: the runtime refuses a model or its feed.
        DeviceError: a process was killed or hung, or the device has no such processors.
    """
    share = {"seconds": settings.min_time_s / settings.rounds, "runs": math.ceil(settings.min_runs / settings.rounds)}
    starts: list[list[dict[str, Any]]] = [[] for _ in jobs]
    rounds: list[list[dict[str, Any]]] = [[] for _ in jobs]
    during: list[Reading] = []
    profiles: list[tuple[OperatorTime, ...]] = []
    curves: list[tuple[Window, ...]] = []
    began, before = time.monotonic(), device.read_conditions()
    for turns in np.array_split(np.arange(settings.rounds), min(settings.processes, settings.rounds)):
        with ExitStack() as stack:
            say(f"starting {len(jobs)} benchmark processes")
            runners = [stack.enter_context(_open(device, job)) for job in jobs]
            for job, runner, answers in zip(jobs, runners, starts, strict=True):
                answers.append(_start(job, runner, settings.warmup_s, say))
            during.append(_look(device, began))
            for turn in turns.tolist():
                order = range(len(jobs)) if turn % 2 == 0 else reversed(range(len(jobs)))
                for i in order:
                    say(f"{jobs[i].name}: round {turn + 1} of {settings.rounds}")
                    rounds[i].append(runners[i].ask("round", share))
                if turn == turns[-1] or time.monotonic() - began - during[-1].at_s > LOOK_S:
                    during.append(_look(device, began))
            for runner, answers in zip(runners, starts, strict=True):
                answers[-1] |= runner.ask("memory")
            if turns[-1] == settings.rounds - 1:
                pairs = list(zip(jobs, runners, strict=True))
                profiles = [_profile(job, runner, extras.profile_runs, say) for job, runner in pairs]
                curves = [_sustain(device, job, runner, extras.sustained_s, say) for job, runner in pairs]
    found = [
        Found(_latency(job, answers, told), _memory(job, answers[0]), operators, curve)
        for job, answers, told, operators, curve in zip(jobs, starts, rounds, profiles, curves, strict=True)
    ]
    return found, _conditions(before, during)


def _open(device: Device, job: BenchJob) -> Runner:
    return device.open(
        job.path,
        threads=job.threads,
        session_options=job.session_options,
        feed=job.feed,
        dims=job.dims,
        arena=job.arena,
        cpus=job.cpus,
    )


def _start(job: BenchJob, runner: Runner, warmup_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    answer = runner.started()
    if job.cpus and not answer.get("cpus"):
        what = answer.get("refused", "the runner there cannot be bound to processors")
        raise DeviceError(what, where=f"processors {job.cpus}", hint="give numbers like 0-3, big or little, or none")
    say(f"{job.name}: loading and warming up")
    return answer | runner.ask("load") | runner.ask("warmup", {"seconds": warmup_s})


def _look(device: Device, began: float) -> Reading:
    return device.read_conditions().model_copy(update={"at_s": round(time.monotonic() - began, 3)})


def _profile(job: BenchJob, runner: Runner, runs: int, say: Callable[[str], None]) -> tuple[OperatorTime, ...]:
    if not runs:
        return ()
    say(f"{job.name}: profiling")
    found = runner.ask("profile", {"runs": runs})["operators"]
    return tuple(OperatorTime(**operator) for operator in found)


def _sustain(
    device: Device, job: BenchJob, runner: Runner, seconds: float, say: Callable[[str], None]
) -> tuple[Window, ...]:
    windows: list[Window] = []
    began, now = time.monotonic(), 0.0
    while now < seconds:
        say(f"{job.name}: sustained, {now / 60:.1f} of {seconds / 60:g} minutes")
        length = {"seconds": min(WINDOW_S, seconds / _WINDOWS), "runs": 1}
        samples = runner.ask("round", length)["samples_ms"]
        look = _look(device, began)
        windows.append(
            Window(
                at_s=(now := look.at_s),
                p50_ms=median(samples),
                runs=len(samples),
                clock_mhz=look.clock_mhz,
                temperature_c=look.temperature_c,
                throttled=look.throttled,
            )
        )
    return tuple(windows)


def _latency(job: BenchJob, starts: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]]) -> Latency:
    samples = [answer["samples_ms"] for answer in rounds]
    computed = [answer.get("cpu_ms", []) for answer in rounds]
    return Latency(
        samples_ms=tuple(sample for part in samples for sample in part),
        rounds=tuple(accumulate((len(part) for part in samples[:-1]), initial=0)),
        load_ms=median(answer["load_ms"] for answer in starts),
        first_ms=median(answer["first_ms"] for answer in starts),
        warmup_runs=sum(answer["runs"] for answer in starts),
        settled=all(answer["settled"] for answer in starts),
        threads=job.threads,
        session_options=dict(job.session_options),
        cpu_ms=tuple(sample for part in computed for sample in part) if all(computed) else (),
        processes=len(starts),
        cpus=tuple(starts[0].get("cpus") or ()),
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
