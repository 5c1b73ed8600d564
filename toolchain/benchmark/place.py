"""Places where a benchmark runs: this machine, one reached over SSH, an emulated CPU.

A `Place` is a name; reserving it gives the `Device`, which nobody else can have meanwhile. All that differs between
places is how the runner is started there and how its files get there: its answers are the same lines everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

from toolchain.data.tensors import Feed
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

Say = Callable[[str], None]
"""Called with one short line before every slow step."""


class Runner(Protocol):
    """A process that holds one model; the end of its ``with`` block ends it, whatever happened."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...

    def started(self) -> dict[str, Any]:
        """Wait for the process's first line: the runtime's version and the memory it takes by itself.

        Raises:
            DeviceError: it did not start.
        """

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Send one command (listed in ``runner.py``) with its numbers and wait for the answer.

        Raises:
            ModelError: the runtime refuses the model or the feed.
            DeviceError: the process was killed, did not answer in time, or the device cannot be reached any more.
        """


class Device(Protocol):
    """A place while it is ours. Every method raises DeviceError when it cannot be reached any more."""

    def describe(self) -> Host:
        """The machine and the onnxruntime that the runners will use there."""

    def read_conditions(self) -> Reading:
        """What it is doing now."""

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
        """A new process for a model file of this machine.

        Args:
            model: ``.onnx`` or ``.ort``; external data lies beside it.
            threads: of the runtime's operators.
            session_options: the runtime's configuration entries.
            feed: the inputs of every inference; made up from the model's inputs where None.
            dims: sizes of named axes for a made-up feed; others are 1.
            arena: whether the runtime keeps freed memory for itself.
            cpus: the processors it is bound to: a list like ``0-3,6``, or ``big`` or ``little``; None is all.
        """

    def detect(self) -> Target:
        """Its profile, read from its kernel."""


class Place(Protocol):
    """Where a benchmark can run."""

    @property
    def name(self) -> str:
        """As the user gave it, such as ``ssh:pi``."""

    def reserve(self, say: Say) -> AbstractContextManager[Device]:
        """The device, until the end of the block; then nothing of ours runs there any more.

        Raises:
            DeviceError: it cannot be reached or used, or somebody else has it (``busy: ...``).
        """
