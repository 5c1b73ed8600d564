"""`Measurement`: one model timed on one machine, with the raw samples and the state of the machine.

Raw samples are stored, and every statistic is computed from them (as in pyperf). `Results` is the file that `bench`
writes and `compare` reads.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pydantic

from toolchain.formats.base import Document, Record

Evidence = Literal["measured", "host", "emulated", "estimated"]
"""Where a number comes from. measured: from the target itself. host: from a real run, but on this computer instead of
the target. emulated: from a run under an emulator (outputs only, never time). estimated: from a model of the device."""


class Host(Record):
    """The machine and the runtime of a measurement."""

    name: str
    """Name of the machine."""
    architecture: str
    """Instruction set, such as "aarch64"."""
    cpu: str
    """Name of the processor."""
    features: tuple[str, ...]
    """Extensions of the instruction set, named as in target profiles."""
    cores: int
    """Number of physical cores."""
    memory_mib: int
    """Main memory in MiB."""
    os: str
    """Operating system."""
    python: str
    """Version of Python, or a remark where the runner is not in Python."""
    onnxruntime: str
    """Version of onnxruntime."""
    governor: str | None = None
    """Frequency governor of the processor, null where unknown."""

    @property
    def key(self) -> tuple[str, int, str]:
        """CPU model, cores and runtime: what latencies depend on. Two measurements compare only where it is equal."""
        return self.cpu, self.cores, self.onnxruntime


class Reading(Record):
    """The state of the machine at one moment, read on the machine; null where it cannot be read."""

    at_s: float = 0.0
    """Seconds since measuring began."""
    load: float | None = None
    """Mean number of runnable processes over the last minute."""
    clock_mhz: float | None = None
    """Clock of the fastest core in MHz."""
    temperature_c: float | None = None
    """Temperature of the hottest thermal zone in °C."""
    governor: str | None = None
    """Frequency governor of the processor."""
    throttled: int | None = None
    """Flags of a Raspberry Pi (``vcgencmd get_throttled``)."""


class Window(Record):
    """Some seconds of a sustained run."""

    at_s: float
    """End of the window, in seconds since the run began."""
    p50_ms: pydantic.PositiveFloat
    """Median latency of its inferences."""
    runs: int = pydantic.Field(ge=1)
    """Number of its inferences."""
    clock_mhz: float | None = None
    """Clock of the fastest core in MHz at its end."""
    temperature_c: float | None = None
    """Temperature of the hottest thermal zone in °C at its end."""
    throttled: int | None = None
    """Flags of a Raspberry Pi at its end."""


class OperatorTime(Record):
    """The time of one node of the graph that onnxruntime runs, by its own profiler."""

    node: str
    """Name of the node."""
    op: str
    """Type of the operator."""
    median_us: float
    """Microseconds in one inference, the median over all; executions in a loop are added up."""
    domain: str = ""
    """Domain of the operator; empty for ONNX's own, and where it was not recorded."""
    layer: str | None = None
    """Node of the float graph that it computes; null where unknown."""


class Conditions(Record):
    """The state of the machine around the runs; null where it cannot be read."""

    load_before: float | None = None
    """Mean number of runnable processes before the runs."""
    load_after: float | None = None
    """Mean number of runnable processes after the runs."""
    clock_mhz_before: float | None = None
    """Clock of the fastest core once the models were warmed up: the clock of an idle core says nothing."""
    clock_mhz_after: float | None = None
    """Clock of the fastest core after the runs."""
    temperature_c_before: float | None = None
    """Temperature of the hottest thermal zone before the runs."""
    temperature_c_after: float | None = None
    """Temperature of the hottest thermal zone after the runs."""
    throttled_before: int | None = None
    """Flags of a Raspberry Pi before the runs."""
    throttled_after: int | None = None
    """Flags of a Raspberry Pi after the runs."""
    governor: str | None = None
    """Frequency governor of the processor."""
    during: tuple[Reading, ...] = ()
    """Readings between rounds, at least a second apart."""


class Score(Record):
    """An accuracy figure."""

    kind: Literal["evaluate", "agreement"]
    """evaluate: result of the user's function. agreement: how often the model gives the source model's answer."""
    value: float
    """The figure; higher is better."""
    samples: int | None = None
    """Number of samples it was computed on, null where unknown."""


class Latency(Record):
    """Raw wall-clock times of single inferences, and how they were taken."""

    samples_ms: tuple[pydantic.PositiveFloat, ...] = pydantic.Field(min_length=1)
    """Milliseconds of every inference in order, without warm-up."""
    rounds: tuple[int, ...] = (0,)
    """Index of the first sample of every round; models are interleaved (A B A B)."""
    load_ms: float
    """Time to create the session."""
    first_ms: float
    """Time of the first inference."""
    warmup_runs: int = 0
    """Number of inferences before the samples."""
    settled: bool = True
    """True where the times were steady at the end of the warm-up."""
    threads: int = pydantic.Field(ge=1)
    """Threads within an operator."""
    session_options: dict[str, str] = pydantic.Field(default_factory=dict)
    """Session options of onnxruntime."""
    cpu_ms: tuple[pydantic.PositiveFloat, ...] = ()
    """Processor time of the calling thread in each sample, where it is the only thread; else empty."""
    processes: int = pydantic.Field(default=1, ge=1)
    """Number of fresh processes that took the rounds one after the other, shared as evenly as possible; the first ones
    took one more where it does not divide."""
    cpus: tuple[int, ...] = ()
    """Processors that they were bound to; empty: all."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Latency:
        ends = (*self.rounds[1:], len(self.samples_ms))
        if self.rounds[:1] != (0,) or any(start >= end for start, end in zip(self.rounds, ends, strict=True)):
            raise ValueError(f"rounds {list(self.rounds)} do not divide {len(self.samples_ms)} samples")
        if self.cpu_ms and len(self.cpu_ms) != len(self.samples_ms):
            raise ValueError(f"cpu_ms holds {len(self.cpu_ms)} times for {len(self.samples_ms)} samples")
        return self

    def percentile_ms(self, q: float) -> float:
        """Return the q-th percentile (0 to 100) of the samples, linearly interpolated."""
        return float(np.percentile(self.samples_ms, q))

    @property
    def cpu_p50_ms(self) -> float | None:
        """Median processor time; None where it is not known."""
        return float(np.median(self.cpu_ms)) if self.cpu_ms else None

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """90th percentile of the latency."""
        return self.percentile_ms(90)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return self.percentile_ms(99)


class Memory(Record):
    """Memory of a fresh process that loads and runs the model."""

    baseline_bytes: int
    """Resident memory after importing the runtime."""
    peak_load_bytes: int
    """Peak of resident memory (VmHWM) after loading the model."""
    peak_run_bytes: int
    """Peak of resident memory (VmHWM) after running it."""
    peak_reset: bool = True
    """True where the kernel let the peak be reset before running, so that it does not include the peak of loading."""
    pss_run_bytes: int | None = None
    """Memory held after running, with pages shared with other processes counted in part (smaps_rollup)."""
    arena: bool = True
    """True where the runtime kept freed memory for itself."""


class Original(Record):
    """The user's own ONNX file, from which the model of a row was made, timed in turn with it."""

    name: str
    """Name of the file."""
    size_bytes: int
    """Size of the file, external data included."""
    latency: Latency
    """Times of its inferences."""


class Measurement(Record):
    """One row of a table: a model file, where it ran, and the results."""

    model: str
    """Name of the model."""
    variant: str
    """Name of the variant, such as "int8"."""
    sha256: str
    """Hash of the model file."""
    size_bytes: int
    """Size of the model file."""
    target: str | None = None
    """Name of the target that the row is about."""
    evidence: Evidence
    """Where the times come from."""
    host: Host
    """The machine that ran the model."""
    latency: Latency | None = None
    """Times of inferences."""
    memory: Memory | None = None
    """Memory of a process that runs the model."""
    conditions: Conditions = Conditions()
    """State of the machine around the runs."""
    sustained: tuple[Window, ...] = ()
    """Windows of a long run without a pause, where one was asked for."""
    operators: tuple[OperatorTime, ...] = ()
    """Times of single operators, where they were asked for."""
    score: Score | None = None
    """Accuracy of the model."""
    original: Original | None = None
    """For the float model of an export: the file it was made from, where that is an ONNX file."""
    note: str | None = None
    """A remark on how the row came about."""
    when: str
    """Date and time in ISO 8601, the same for all rows that were interleaved in one run."""


class Results(Document):
    """The measurements of one or more runs of ``bench``."""

    KIND: ClassVar[str] = "results file"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    measurements: tuple[Measurement, ...]
    """The rows."""
