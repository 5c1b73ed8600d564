"""`LineProcess`: a process that answers lines of JSON. `explain`: the error for a process that did not answer."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from toolchain.benchmark.job import BenchJob
from toolchain.core.errors import DeviceError, ModelError, ToolchainError, one_line

REPLY_TIMEOUT_S = 600.0
"""Longest time to wait for a runner's answer."""
END_TIMEOUT_S = 5.0
"""Longest time to wait until a process ends after its stdin was closed."""


@dataclass(frozen=True)
class ProcessEnd:
    """The end of a process.

    Attributes:
        code: the exit code, negative for a signal.
        stderr: everything it wrote to stderr.
        timed_out_s: seconds without an answer after which we killed it; None if it ended by itself.
    """

    code: int
    stderr: str = ""
    timed_out_s: float | None = None

    @property
    def last_line(self) -> str:
        """The last line of stderr that is not blank; empty if there is none."""
        return next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")


class LineProcess:
    """A running command that answers lines of JSON. The end of its ``with`` block kills and reaps the process.

    Args:
        command: the program and its arguments.
        env: its environment; None is ours.
        reply_timeout_s: longest time that `receive` waits, unless it is given another one.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, reply_timeout_s: float = REPLY_TIMEOUT_S
    ) -> None:
        self._reply_timeout_s = reply_timeout_s
        self._timed_out_s: float | None = None
        self._stderr = tempfile.TemporaryFile(prefix="toolchain-bench-")  # noqa: SIM115 (closed by __exit__)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=env,
                start_new_session=True,  # Ctrl-C reaches only this program, which then ends the process.
            )
        except OSError:
            self._stderr.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number on this machine."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def finish(self, timeout_s: float) -> None:
        """Close its stdin, and wait up to `timeout_s` seconds for the process to end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):  # closing flushes bytes that the process did not read
                if pipe is not None:
                    pipe.close()

    def send(self, line: Mapping[str, Any], content: Path | None = None) -> None:
        """Send one line, then the bytes of a file if one is given. `receive` reports a process that has ended."""
        self.send_bytes(json.dumps(line).encode() + b"\n")
        if content is not None:
            with content.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self.send_bytes(chunk)

    def send_bytes(self, content: bytes) -> None:
        """Send bytes that are not a line of JSON."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | ProcessEnd:
        """Wait for the next line of JSON.

        Args:
            timeout_s: seconds after which the process is killed; None is the process's own `reply_timeout_s`.

        Returns:
            The line; the end of the process if it ended without one.
        """
        assert self._process.stdout is not None
        seconds = timeout_s or self._reply_timeout_s
        watchdog = threading.Timer(seconds, self._time_out, [seconds])
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self._process.stdout.readline()
            while line and not line.startswith(b"{"):  # a greeting of the shell before the command's own output
                line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.endswith(b"\n"):  # an incomplete line is the end of a process, too
            self._stderr.seek(0)
            stderr = self._stderr.read().decode("utf-8", "replace")
            return ProcessEnd(self._process.wait(), stderr, self._timed_out_s)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _time_out(self, after_s: float) -> None:
        self._timed_out_s = after_s
        self._process.kill()


def explain(end: ProcessEnd, command: str, *, job: BenchJob, runtime: object) -> ToolchainError:
    """Return the error for a runner that gave no answer.

    Args:
        end: how it ended.
        command: the command that it should have answered, or ``start``.
        job: its model and feed.
        runtime: the interpreter or library that should have loaded onnxruntime.
    """
    reason = f" ({one_line(end.last_line)})" if end.last_line else ""
    model = job.path
    if end.timed_out_s is not None:
        what = f"the benchmark process gave no answer to {command!r} within {end.timed_out_s:g} s"
        return DeviceError(what, where=model, hint="use a smaller model or input, or an idle machine")
    if end.code < 0:
        what = f"the benchmark process was killed by {signal.Signals(-end.code).name} during {command!r}{reason}"
        return DeviceError(what, where=model, hint="check free memory and the onnxruntime version")
    if command == "start":
        what = f"the benchmark process did not start{reason}"
        return DeviceError(what, where=runtime, hint="check that numpy and onnxruntime can be imported")
    if command == "load":
        return ModelError(f"onnxruntime cannot load it{reason}", where=model, hint="check the file")
    hint = "give a feed with the right names, shapes and dtypes"
    if job.feed is None:
        hint = "generated inputs have size 1 for dynamic axes: fix those with `toolchain convert --freeze AXIS=SIZE`"
    return ModelError(f"onnxruntime cannot run it{reason}", where=model, hint=hint)
