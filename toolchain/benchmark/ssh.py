"""The place ``ssh:HOST``: a Linux machine, reached with the user's own OpenSSH client.

One connection carries everything, with ``agent.py`` at its other end, so that no second one must be opened or cleaned
up. The client's configuration, keys, jump hosts and checks of host keys are the user's. We only add that the client
must not ask questions (``BatchMode``), must notice a dead connection, and makes no forwardings. ``$TOOLCHAIN_SSH`` is
the command to use, by default ``ssh``. Its exit code is the remote command's, or 255 for an error of its own (ssh(1)).
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Self

from toolchain.benchmark.agent import GOVERNOR
from toolchain.benchmark.host import root_of
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.local import RUNNER_SCRIPT, store_feed_npz
from toolchain.benchmark.model_files import model_files
from toolchain.benchmark.place import ReserveTiming, TargetEvidence, detected_evidence
from toolchain.benchmark.process import END_TIMEOUT_S, LineProcess, ProcessEnd, explain
from toolchain.core.errors import DeviceError, one_line
from toolchain.core.files import sha256
from toolchain.core.progress import Progress
from toolchain.devices.cpuinfo import read_cpu
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

LOGGER = logging.getLogger(__name__)

AGENT_SCRIPT = Path(__file__).with_name("agent.py")

CLIENT_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",  # an existing shared connection is used; ours never becomes one that others depend on
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}

PYTHON_TOO_OLD = "needs Python 3.9"

BOOTSTRAP = (
    "import sys; i = sys.stdin.buffer; s = i.read(int(i.readline())); "
    f"sys.exit('{PYTHON_TOO_OLD}, is ' + sys.version.split()[0]) if sys.version_info < (3, 9) else exec(s)"
)
"""The Python program that starts the agent: it reads the agent's length and source from stdin, and runs it."""

CONNECT_TIMEOUT_S = 120.0  # jump hosts, and a small board that is busy
INSTALL_TIMEOUT_S = 1800.0

DISK_FULL_MESSAGES = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True)
class Ssh:
    """A host that models can be timed on; see `place.Place`.

    Attributes:
        host: the host's name, as ``ssh`` takes it.
        python: the interpreter to use there; None finds or installs one.
    """

    host: str
    python: str | None = None

    @property
    def name(self) -> str:
        """``ssh:HOST``."""
        return f"ssh:{self.host}"

    @property
    def timing(self) -> ReserveTiming:
        """See `place.Place.timing`."""
        return self.reserve

    @property
    def answering(self) -> None:
        """None: the agent only runs the timing runner."""
        return None

    @property
    def profiles_operators(self) -> bool:
        """True: the runner in Python makes profiles."""
        return True

    @contextmanager
    def reserve(self, progress: Progress) -> Iterator[SshDevice]:
        """See `place.Place`."""
        progress(f"connecting to {self.host}")
        command = shlex.split(os.environ.get("TOOLCHAIN_SSH", "ssh"))
        options = [word for key, value in CLIENT_OPTIONS.items() for word in ("-o", f"{key}={value}")]
        start = f"exec {shell_path(self.python or 'python3')} -c {shlex.quote(BOOTSTRAP)}"
        try:
            process = LineProcess([*command, "-T", *options, "--", self.host, start])
        except OSError as error:
            what = f"{command[0]} cannot be started ({error.strerror})"
            hint = "install OpenSSH's client, or set TOOLCHAIN_SSH"
            raise DeviceError(what, where=self.name, hint=hint) from None
        with process:
            try:
                yield SshDevice(self, process, progress)
            finally:
                process.finish(END_TIMEOUT_S)


class SshDevice:
    """A reserved host behind one SSH connection; see `place.TimingDevice`.

    Raises:
        DeviceError: it cannot be reached, has no Python, or is busy.
    """

    def __init__(self, place: Ssh, process: LineProcess, progress: Progress) -> None:
        self._place, self._process, self._progress = place, process, progress
        self._numbers = count()
        process.send_bytes(b"%d\n%b" % (AGENT_SCRIPT.stat().st_size, AGENT_SCRIPT.read_bytes()))
        hello = process.receive(CONNECT_TIMEOUT_S)
        if isinstance(hello, ProcessEnd):
            raise self._no_connection(hello)
        busy = self.call("lock").get("busy")
        if busy is not None:
            raise self._error(f"busy: it is running another benchmark ({busy})", "wait for its end")

    def describe(self) -> Host:
        """See `place.Device.describe`; onnxruntime is installed there if it is missing."""
        facts = self._facts
        with root_of(facts["files"]) as root:
            cpu = read_cpu(root)
        memory = re.search(r"MemTotal:\s+(\d+)", facts["files"].get("proc/meminfo", ""))
        return Host(
            name=facts["name"],
            architecture=facts["machine"],
            cpu=cpu.name,
            features=cpu.features,
            cores=cpu.physical_cores,
            memory_mib=int(memory[1]) // 1024 if memory else 0,
            os=facts["os"],
            python=facts["python"],
            onnxruntime=self._runtime["onnxruntime"],
            governor=facts["files"].get(GOVERNOR),
        )

    def evidence_for(self, target: Target | None) -> TargetEvidence:
        """See `place.Device.evidence_for`."""
        return detected_evidence(self.detect(), target)

    def detect(self) -> Target:
        """See `place.TimingDevice.detect`; named after the host, with the version of its onnxruntime if it has one."""
        facts = self._facts
        if facts["machine"] not in ("x86_64", "aarch64"):
            what = f"is {facts['machine']}, and int8 kernels are known for x86_64 and aarch64 only"
            raise self._error(what, "install a 64-bit system there")
        with root_of(facts["files"]) as root:
            target = detect_host(root)
        installed = self.call("environment", version=version("onnxruntime"))["onnxruntime"]
        if installed is not None:
            runtime = target.runtime.model_copy(update={"version": f">={installed}"})
            target = target.model_copy(update={"runtime": runtime})
        return target.renamed(facts["name"])

    def read_conditions(self) -> Reading:
        """See `place.TimingDevice.read_conditions`."""
        return Reading(**self.call("conditions"))

    def open(self, job: BenchJob) -> SshRunner:
        """See `place.TimingDevice.open`."""
        files = {name: self._send(job.path.parent / name) for name in model_files(job.path)}
        feed = None
        if job.feed is not None:
            with tempfile.TemporaryDirectory(prefix="toolchain-bench-") as folder:
                feed = store_feed_npz(job.feed, Path(folder) / "feed.npz") | {"path": "feed/feed.npz"}
                files["feed/feed.npz"] = self._send(Path(folder) / "feed.npz")
        start = {
            "python": self._runtime["python"],
            "runner": self._send(RUNNER_SCRIPT),
            "files": files,
            "job": first_line(job, job.path.name, feed),
        }
        return SshRunner(self, next(self._numbers), job, start)

    def call(
        self, do: str, timeout_s: float | None = None, content: Path | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Send one command of ``agent.py`` and return its answer."""
        self._process.send({"do": do, **arguments}, content)
        answer = self._process.receive(timeout_s)
        if isinstance(answer, ProcessEnd):
            raise self._lost(answer)
        if "error" in answer and do not in ("own", "install"):
            raise self._failed(answer["error"])
        return answer

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts = self.call("facts")
        if "proc/cpuinfo" not in facts["files"]:
            raise self._error(f"runs {facts['os']}", "benchmarks over SSH need a Linux machine")
        return facts

    @cached_property
    def _runtime(self) -> dict[str, Any]:
        """The interpreter for the runners, and its onnxruntime."""
        here = version("onnxruntime")
        if self._place.python is not None:
            runtime = self.call("own")
            if "error" in runtime:
                what = f"{self._place.python} there cannot import numpy and onnxruntime ({one_line(runtime['error'])})"
                raise self._error(what, "install them for it, or leave --python out")
            return runtime
        runtime = self.call("environment", version=here)
        if "absent" in runtime:
            self._progress(f"first use: installing onnxruntime {here} on {self._place.host}")
            runtime = self.call("install", INSTALL_TIMEOUT_S, version=here)
        if "error" in runtime:
            self._raise_if_full(runtime["error"])
            what = f"has no onnxruntime, and it cannot be installed there ({one_line(runtime['error'])})"
            raise self._error(what, "install python3-venv there, or name a Python that has it with --python")
        LOGGER.info("%s runs %s with onnxruntime %s", self._place.name, runtime["python"], runtime["onnxruntime"])
        return runtime

    def _send(self, path: Path) -> str:
        """Send a file unless it is already there, and return its name on the host."""
        name = f"{sha256(path)}{path.suffix}"
        if self.call("have", name=name)["have"]:
            LOGGER.debug("%s already has %s", self._place.name, path.name)
        else:
            size = path.stat().st_size
            self._progress(f"sending {path.name} ({size / 1e6:.1f} MB)")
            self.call("put", content=path, name=name, size=size)
        return name

    def _error(self, what: str, hint: str) -> DeviceError:
        return DeviceError(what, where=self._place.name, hint=hint)

    def _failed(self, error: str) -> DeviceError:
        self._raise_if_full(error)
        return self._error(f"cannot be used ({one_line(error)})", "check ~/.cache/edge-toolchain there")

    def _raise_if_full(self, error: str) -> None:
        message = next((message for message in DISK_FULL_MESSAGES if message in error), None)
        if message is not None:
            raise self._error(f"its disk is full ({message})", "free some space there")

    def _no_connection(self, end: ProcessEnd) -> DeviceError:
        reason, host = one_line(end.last_line), self._place.host
        if end.timed_out_s is not None:
            return self._error(f"gave no answer within {end.timed_out_s:g} s", f"see whether `ssh {host}` does")
        if end.code == 255:
            return self._error(*_refusal(end.stderr, reason, host))
        if end.code in (126, 127):
            what = f"{self._place.python or 'python3'} is not there or cannot be run"
            return self._error(what, "install Python 3.9 or newer there, or name one with --python")
        if PYTHON_TOO_OLD in end.stderr:
            return self._error(reason.replace("needs", "the benchmark needs"), "name a newer one with --python")
        what = f"the benchmark did not start there ({reason or f'exit code {end.code}'})"
        return self._error(what, f"try `ssh {host}`")

    def _lost(self, end: ProcessEnd) -> DeviceError:
        if end.timed_out_s is not None:
            return self._error("gave no answer in time", "see whether it still runs")
        reason = f" ({one_line(end.last_line)})" if end.last_line else ""
        return self._error(f"the connection was lost{reason}", "see whether the machine still runs, then try again")


class SshRunner:
    """A ``runner.py`` process on the host; see `place.Runner`. It has started when `__init__` returns."""

    def __init__(self, device: SshDevice, number: int, job: BenchJob, start: dict[str, Any]) -> None:
        self._device, self._number, self._job = device, number, job
        self._python = start["python"]
        self._first = self._answer("start", device.call("start", id=number, **start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:  # otherwise the connection, which may be broken, ends soon, and ends every process there
            self._device.call("stop", id=self._number)

    def started(self) -> dict[str, Any]:
        """See `place.Runner.started`."""
        return self._first

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """See `place.Runner.ask`."""
        return self._answer(do, self._device.call("ask", id=self._number, line={"do": do, **(numbers or {})}))

    def _answer(self, command: str, reply: dict[str, Any]) -> dict[str, Any]:
        if "code" in reply:
            end = ProcessEnd(reply["code"], reply["said"])
            raise explain(end, command, job=self._job, runtime=self._python)
        answer: dict[str, Any] = reply["answer"]
        return answer


def shell_path(path: str) -> str:
    """Quote a path for the shell on the host; ``~/`` at its beginning still means the home folder there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _refusal(stderr: str, reason: str, host: str) -> tuple[str, str]:
    """Return the error's text and hint if ssh itself reports that it has no connection."""
    if "IDENTIFICATION HAS CHANGED" in stderr:
        hint = f"if that is right, run `ssh-keygen -R {host}` and then `ssh {host}` once"
        return "its host key is not the one known before", hint
    if "Host key verification failed" in stderr:
        return "its host key is not known here", f"run `ssh {host}` once and accept it"
    if "Permission denied" in stderr:
        return f"it accepts none of your keys ({reason})", f"run `ssh-copy-id {host}`, or load the key with `ssh-add`"
    if "Could not resolve hostname" in stderr:
        return f"no such host ({reason})", "check its name, or add it to ~/.ssh/config"
    return f"cannot be reached ({reason or 'the connection was closed'})", f"see whether `ssh {host}` works"
