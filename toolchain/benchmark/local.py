"""The place ``local``: this machine, its Python and its onnxruntime."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolchain.benchmark.host import describe_host, read_conditions
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.place import ReserveAnswering, ReserveTiming, Runner, TargetEvidence, host_evidence
from toolchain.benchmark.process import REPLY_TIMEOUT_S, LineProcess, ProcessEnd, explain
from toolchain.core.errors import ModelError, one_line
from toolchain.core.progress import Progress
from toolchain.data.tensors import Array, Feed
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

RUNNER_SCRIPT = Path(__file__).with_name("runner.py")


class LocalRunner:
    """A ``runner.py`` process on this machine; see `place.Runner`.

    Args:
        job: the model and the way it is run.
        reply_timeout_s: longest time to wait for an answer; then the process is killed.
    """

    def __init__(self, job: BenchJob, *, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self._job = job
        self._folder = tempfile.TemporaryDirectory(prefix="toolchain-bench-")
        feed = None if job.feed is None else store_feed_npz(job.feed, Path(self._folder.name) / "feed.npz")
        self._process = LineProcess([sys.executable, str(RUNNER_SCRIPT)], reply_timeout_s=reply_timeout_s)
        self._process.send(first_line(job, str(job.path), feed))

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.__exit__(*raised)
        self._folder.cleanup()

    def started(self) -> dict[str, Any]:
        """See `place.Runner.started`."""
        return self._receive("start")

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """See `place.Runner.ask`."""
        self._process.send({"do": do, **(numbers or {})})
        return self._receive(do)

    def _receive(self, command: str) -> dict[str, Any]:
        answer = self._process.receive()
        if isinstance(answer, ProcessEnd):
            raise explain(answer, command, job=self._job, runtime=sys.executable)
        return answer


def store_feed_npz(feed: Feed, path: Path) -> dict[str, Any]:
    """Write a feed as ``runner.py`` reads it, and return its entry in the first line."""
    np.savez(path, *feed.values())
    return {"path": str(path), "names": list(feed)}


@dataclass(frozen=True)
class Local:
    """This machine, place and device in one: see `place.Place`, `place.TimingDevice` and `place.AnsweringDevice`.

    Other programs may run at the same time; the results record the machine's load.
    """

    @property
    def name(self) -> str:
        """``local``."""
        return "local"

    @property
    def timing(self) -> ReserveTiming:
        """See `place.Place.timing`."""
        return self.reserve

    @property
    def answering(self) -> ReserveAnswering:
        """See `place.Place.answering`."""
        return self.reserve

    @property
    def profiles_operators(self) -> bool:
        """True: the runner in Python makes profiles."""
        return True

    @contextmanager
    def reserve(self, progress: Progress) -> Iterator[Self]:
        """See `place.Place`; this machine is never busy."""
        yield self

    def describe(self) -> Host:
        """See `place.Device.describe`."""
        return describe_host()

    def evidence_for(self, target: Target | None) -> TargetEvidence:
        """See `place.Device.evidence_for`."""
        return host_evidence(target.name if target else None)

    def detect(self) -> Target:
        """See `place.TimingDevice.detect`."""
        return detect_host()

    def read_conditions(self) -> Reading:
        """See `place.TimingDevice.read_conditions`."""
        return read_conditions()

    def open(self, job: BenchJob) -> Runner:
        """See `place.TimingDevice.open`."""
        return LocalRunner(job)

    def answer(
        self, model: Path, feeds: Sequence[Feed], *, session_options: Mapping[str, str]
    ) -> list[dict[str, Array]]:
        """See `place.AnsweringDevice.answer`; the model runs in this process."""
        from toolchain.graph import run

        session = run.session(model, threads=1, options=session_options)
        names = [output.name for output in session.get_outputs()]
        try:
            return [dict(zip(names, session.run(None, feed), strict=True)) for feed in feeds]
        except (*run.OrtError, ValueError) as error:  # ValueError: names of inputs
            what, hint = (
                f"onnxruntime cannot run it ({one_line(error)})",
                "check the names, shapes and dtypes of the feed",
            )
            raise ModelError(what, where=model, hint=hint) from None
