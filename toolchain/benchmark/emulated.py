"""The place ``emulator:CPU``: what a model computes on another processor. It has answers and no time.

qemu translates every instruction; an inference takes 50 to 100 times as long as here, and which of two models takes
longer says nothing about the real processor.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np

from toolchain.benchmark import emulator
from toolchain.benchmark.place import Runner, Say
from toolchain.core.errors import DeviceError, ModelError, one_line
from toolchain.data.tensors import Array, Feed
from toolchain.devices.cpuinfo import read_cpu
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

NO_TIME = "an emulated CPU says what a model computes, never how long it takes"


@dataclass(frozen=True)
class Emulated:
    """An emulated CPU, place and device in one. cpu: a name of `emulator.CPUS`."""

    cpu: str

    @property
    def name(self) -> str:
        """``emulator:CPU``."""
        return f"emulator:{self.cpu}"

    @contextmanager
    def reserve(self, say: Say) -> Iterator[Emulated]:
        """As `place.Place.reserve`.

        Raises:
            DeviceError: unknown CPU, or the emulator is not set up.
        """
        reason = emulator.unavailable(self.cpu)
        if reason is not None:
            raise DeviceError(reason, where=self.name, hint=emulator.SETUP)
        yield self

    def describe(self) -> Host:
        """The emulated processor; it has no memory of its own, and the one core that answers need."""
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

    def read_conditions(self) -> Reading:
        """Nothing."""
        return Reading()

    def open(
        self,
        model: Path,
        *,
        threads: int,
        session_options: Mapping[str, str],
        feed: Feed | None = None,
        dims: Mapping[str, int] | None = None,
        arena: bool = True,
        cpus: str | None = None,
    ) -> Runner:
        """Refuses: a runner is there to time.

        Raises:
            DeviceError: always.
        """
        self._refuse(NO_TIME, "time it on the device, with --on ssh:HOST")

    def detect(self) -> Target:
        """Refuses.

        Raises:
            DeviceError: always.
        """
        self._refuse("an emulated CPU is no device to describe", "see `toolchain targets list`")

    def compare(
        self, model: Path, *, session_options: Mapping[str, str], feed: Feed | None, dims: Mapping[str, int]
    ) -> str:
        """Run the model on one feed there and here, and say how far the answers lie apart.

        Args:
            model: ``.onnx`` or ``.ort``.
            session_options: the runtime's configuration entries.
            feed: None makes it up, as a benchmark does (seeded).
            dims: sizes of named axes for a made-up feed; others are 1.

        Raises:
            ModelError: onnxruntime here refuses the model or the feed. DeviceError: the emulated run failed.
        """
        options = dict(session_options)
        if emulator.find_cpu(self.cpu).architecture == "aarch64":
            options.setdefault(
                "session.qdqisint8allowed", "1"
            )  # the ARM build's own choice, which this one then shares
        feed, here = _here(model, options, feed, dims)
        (there,) = emulator.run(self.cpu, model, [feed], options=options)
        return difference(here, there)

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise DeviceError(what, where=self.name, hint=hint)


def _here(
    model: Path, options: Mapping[str, str], feed: Feed | None, dims: Mapping[str, int]
) -> tuple[Feed, dict[str, Array]]:
    """The feed that was run on this machine, with one thread, and the outputs by name."""
    from toolchain.benchmark.runner import make_feed
    from toolchain.graph import run

    session = run.session(model, threads=1, options=options)
    try:
        feed = make_feed(session, dict(dims), 0) if feed is None else feed
        outputs = session.run(None, feed)
    except (
        *run.OrtError,
        TypeError,
        ValueError,
    ) as error:  # TypeError: no feed for such an input; ValueError: its names
        hint = "in a made-up feed open axes are 1 long: fix those with `toolchain convert --freeze AXIS=SIZE`"
        raise ModelError(f"onnxruntime cannot run it ({one_line(error)})", where=model, hint=hint) from None
    return feed, dict(zip([output.name for output in session.get_outputs()], outputs, strict=True))


def difference(here: Mapping[str, Array], there: Mapping[str, Array]) -> str:
    """How far the same outputs of two machines lie apart, in words."""
    if all(np.array_equal(here[name], there[name], equal_nan=here[name].dtype.kind == "f") for name in here):
        return f"answers identical to those of {_me()}, bit for bit"
    worst = {name: _apart(here[name], there[name]) for name in here}
    name = max(worst, key=lambda n: worst[n])
    largest = float(np.max(np.abs(here[name].astype(np.float64)), initial=0.0))
    apart = f"by {worst[name]:.2g} at most, in {name}, whose values go to {largest:.3g}"
    return f"answers differ from those of {_me()} {apart}"


def _apart(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else float("inf")
    return float(np.nan_to_num(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0), nan=np.inf))


def _me() -> str:
    return f"this {read_cpu().architecture} machine"
