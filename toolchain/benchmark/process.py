"""A process that answers lines of JSON, and what to say when it did not."""

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

from toolchain.core.errors import DeviceError, ModelError, ToolchainError, one_line

REPLY_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Death:
    """How a process ended. code: negative for a signal; stderr: all it said there; timed_out: we ended it."""

    code: int
    stderr: str = ""
    timed_out: bool = False

    @property
    def said(self) -> str:
        """The last line that is not blank."""
        return next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")


class LineProcess:
    """A running command. Use it in a ``with`` block: its end kills and reaps the process, whatever happened."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self._timed_out = False
        self._stderr = tempfile.TemporaryFile(prefix="toolchain-bench-")  # noqa: SIM115 (closed by __exit__)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=env,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the process.
            )
        except OSError:
            self._stderr.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process on this machine."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def finish(self, timeout_s: float) -> None:
        """Close its stdin and give it so long to end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):  # closing flushes what the process no longer read
                if pipe is not None:
                    pipe.close()

    def send(self, line: Mapping[str, Any], content: Path | None = None) -> None:
        """Send one line, and behind it the bytes of a file. A process that is gone is noticed by `receive`."""
        self.send_bytes(json.dumps(line).encode() + b"\n")
        if content is not None:
            with content.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self.send_bytes(chunk)

    def send_bytes(self, content: bytes) -> None:
        """Send what is no line of JSON."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | Death:
        """The next line of JSON. timeout_s: after so long the process is killed; None is `REPLY_TIMEOUT_S`."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(timeout_s or REPLY_TIMEOUT_S, self._time_out)
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self._process.stdout.readline()
            while line and not line.startswith(b"{"):  # what a shell says before the command it was given
                line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.endswith(b"\n"):  # the rest of a line is the end of a process, too
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace")
            return Death(self._process.wait(), said, self._timed_out)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()


def explain(death: Death, doing: str, *, model: Path, runtime: object, fed: bool) -> ToolchainError:
    """The sentence for a runner that gave no answer.

    Args:
        death: how it ended.
        doing: the command it was to answer, or ``start``.
        model: the file it was given.
        runtime: where numpy and onnxruntime were looked for.
        fed: whether its feed was given, not made up.
    """
    said = f" ({one_line(death.said)})" if death.said else ""
    if death.timed_out:
        what = f"the benchmark process gave no answer to {doing!r} within {REPLY_TIMEOUT_S:g} s"
        return DeviceError(what, where=model, hint="use a smaller model or input, or an idle machine")
    if death.code < 0:
        what = f"the benchmark process was killed by {signal.Signals(-death.code).name} during {doing!r}{said}"
        return DeviceError(what, where=model, hint="check free memory and the onnxruntime version")
    if doing == "start":
        what = f"the benchmark process did not start{said}"
        return DeviceError(what, where=runtime, hint="check that numpy and onnxruntime can be imported")
    if doing == "load":
        return ModelError(f"onnxruntime cannot load it{said}", where=model, hint="check the file")
    hint = "give a feed with the right names, shapes and dtypes"
    if not fed:
        hint = "its inputs were made up, open axes 1 long: fix those with `toolchain convert --freeze AXIS=SIZE`"
    return ModelError(f"onnxruntime cannot run it{said}", where=model, hint=hint)
