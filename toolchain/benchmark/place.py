"""Places where models are run: this machine, one reached over SSH, an Android device, an emulated CPU.

A `Place` is a name and what can be done there. Reserving it gives a device, which no other benchmark can use meanwhile.
There are two kinds of devices, because an emulated CPU has no meaningful latency:

- a `TimingDevice` starts runner processes, which load a model and time its inferences;
- an `AnsweringDevice` runs a model on given inputs and returns its outputs.

A place can offer both. Places differ in how a runner is started and how files get there; the lines that a runner reads
and writes are the same everywhere (``runner.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

from toolchain.benchmark.job import BenchJob
from toolchain.core.progress import Progress
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Evidence, Host, Reading
from toolchain.formats.target import Target


@dataclass(frozen=True)
class TargetEvidence:
    """The target that rows from a device are about, and the kind of evidence they are.

    Attributes:
        target: name of the target; None if the rows are about the measuring machine itself.
        evidence: the kind of evidence.
    """

    target: str | None
    evidence: Evidence


class Runner(Protocol):
    """A process that holds one model. The end of its ``with`` block ends the process, also after an exception."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...

    def started(self) -> dict[str, Any]:
        """Wait for the first line of the process: the runtime's version, and the memory in use before the model.

        Raises:
            DeviceError: it did not start.
        """

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Send one command (listed in ``runner.py``) with its numbers, and wait for the answer.

        Raises:
            ModelError: the runtime refuses the model or the feed.
            DeviceError: the process was killed or did not answer in time, or the connection to the device was lost.
        """


class Device(Protocol):
    """A reserved place. Every method raises DeviceError when the device can no longer be reached."""

    def describe(self) -> Host:
        """Return the machine, and the onnxruntime that runs models there."""

    def evidence_for(self, target: Target | None) -> TargetEvidence:
        """Return which target the rows are about, and what evidence they are for it.

        Args:
            target: the target that the user asked for; None is the device itself.
        """


class TimingDevice(Device, Protocol):
    """A device on which models can be timed."""

    def detect(self) -> Target:
        """Return the device's profile, read from its kernel."""

    def read_conditions(self) -> Reading:
        """Return the device's current load, clock, temperature and throttling."""

    def open(self, job: BenchJob) -> Runner:
        """Start a new process for one model; files that are not on the device yet are sent first."""


class AnsweringDevice(Device, Protocol):
    """A device on which a model can be run on given inputs."""

    def answer(
        self, model: Path, feeds: Sequence[Feed], *, session_options: Mapping[str, str]
    ) -> list[dict[str, Array]]:
        """Run the model with one thread on each feed.

        Args:
            model: ``.onnx`` or ``.ort`` on this machine; external data lies beside it.
            feeds: arrays by input name.
            session_options: configuration entries of the onnxruntime session.

        Returns:
            Outputs by name, one dictionary for each feed.

        Raises:
            ModelError: the runtime refuses the model or a feed.
        """


ReserveTiming: TypeAlias = Callable[[Progress], AbstractContextManager[TimingDevice]]
ReserveAnswering: TypeAlias = Callable[[Progress], AbstractContextManager[AnsweringDevice]]


class Place(Protocol):
    """A place by its name, and what can be done there.

    Reserving it gives the device until the end of the ``with`` block; after that, no process of the benchmark runs
    there any more. It raises DeviceError where the place cannot be reached or used, or is busy with another benchmark.
    """

    @property
    def name(self) -> str:
        """The name that the user gave, such as ``ssh:pi``."""

    @property
    def timing(self) -> ReserveTiming | None:
        """Reserve the device to time models there; None if latency has no meaning there."""

    @property
    def answering(self) -> ReserveAnswering | None:
        """Reserve the device to run models on given inputs there; None if that is not supported."""

    @property
    def profiles_operators(self) -> bool:
        """True if runners there can time single operators."""


def host_evidence(target: str | None) -> TargetEvidence:
    """Return the evidence of a time measured on this machine: ``measured`` for itself, ``host`` for other targets."""
    return TargetEvidence(target, "measured" if target in (None, "host") else "host")


def detected_evidence(detected: Target, target: Target | None) -> TargetEvidence:
    """Return the evidence of a time from another device: ``measured`` if it has the target's cores, else ``host``.

    Args:
        detected: the device's own profile.
        target: the target that the user asked for; None is the device itself.
    """
    if target is None:
        return TargetEvidence(detected.name, "measured")
    same_cores = {core.core for core in target.cores} == {core.core for core in detected.cores}
    same = same_cores and target.architecture == detected.architecture
    return TargetEvidence(target.name, "measured" if same else "host")
