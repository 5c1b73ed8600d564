"""The place ``ssh:HOST``: a Linux machine, reached with the user's own OpenSSH client.

One connection carries everything (``agent.py`` at its other end), so no second one needs to be made or cleaned up.
The client's configuration, keys, jump hosts and checks of host keys are the user's; we only add that it must not ask
(``BatchMode``), must notice a dead connection, and makes no forwardings. ``$TOOLCHAIN_SSH`` is the command, ``ssh``
where it is not set. ssh(1): its exit code is the remote command's, or 255 for an error of its own.
"""

from __future__ import annotations

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
from toolchain.benchmark.local import SCRIPT, make_job, store_feed
from toolchain.benchmark.model_files import model_files
from toolchain.benchmark.place import Say
from toolchain.benchmark.process import Death, LineProcess, explain
from toolchain.core.errors import DeviceError, one_line
from toolchain.core.files import sha256
from toolchain.data.tensors import Feed
from toolchain.devices.cpuinfo import read_cpu
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

AGENT = Path(__file__).with_name("agent.py")
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",  # one that is there is used; ours is never one that others come to depend on
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}
OLD = "needs Python 3.9"
START = (
    "import sys; i = sys.stdin.buffer; s = i.read(int(i.readline())); "
    f"sys.exit('{OLD}, is ' + sys.version.split()[0]) if sys.version_info < (3, 9) else exec(s)"
)
CONNECT_TIMEOUT_S = 120.0  # jump hosts, and a small board that is busy
INSTALL_TIMEOUT_S = 1800.0
FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True)
class Ssh:
    """A host, named as for ``ssh``. python: the interpreter to use there; None finds or makes one."""

    host: str
    python: str | None = None

    @property
    def name(self) -> str:
        """``ssh:HOST``."""
        return f"ssh:{self.host}"

    @contextmanager
    def reserve(self, say: Say) -> Iterator[Remote]:
        """As `place.Place.reserve`."""
        say(f"connecting to {self.host}")
        command = shlex.split(os.environ.get("TOOLCHAIN_SSH", "ssh"))
        options = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
        start = f"exec {_quoted(self.python or 'python3')} -c {shlex.quote(START)}"
        try:
            process = LineProcess([*command, "-T", *options, "--", self.host, start])
        except OSError as error:
            hint = "install OpenSSH's client, or set TOOLCHAIN_SSH"
            raise DeviceError(
                f"{command[0]} cannot be started ({error.strerror})", where=self.name, hint=hint
            ) from None
        with process:
            try:
                yield Remote(self, process, say)
            finally:
                process.finish(5.0)


class Remote:
    """A host that is ours for now: place.Device over one SSH connection.

    Raises:
        DeviceError: it cannot be reached, has no Python, or is busy.
    """

    def __init__(self, place: Ssh, process: LineProcess, say: Say) -> None:
        self._place, self._process, self._say = place, process, say
        self._numbers = count()
        process.send_bytes(b"%d\n%b" % (AGENT.stat().st_size, AGENT.read_bytes()))
        hello = process.receive(CONNECT_TIMEOUT_S)
        if isinstance(hello, Death):
            raise self._no_connection(hello)
        busy = self.call("lock").get("busy")
        if busy is not None:
            raise self._error(f"busy: it is running another benchmark ({busy})", "wait for its end")

    def describe(self) -> Host:
        """As `place.Device.describe`; where onnxruntime is not there yet, it is installed now."""
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

    def read_conditions(self) -> Reading:
        """As `place.Device.read_conditions`."""
        return Reading(**self.call("conditions"))

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
    ) -> RemoteRunner:
        """As `place.Device.open`; files that are not there yet are sent."""
        files = {name: self._send(model.parent / name) for name in model_files(model)}
        stored = None
        if feed is not None:
            with tempfile.TemporaryDirectory(prefix="toolchain-bench-") as folder:
                stored = store_feed(feed, Path(folder) / "feed.npz") | {"path": "feed/feed.npz"}
                files["feed/feed.npz"] = self._send(Path(folder) / "feed.npz")
        start = {
            "python": self._runtime["python"],
            "runner": self._send(SCRIPT),
            "files": files,
            "job": make_job(model.name, threads, session_options, stored, dims, arena, cpus),
        }
        return RemoteRunner(self, next(self._numbers), model, start, fed=feed is not None)

    def detect(self) -> Target:
        """As `place.Device.detect`, named after the host; its onnxruntime is stated where it has one already."""
        facts = self._facts
        if facts["machine"] not in ("x86_64", "aarch64"):
            what = f"is {facts['machine']}, and int8 kernels are known for x86_64 and aarch64 only"
            raise self._error(what, "install a 64-bit system there")
        with root_of(facts["files"]) as root:
            found = detect_host(root)
        runtime = self.call("environment", version=version("onnxruntime"))["onnxruntime"]
        if runtime is not None:
            there = found.runtime.model_copy(update={"version": f">={runtime}"})
            found = found.model_copy(update={"runtime": there})
        return found.renamed(facts["name"])

    def call(
        self, do: str, timeout_s: float | None = None, content: Path | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """One command of ``agent.py`` and its answer."""
        self._process.send({"do": do, **arguments}, content)
        answer = self._process.receive(timeout_s)
        if isinstance(answer, Death):
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
            found = self.call("own")
            if "error" in found:
                what = f"{self._place.python} there cannot import numpy and onnxruntime ({one_line(found['error'])})"
                raise self._error(what, "install them for it, or leave --python out")
            return found
        found = self.call("environment", version=here)
        if "absent" in found:
            self._say(f"first use: installing onnxruntime {here} on {self._place.host}")
            found = self.call("install", INSTALL_TIMEOUT_S, version=here)
        if "error" in found:
            self._raise_if_full(found["error"])
            what = f"has no onnxruntime, and it cannot be installed there ({one_line(found['error'])})"
            raise self._error(what, "install python3-venv there, or name a Python that has it with --python")
        return found

    def _send(self, path: Path) -> str:
        """The file's name on the host, where it is sent unless it is there."""
        name = f"{sha256(path)}{path.suffix}"
        if not self.call("have", name=name)["have"]:
            size = path.stat().st_size
            self._say(f"sending {path.name} ({size / 1e6:.1f} MB)")
            self.call("put", content=path, name=name, size=size)
        return name

    def _error(self, what: str, hint: str) -> DeviceError:
        return DeviceError(what, where=self._place.name, hint=hint)

    def _failed(self, error: str) -> DeviceError:
        self._raise_if_full(error)
        return self._error(f"cannot be used ({one_line(error)})", "check ~/.cache/edge-toolchain there")

    def _raise_if_full(self, error: str) -> None:
        if any(sign in error for sign in FULL):
            where = next(sign for sign in FULL if sign in error)
            raise self._error(f"its disk is full ({where})", "free some space there")

    def _no_connection(self, death: Death) -> DeviceError:
        said, host = one_line(death.said), self._place.host
        if death.timed_out:
            return self._error(f"gave no answer within {CONNECT_TIMEOUT_S:g} s", f"see whether `ssh {host}` does")
        if death.code == 255:
            return self._error(*_refusal(death.stderr, said, host))
        if death.code in (126, 127):
            what = f"{self._place.python or 'python3'} is not there or cannot be run"
            return self._error(what, "install Python 3.9 or newer there, or name one with --python")
        if OLD in death.stderr:
            return self._error(said.replace("needs", "the benchmark needs"), "name a newer one with --python")
        return self._error(
            f"the benchmark did not start there ({said or f'exit code {death.code}'})", f"try `ssh {host}`"
        )

    def _lost(self, death: Death) -> DeviceError:
        if death.timed_out:
            return self._error("gave no answer in time", "see whether it still runs")
        said = f" ({one_line(death.said)})" if death.said else ""
        return self._error(f"the connection was lost{said}", "see whether the machine still runs, then try again")


class RemoteRunner:
    """``runner.py`` on the host; see `place.Runner`. It is started by the end of `__init__`."""

    def __init__(self, remote: Remote, number: int, model: Path, start: dict[str, Any], *, fed: bool) -> None:
        self._remote, self._number, self._model, self._fed = remote, number, model, fed
        self._python = start["python"]
        self._first = self._answer("start", remote.call("start", id=number, **start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:  # otherwise the connection, which may be broken, is about to end, and with it all there
            self._remote.call("stop", id=self._number)

    def started(self) -> dict[str, Any]:
        """As `place.Runner.started`."""
        return self._first

    def ask(self, do: str, numbers: Mapping[str, float] | None = None) -> dict[str, Any]:
        """As `place.Runner.ask`."""
        return self._answer(do, self._remote.call("ask", id=self._number, line={"do": do, **(numbers or {})}))

    def _answer(self, doing: str, said: dict[str, Any]) -> dict[str, Any]:
        if "code" in said:
            death = Death(said["code"], said["said"])
            raise explain(death, doing, model=self._model, runtime=self._python, fed=self._fed)
        answer: dict[str, Any] = said["answer"]
        return answer


def _refusal(stderr: str, said: str, host: str) -> tuple[str, str]:
    """What and hint for what ssh says when there is no connection."""
    if "IDENTIFICATION HAS CHANGED" in stderr:
        hint = f"if that is right, run `ssh-keygen -R {host}` and then `ssh {host}` once"
        return "its host key is another one than before", hint
    if "Host key verification failed" in stderr:
        return "its host key is not known here", f"run `ssh {host}` once and accept it"
    if "Permission denied" in stderr:
        return f"it accepts none of your keys ({said})", f"run `ssh-copy-id {host}`, or load the key with `ssh-add`"
    if "Could not resolve hostname" in stderr:
        return f"no such host ({said})", "check its name, or add it to ~/.ssh/config"
    return f"cannot be reached ({said or 'the connection was closed'})", f"see whether `ssh {host}` works"


def _quoted(python: str) -> str:
    """A path for the shell there, which knows what ~ is."""
    return f'"$HOME"/{shlex.quote(python[2:])}' if python.startswith("~/") else shlex.quote(python)
