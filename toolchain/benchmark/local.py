"""The place ``local``: this machine, its Python and its onnxruntime."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolchain.benchmark.host import describe_host, read_conditions
from toolchain.benchmark.place import Say
from toolchain.benchmark.process import Death, LineProcess, explain
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

SCRIPT = Path(__file__).with_name("runner.py")


class LocalRunner:
    """A ``runner.py`` process of this machine; see `place.LocalRunner`, and `place.Device.open` for the arguments."""

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        session_options: Mapping[str, str],
        feed: Feed | None = None,
        dims: Mapping[str, int] | None = None,
        arena: bool = True,
        cpus: str | None = None,
    ) -> None:
        self._model = model
        self._fed = feed is not None
        self._folder = tempfile.TemporaryDirectory(prefix="toolchain-bench-")
        stored = None
        if feed is not None:
            stored = store_feed(feed, Path(self._folder.name) / "feed.npz")
        self._process = LineProcess([sys.executable, str(SCRIPT)])
        self._process.send(make_job(str(model), threads, session_options, stored, dims, arena, cpus))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.__exit__(*raised)
        self._folder.cleanup()

    def started(self) -> dict[str, Any]:
        """As `place.LocalRunner.started`."""
        return self._receive("start")

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """As `place.LocalRunner.ask`."""
        self._process.send({"do": do, **(numbers or {})})
        return self._receive(do)

    def _receive(self, doing: str) -> dict[str, Any]:
        answer = self._process.receive()
        if isinstance(answer, Death):
            raise explain(answer, doing, model=self._model, runtime=sys.executable, fed=self._fed)
        return answer


def make_job(
    model: str,
    threads: int,
    session_options: Mapping[str, str],
    feed: Mapping[str, Any] | None,
    dims: Mapping[str, int] | None,
    arena: bool = True,
    cpus: str | None = None,
) -> dict[str, Any]:
    """The first line for ``runner.py``; model: a path where it runs; feed: as `store_feed` returns it."""
    job = {"model": model, "threads": threads, "session_options": dict(session_options), "feed": feed}
    return job | {"dims": dict(dims or {}), "seed": 0, "arena": arena, "cpus": cpus}


def store_feed(feed: Feed, path: Path) -> dict[str, Any]:
    """Write a feed as ``runner.py`` reads it; its entry in the job."""
    np.savez(path, *feed.values())
    return {"path": str(path), "names": list(feed)}


@dataclass(frozen=True)
class Local:
    """This machine, place and device in one. It is shared with whatever else runs here: rows tell its load."""

    name: str = "local"

    @contextmanager
    def reserve(self, say: Say) -> Iterator[Local]:
        """As `place.Place.reserve`; it is never busy."""
        yield self

    def describe(self) -> Host:
        """As `place.Device.describe`."""
        return describe_host()

    def read_conditions(self) -> Reading:
        """As `place.Device.read_conditions`."""
        return read_conditions()

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
    ) -> LocalRunner:
        """As `place.Device.open`."""
        return LocalRunner(
            model, threads=threads, session_options=session_options, feed=feed, dims=dims, arena=arena, cpus=cpus
        )

    def detect(self) -> Target:
        """As `place.Device.detect`."""
        return detect_host()
