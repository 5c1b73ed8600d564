"""Benchmarks without Python: ``runner.c``, driven as ``runner.py`` is, and its files of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolchain.benchmark.process import Death, LineProcess, explain
from toolchain.core.errors import DataError, DeviceError, ToolchainError, one_line
from toolchain.data.tensors import Array, Feed

LIBRARY_HINT = "give a libonnxruntime.so for this device: for Android that of jni/ in onnxruntime-android's .aar"


class NativeRunner:
    """The program of ``runner.c`` with one model; see `place.Runner`.

    Args:
        command: what starts it, here or elsewhere.
        job: its first line.
        model: the model's file on this machine, for messages.
        library: the runtime's, for messages.
        why: the error to raise for an end that is not the runner's own doing (a lost connection), or None.
    """

    def __init__(
        self,
        command: Sequence[str],
        job: Mapping[str, Any],
        *,
        model: Path,
        library: Path,
        env: Mapping[str, str] | None = None,
        why: Callable[[Death], ToolchainError | None] = lambda death: None,
    ) -> None:
        self._model, self._library, self._why = model, library, why
        self._fed = job["feed"] is not None
        self._process = LineProcess(command, env=env)
        self._process.send(job)

    @property
    def pid(self) -> int:
        """Of the process on this machine."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:  # waiting for a command; otherwise it may be in the middle of one
            self._process.finish(5.0)
        self._process.__exit__(*raised)

    def started(self) -> dict[str, Any]:
        """As `place.Runner.started`."""
        return self._receive("start")

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """As `place.Runner.ask`.

        Raises:
            DeviceError: also for ``profile``, which needs Python.
        """
        if do == "profile":
            hint = "profile it on this machine, or on one that is reached over SSH"
            raise DeviceError("the runner in C makes no profiles", where=self._model, hint=hint)
        self._process.send({"do": do, **(numbers or {})})
        return self._receive(do)

    def answer(self, feed: Mapping[str, Any] | None, path: str) -> list[str]:
        """Run one feed (its entry as `store_feed` gives it) and write the outputs to `path` there; their names.

        Raises:
            ModelError: the runtime refuses the feed. DeviceError: as `ask`.
        """
        self._process.send({"do": "answers", "feed": feed, "path": path})
        names: list[str] = self._receive("answers")["outputs"]
        return names

    def _receive(self, doing: str) -> dict[str, Any]:
        answer = self._process.receive()
        if not isinstance(answer, Death):
            return answer
        if answer.code > 128:  # a shell's way to tell of a signal
            answer = replace(answer, code=128 - answer.code)
        error = self._why(answer)
        if error is None and doing == "start" and answer.code > 0:
            said = one_line(answer.said or f"exit code {answer.code}")
            error = DeviceError(f"cannot be opened ({said})", where=self._library, hint=LIBRARY_HINT)
        raise error or explain(answer, doing, model=self._model, runtime=self._library, fed=self._fed)


def store_feed(feed: Feed, path: Path) -> dict[str, Any]:
    """Write a feed as ``runner.c`` reads it, ``.npy`` members one behind another; its entry in the job.

    Raises:
        DataError: it has strings, or another dtype that such a file cannot hold.
    """
    with path.open("wb") as file:
        for name, array in feed.items():
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                what = f"input {name!r} is {array.dtype}"
                raise DataError(what, where="the feed", hint="numbers and bools can be sent to the C runner, no others")
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            np.lib.format.write_array(file, little, allow_pickle=False)
    return {"path": str(path), "names": list(feed)}


def read_answers(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """The outputs that `NativeRunner.answer` had written, by name."""
    with path.open("rb") as file:
        return {name: np.lib.format.read_array(file, allow_pickle=False) for name in names}
