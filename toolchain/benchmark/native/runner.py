"""`NativeRunner`: the program of ``runner.c`` for devices without Python, and the tensor files it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from toolchain.benchmark.job import BenchJob
from toolchain.benchmark.process import END_TIMEOUT_S, REPLY_TIMEOUT_S, LineProcess, ProcessEnd, explain
from toolchain.core.errors import DataError, DeviceError, ToolchainError, one_line
from toolchain.data.tensors import Array, Feed

LIBRARY_HINT = "give a libonnxruntime.so for this device: for Android, the one in jni of onnxruntime-android's .aar"


def _no_outside_cause(end: ProcessEnd) -> None:
    return None


class NativeRunner:
    """A process of ``runner.c`` with one model; see `place.Runner`.

    Args:
        command: the command that starts it, here or on a device.
        job: the model and the way it is run, for messages.
        line: its first line, with paths that are valid where it runs (`job.first_line`).
        library: the runtime on this machine, for messages.
        env: the command's environment; None is ours.
        reply_timeout_s: longest time to wait for an answer; then the process is killed.
        outside_cause: returns the error for an end that the runner did not cause itself (a lost connection), or None.
    """

    def __init__(
        self,
        command: Sequence[str],
        job: BenchJob,
        line: Mapping[str, Any],
        *,
        library: Path,
        env: Mapping[str, str] | None = None,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        outside_cause: Callable[[ProcessEnd], ToolchainError | None] = _no_outside_cause,
    ) -> None:
        self._job, self._library, self._outside_cause = job, library, outside_cause
        self._process = LineProcess(command, env=env, reply_timeout_s=reply_timeout_s)
        self._process.send(line)

    @property
    def pid(self) -> int:
        """The process's number on this machine."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:  # the process waits for a command; after an exception it may be busy with one
            self._process.finish(END_TIMEOUT_S)
        self._process.__exit__(*raised)

    def started(self) -> dict[str, Any]:
        """See `place.Runner.started`."""
        return self._receive("start")

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """See `place.Runner.ask`.

        Raises:
            DeviceError: also for ``profile``, which needs Python.
        """
        if do == "profile":
            hint = "profile it on this machine, or on one that is reached over SSH"
            raise DeviceError("the runner in C makes no profiles", where=self._job.path, hint=hint)
        self._process.send({"do": do, **(numbers or {})})
        return self._receive(do)

    def answer(self, feed: Mapping[str, Any] | None, path: str) -> list[str]:
        """Run one feed and write the outputs to a file where the runner runs.

        Args:
            feed: the feed's entry as `store_feed_npy` returns it; None lets the runner generate one.
            path: the file to write there.

        Returns:
            Names of the outputs, in the order of the file.

        Raises:
            ModelError: the runtime refuses the feed.
            DeviceError: as for `ask`.
        """
        self._process.send({"do": "answers", "feed": feed, "path": path})
        names: list[str] = self._receive("answers")["outputs"]
        return names

    def _receive(self, command: str) -> dict[str, Any]:
        answer = self._process.receive()
        if not isinstance(answer, ProcessEnd):
            return answer
        if answer.code > 128:  # a shell reports signal n as exit code 128 + n
            answer = replace(answer, code=128 - answer.code)
        error = self._outside_cause(answer)
        if error is None and command == "start" and answer.code > 0:
            reason = one_line(answer.last_line or f"exit code {answer.code}")
            error = DeviceError(f"cannot be opened ({reason})", where=self._library, hint=LIBRARY_HINT)
        raise error or explain(answer, command, job=self._job, runtime=self._library)


def store_feed_npy(feed: Feed, path: Path) -> dict[str, Any]:
    """Write a feed as ``runner.c`` reads it: ``.npy`` members, one after the other in one file.

    Returns:
        The feed's entry in the runner's first line.

    Raises:
        DataError: an array has strings, or another dtype that such a file cannot hold.
    """
    with path.open("wb") as file:
        for name, array in feed.items():
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                hint = "the runner for this device takes only numbers and bools; export the model without strings"
                raise DataError(f"input {name!r} is {array.dtype}", where="the feed", hint=hint)
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            np.lib.format.write_array(file, little, allow_pickle=False)
    return {"path": str(path), "names": list(feed)}


def read_answers(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read the outputs that `NativeRunner.answer` wrote; `names` are those it returned."""
    with path.open("rb") as file:
        return {name: np.lib.format.read_array(file, allow_pickle=False) for name in names}
