"""The local transport: a `Runner` is one ``runner.py`` process on this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from toolchain.data import Feed
from toolchain.errors import DeviceError, ModelError, ToolchainError, one_line

SCRIPT = Path(__file__).with_name("runner.py")
REPLY_TIMEOUT_S = 600.0


class Runner:
    """A process that holds one model. Use it in a ``with`` block: its end reaps the process, whatever happened.

    Args:
        model: a ``.onnx`` or ``.ort`` file.
        threads: of the runtime's operators.
        session_options: the runtime's configuration entries.
        feed: the inputs of every inference; made up from the model's inputs where None.
        dims: sizes of named axes for a made-up feed; others are 1.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        session_options: Mapping[str, str],
        feed: Feed | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        self._model = model
        self._timed_out = False
        self._fed = feed is not None
        self._folder = tempfile.TemporaryDirectory(prefix="toolchain-bench-")
        folder = Path(self._folder.name)
        stored = None
        if feed is not None:
            stored = {"path": str(folder / "feed.npz"), "names": list(feed)}
            np.savez(folder / "feed.npz", *feed.values())
        self._stderr = folder / "stderr"
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the process.
            )
        job = {"model": str(model), "threads": threads, "session_options": dict(session_options), "feed": stored}
        self._send(job | {"dims": dict(dims or {}), "seed": 0})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # closing flushes what the process no longer read
                if pipe is not None:
                    pipe.close()
        self._folder.cleanup()

    def started(self) -> dict[str, Any]:
        """Wait for the process's first line: the runtime's version and the memory it takes by itself.

        Raises:
            DeviceError: it did not start.
        """
        return self._receive("start")

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Send one command (listed in ``runner.py``) with its numbers and wait for the answer.

        Raises:
            ModelError: onnxruntime refuses the model or the feed.
            DeviceError: the process was killed, or did not answer in time.
        """
        self._send({"do": do, **(numbers or {})})
        return self._receive(do)

    def _send(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer tells more
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()

    def _receive(self, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(REPLY_TIMEOUT_S, self._time_out)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise self._death(doing)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _death(self, doing: str) -> ToolchainError:
        code = self._process.wait()
        lines = self._stderr.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f" ({one_line(last)})" if last else ""
        if self._timed_out:
            what = f"the benchmark process gave no answer to {doing!r} within {REPLY_TIMEOUT_S:g} s"
            return DeviceError(what, where=self._model, hint="use a smaller model or input, or an idle machine")
        if code < 0:
            what = f"the benchmark process was killed by {signal.Signals(-code).name} during {doing!r}{said}"
            return DeviceError(what, where=self._model, hint="check free memory and the onnxruntime version")
        if doing == "start":
            what = f"the benchmark process did not start{said}"
            return DeviceError(what, where=sys.executable, hint="check that numpy and onnxruntime can be imported")
        if doing == "load":
            return ModelError(f"onnxruntime cannot load it{said}", where=self._model, hint="check the file")
        hint = "give a feed with the right names, shapes and dtypes"
        if not self._fed:
            hint = "its inputs were made up, open axes 1 long: fix those with `toolchain convert --freeze AXIS=SIZE`"
        return ModelError(f"onnxruntime cannot run it{said}", where=self._model, hint=hint)
