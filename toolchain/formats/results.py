"""`Measurement`: one model timed on one machine, with the raw samples and what they were taken on.

Raw samples are kept and every statistic is derived from them (as pyperf does). `Results` is the file
that `bench` writes and `compare` reads.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pydantic

from toolchain.formats.base import Document, Part

Evidence = Literal["measured", "host", "emulated", "estimated"]
"""measured: on the target itself. host: really run, but on this machine in the target's stead.
emulated: run under an emulator (answers only, never time). estimated: computed from a model of the device."""


class Host(Part):
    """The machine and runtime a measurement ran on. `key` must agree before two are compared."""

    name: str
    architecture: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_mib: int
    os: str
    python: str
    onnxruntime: str
    governor: str | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """CPU model, cores and runtime: what latencies depend on."""
        return self.cpu, self.cores, self.onnxruntime


class Reading(Part):
    """One look at the machine, taken on it; None where it cannot be read.

    at_s: seconds since measuring began. load: runnable processes over the last minute. clock_mhz: of the fastest core.
    temperature_c: of the hottest thermal zone. throttled: a Raspberry Pi's flags (``vcgencmd get_throttled``).
    """

    at_s: float = 0.0
    load: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    governor: str | None = None
    throttled: int | None = None


class Window(Part):
    """Some seconds of a sustained run: when they ended, the median and number of their inferences, and the machine."""

    at_s: float
    p50_ms: pydantic.PositiveFloat
    runs: int = pydantic.Field(ge=1)
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: int | None = None


class OperatorTime(Part):
    """The time of one node of the graph that onnxruntime runs, by its own profiler.

    median_us: microseconds of one inference; executions in a loop are added up. domain: of the operator; empty for
    ONNX's own, and where it was not recorded. layer: the node of the float graph that it computes, None where unknown.
    """

    node: str
    op: str
    median_us: float
    domain: str = ""
    layer: str | None = None


class Conditions(Part):
    """What the machine was doing around the runs; None where it cannot be read.

    clock_mhz_before: with the models warmed up, for that of an idle core says nothing.
    during: looks between rounds, a second apart or more.
    """

    load_before: float | None = None
    load_after: float | None = None
    clock_mhz_before: float | None = None
    clock_mhz_after: float | None = None
    temperature_c_before: float | None = None
    temperature_c_after: float | None = None
    throttled_before: int | None = None
    throttled_after: int | None = None
    governor: str | None = None
    during: tuple[Reading, ...] = ()


class Score(Part):
    """An accuracy figure. kind: `evaluate` (the user's function) or `agreement` with the source model."""

    kind: Literal["evaluate", "agreement"]
    value: float
    samples: int | None = None


class Latency(Part):
    """Raw wall-clock samples of single inferences (milliseconds, in order, warm-up excluded).

    rounds: index of the first sample of every round, since artifacts are interleaved (A B A B).
    load_ms, first_ms: making the session, and its first inference.
    warmup_runs, settled: inferences run before the samples, and whether they had become steady by then.
    cpu_ms: what the calling thread itself computed in each sample, where it is the only one; else empty.
    processes: so many fresh processes took the rounds, one after the other, as evenly as may be, more first.
    cpus: the processors they were bound to; empty: all.
    """

    samples_ms: tuple[pydantic.PositiveFloat, ...] = pydantic.Field(min_length=1)
    rounds: tuple[int, ...] = (0,)
    load_ms: float
    first_ms: float
    warmup_runs: int = 0
    settled: bool = True
    threads: int = pydantic.Field(ge=1)
    session_options: dict[str, str] = pydantic.Field(default_factory=dict)
    cpu_ms: tuple[pydantic.PositiveFloat, ...] = ()
    processes: int = pydantic.Field(default=1, ge=1)
    cpus: tuple[int, ...] = ()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Latency:
        ends = (*self.rounds[1:], len(self.samples_ms))
        if self.rounds[:1] != (0,) or any(start >= end for start, end in zip(self.rounds, ends, strict=True)):
            raise ValueError(f"rounds {self.rounds} do not divide {len(self.samples_ms)} samples")
        if self.cpu_ms and len(self.cpu_ms) != len(self.samples_ms):
            raise ValueError(f"there are {len(self.cpu_ms)} computing times of {len(self.samples_ms)} samples")
        return self

    def percentile_ms(self, q: float) -> float:
        """The q-th percentile (0..100), linearly interpolated."""
        return float(np.percentile(self.samples_ms, q))

    @property
    def cpu_p50_ms(self) -> float | None:
        """The median of the computing times; None where they are not known."""
        return float(np.median(self.cpu_ms)) if self.cpu_ms else None

    @property
    def p50_ms(self) -> float:
        """The median."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """The 90th percentile."""
        return self.percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile."""
        return self.percentile_ms(99)


class Memory(Part):
    """Bytes in a fresh process. `baseline` is after importing the runtime, the peaks are of resident
    memory (VmHWM) after loading and after running; the run's peak excludes the load's spike where the
    kernel lets it be reset (`peak_reset`). `pss_run` is what the process held after running, pages shared with
    others counted in part (smaps_rollup). `arena`: whether the runtime kept freed memory for itself.
    """

    baseline_bytes: int
    peak_load_bytes: int
    peak_run_bytes: int
    peak_reset: bool = True
    pss_run_bytes: int | None = None
    arena: bool = True


class Measurement(Part):
    """One row: a model file, where it ran and what came out.

    when: ISO 8601, the same for all rows that were interleaved in one run.
    sustained: windows of a long run without a pause, where one was asked for; operators: likewise of a profile.
    """

    model: str
    variant: str
    sha256: str
    size_bytes: int
    target: str | None = None
    evidence: Evidence
    host: Host
    latency: Latency | None = None
    memory: Memory | None = None
    conditions: Conditions = Conditions()
    sustained: tuple[Window, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    score: Score | None = None
    note: str | None = None
    when: str


class Results(Document):
    """A results file."""

    KIND: ClassVar[str] = "results file"

    schema_version: Literal[1] = 1
    measurements: tuple[Measurement, ...]
