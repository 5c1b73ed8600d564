"""The place ``emulator:CPU``: the outputs that a model has on another processor. It has no latency.

qemu translates every instruction. An inference takes 50 to 100 times as long as on this machine, and which of two
models takes longer says nothing about the real processor.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from toolchain.benchmark import emulator
from toolchain.benchmark.place import ReserveAnswering, TargetEvidence
from toolchain.core.errors import DeviceError
from toolchain.core.progress import Progress
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Host
from toolchain.formats.target import Target

NO_LATENCY = "an emulated CPU says what a model computes, never how long it takes"


@dataclass(frozen=True)
class Emulated:
    """An emulated CPU, place and device in one: see `place.Place` and `place.AnsweringDevice`.

    Attributes:
        cpu: a name of `emulator.CPUS`.
    """

    cpu: str

    @property
    def name(self) -> str:
        """``emulator:CPU``."""
        return f"emulator:{self.cpu}"

    @property
    def timing(self) -> None:
        """None, because latency under emulation has no meaning."""
        return None

    @property
    def answering(self) -> ReserveAnswering:
        """See `place.Place.answering`."""
        return self.reserve

    @property
    def profiles_operators(self) -> bool:
        """False: operators have no latency here either."""
        return False

    @contextmanager
    def reserve(self, progress: Progress) -> Iterator[Emulated]:
        """See `place.Place.answering`.

        Raises:
            DeviceError: unknown CPU, or the emulator is not set up.
        """
        reason = emulator.unavailable(self.cpu)
        if reason is not None:
            raise DeviceError(reason, where=self.name, hint=emulator.SETUP_HINT)
        yield self

    def describe(self) -> Host:
        """Return the emulated processor, with one core, which is enough here, and no memory of its own."""
        cpu = emulator.find_cpu(self.cpu)
        return Host(
            name=self.name,
            architecture=cpu.architecture,
            cpu=f"{self.cpu}, emulated",
            features=(),
            cores=1,
            memory_mib=0,
            os=f"{platform.system()} {platform.release()}",
            python="3.11" if cpu.architecture == "aarch64" else platform.python_version(),
            onnxruntime=version("onnxruntime"),
        )

    def evidence_for(self, target: Target | None) -> TargetEvidence:
        """Return the target's name, or the CPU's; the evidence is ``emulated``."""
        return TargetEvidence(target.name if target else self.cpu, "emulated")

    def answer(
        self, model: Path, feeds: Sequence[Feed], *, session_options: Mapping[str, str]
    ) -> list[dict[str, Array]]:
        """See `place.AnsweringDevice.answer`; a model that is refused there raises DeviceError."""
        return emulator.run(self.cpu, model, feeds, options=session_options)
