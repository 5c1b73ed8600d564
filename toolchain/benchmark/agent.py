"""The process on an SSH host that holds the lock, and manages files, the Python environment and the runners there.

It needs only the standard library of Python 3.9 or newer. It is sent over the connection and run from memory. It reads
JSON lines from stdin and answers each with one line on stdout. All its files lie in the folder ``edge-toolchain`` in
``$XDG_CACHE_HOME`` or ``~/.cache``:

    files/<sha256>.<suffix>   files that were sent; each is written to run/ first, then renamed
    env-<version>/            a virtual environment with numpy and onnxruntime; ``complete`` is written last
    lock                      locked (flock) while an agent runs, so that no two benchmarks use the device at once
    run/                      temporary files, removed when the agent ends

    {"do": "lock"}                                  -> {} or {"busy": the other benchmark}
    {"do": "environment", "version": v}             -> {"python": path, "onnxruntime": v}; see below
    {"do": "install", "version": v}                 -> the same, or {"error": reason}
    {"do": "own"}                                   -> the same, for the interpreter that runs this
    {"do": "have", "name": n}                       -> {"have": bool}
    {"do": "put", "name": n, "size": bytes} + bytes -> {} or {"error": reason}
    {"do": "facts"}                                 -> {"files": {path: text}, ...}
    {"do": "conditions"}                            -> as `read_conditions`
    {"do": "start", "id": n, "python": path, "runner": name, "files": {path: name}, "job": {...}} -> as ask
    {"do": "ask", "id": n, "line": {...}}           -> {"answer": {...}} or {"code": n, "said": text}
    {"do": "stop", "id": n}                         -> {}

The answer for an environment that does not exist yet is ``{"absent": true, "onnxruntime": version of this
interpreter's, or null}``. At the end of stdin (the connection was closed or lost) the agent kills the runners, removes
run/ and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn

IDLE_S = 900  # The agent ends after this time without a command, in case a dead connection was never closed.
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
FACT_FILES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/device-tree/model",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    GOVERNOR,
    *(f"sys/devices/system/cpu/cpu[0-9]*/cache/index*/{name}" for name in ("level", "type", "size")),
)
Reply = dict[str, Any]


class _Agent:
    """The state of one connection: the lock, and the running runners by number."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.root = Path(base, "edge-toolchain")
        self.run = self.root / "run"
        self.lock: IO[str] | None = None
        self.runners: dict[int, subprocess.Popen[bytes]] = {}

    def do_lock(self, command: Reply) -> Reply:
        import fcntl  # not on Windows, where only `read_conditions` of this file is used

        for folder in (self.root, self.root / "files"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = open(self.root / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (stays open until `close`)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            return {"busy": lock.read().strip() or "another benchmark"}
        self.lock = lock
        lock.truncate(0)
        client = os.environ.get("SSH_CLIENT", "").split(" ")[0]
        lock.write(f"process {os.getpid()}{client and ' for '}{client} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        shutil.rmtree(self.run, ignore_errors=True)  # left by an agent that was killed
        self.run.mkdir()
        return {}

    def do_environment(self, command: Reply) -> Reply:
        folder = self.root / f"env-{command['version']}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            version, made_for = (folder / "complete").read_text(encoding="utf-8").split()
            if made_for == platform.python_version():  # else the system was upgraded since
                return {"python": str(folder / "bin/python"), "onnxruntime": version}
        if installed("onnxruntime") == command["version"] and installed("numpy"):
            return {"python": sys.executable, "onnxruntime": command["version"]}
        return {"absent": True, "onnxruntime": installed("onnxruntime")}

    def do_own(self, command: Reply) -> Reply:
        code = "import numpy, onnxruntime; print(onnxruntime.__version__)"
        check = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if check.returncode:
            return {"error": last_line(check.stderr)}
        return {"python": sys.executable, "onnxruntime": check.stdout.strip()}

    def do_install(self, command: Reply) -> Reply:
        folder = self.root / f"env-{command['version']}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            error = self.install(folder, command["version"])
        finally:
            if not (folder / "complete").is_file():
                shutil.rmtree(folder, ignore_errors=True)
        if error is None:
            return self.do_environment(command)
        version = installed("onnxruntime")
        if version and installed("numpy"):
            return {"python": sys.executable, "onnxruntime": version}
        return {"error": error}

    def install(self, folder: Path, version: str) -> str | None:
        """Create the environment; return the reason why it could not be created, or None."""
        if sys.maxsize < 2**32:
            return "its Python is a 32-bit one, and there is no onnxruntime for those"
        error = self.call([sys.executable, "-m", "venv", str(folder)])
        if error is not None:
            return error
        python = str(folder / "bin/python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "numpy"]
        error = self.call([*pip, f"onnxruntime=={version}"])
        if error is not None and "No matching distribution" in error:  # only older versions may exist for this Python
            error = self.call([*pip, "onnxruntime"])
        if error is None:
            code = "from importlib.metadata import version; print(version('onnxruntime'))"
            got = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
            (folder / "complete").write_text(f"{got} {platform.python_version()}\n", encoding="utf-8")
        return error

    def call(self, command: list[str]) -> str | None:
        """Run a command until it ends or the connection does; return the line with the reason of a failure, or None."""
        with open(self.run / "output", "w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                while process.poll() is None:
                    if select.select([sys.stdin], [], [], 0.1)[0]:
                        sys.exit()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # venv has a child that installs pip
                process.wait()
            output.seek(0)
            content = output.read()
        if process.returncode == 0:
            return None
        errors = [line for line in content.splitlines() if re.search(r"error|ensurepip|No module", line, re.I)]
        return last_line("\n".join(errors) or content) or f"exit code {process.returncode}"

    def do_have(self, command: Reply) -> Reply:
        return {"have": (self.root / "files" / command["name"]).is_file()}

    def do_put(self, command: Reply) -> Reply:
        left, error = command["size"], None
        part = self.run / "part"
        try:
            with open(part, "wb") as file:
                while left and (chunk := sys.stdin.buffer.read(min(left, 1 << 20))):
                    left -= len(chunk)
                    file.write(chunk)
        except OSError as failure:
            error = str(failure.strerror)
        while left and (chunk := sys.stdin.buffer.read(min(left, 1 << 20))):  # the client still sends the rest
            left -= len(chunk)
        if left:
            sys.exit()
        if error is not None:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
            return {"error": error}
        part.replace(self.root / "files" / command["name"])
        return {}

    def do_facts(self, command: Reply) -> Reply:
        root = Path("/")
        files = {str(p.relative_to(root)): text(p) for pattern in FACT_FILES for p in root.glob(pattern)}
        return {
            "files": {path: content for path, content in files.items() if content is not None},
            "name": socket.gethostname(),
            "machine": platform.machine(),
            "os": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        }

    def do_conditions(self, command: Reply) -> Reply:
        return read_conditions()

    def do_start(self, command: Reply) -> Reply:
        folder = self.run / str(command["id"])
        folder.mkdir()
        for path, name in command["files"].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.root / "files" / name, folder / path)  # a symbolic link would lead out of the folder
            except OSError:
                shutil.copyfile(self.root / "files" / name, folder / path)
        with open(folder / "stderr", "wb") as stderr:
            self.runners[command["id"]] = subprocess.Popen(
                [command["python"], str(self.root / "files" / command["runner"])],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        return self.do_ask({"id": command["id"], "line": command["job"]})

    def do_ask(self, command: Reply) -> Reply:
        runner = self.runners[command["id"]]
        assert runner.stdin is not None
        assert runner.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer is reported below
            runner.stdin.write(json.dumps(command["line"]).encode() + b"\n")
            runner.stdin.flush()
        # No command is sent while an answer is awaited, so any input is the end of the connection.
        if sys.stdin in select.select([sys.stdin, runner.stdout], [], [])[0]:
            sys.exit()
        line = runner.stdout.readline()
        if line.endswith(b"\n"):
            return {"answer": json.loads(line)}
        code = runner.wait()
        said = (self.run / str(command["id"]) / "stderr").read_text("utf-8", "replace")
        return {"code": code, "said": last_line(said)}

    def do_stop(self, command: Reply) -> Reply:
        runner = self.runners.pop(command["id"], None)
        if runner is not None:
            end(runner)
        shutil.rmtree(self.run / str(command["id"]), ignore_errors=True)
        return {}

    def close(self) -> None:
        """Kill all runners, and remove all files but the cache."""
        for runner in self.runners.values():
            end(runner)
        if self.lock is not None:
            shutil.rmtree(self.run, ignore_errors=True)
            self.lock.close()


def end(runner: subprocess.Popen[bytes]) -> None:
    """Kill and reap a process."""
    runner.kill()
    runner.wait()


def installed(package: str) -> str | None:
    """Return the version of a package in this interpreter; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def last_line(output: str) -> str:
    """Return the last line that is not blank; empty if there is none."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


def text(path: Path) -> str | None:
    """Read a file of the kernel; None if it does not exist or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def read_conditions(root: Path = Path("/")) -> Reply:
    """Read the machine's load, clock, temperature, governor and throttling flags.

    Args:
        root: the folder that holds ``sys``.

    Returns:
        A dictionary with these keys; a value is None if it cannot be read.

        - ``load``: number of runnable processes, averaged over the last minute.
        - ``clock_mhz``: clock of the fastest core. A Raspberry Pi's firmware reports the real clock, the kernel only
          the requested one.
        - ``temperature_c``: temperature of the hottest thermal zone, or the one that the firmware reports.
        - ``governor``: the kernel's frequency governor.
        - ``throttled``: the firmware's bits, 0 to 3 for now, 16 to 19 for any time since the start (1: too little
          voltage, 2: clock capped, 4: throttled, 8: soft temperature limit).
    """
    clocks = numbers(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    zones = numbers(root / "sys/class/thermal", "thermal_zone*/temp")
    clock, temperature = (firmware("measure_clock", "arm"), firmware("measure_temp")) if root == Path("/") else ("", "")
    flags = firmware("get_throttled") if root == Path("/") else ""
    return {
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "clock_mhz": int(clock) / 1e6 if clock else max(clocks) / 1e3 if clocks else None,
        "temperature_c": float(temperature.rstrip("'C")) if temperature else max(zones) / 1e3 if zones else None,
        "governor": text(root / GOVERNOR),
        "throttled": int(flags, 16) if flags else None,
    }


def firmware(*question: str) -> str:
    """Ask a Raspberry Pi's firmware, and return the text after ``=`` in its answer; empty on other machines."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    reply = subprocess.run([program, *question], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return reply.stdout.partition("=")[2].strip()


def numbers(folder: Path, pattern: str) -> list[int]:
    """Read the numbers in all files that match the pattern."""
    contents = (text(path) for path in folder.glob(pattern))
    return [int(content) for content in contents if content and content.lstrip("-").isdigit()]


def stop(number: int, frame: object) -> NoReturn:
    """End on a signal as at the end of stdin."""
    sys.exit()


def main(idle_s: float = IDLE_S) -> None:
    """Answer the lines of stdin until it ends, or until no line has come for `idle_s` seconds."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    agent = _Agent()
    try:
        line = b'{"do": "conditions"}'  # its answer, the first line, shows that the agent runs
        while line:
            command = json.loads(line)
            try:
                reply = getattr(agent, f"do_{command['do']}")(command)
            except OSError as error:
                reply = {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error)}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
            ready = select.select([sys.stdin], [], [], idle_s)[0]
            line = sys.stdin.buffer.readline() if ready else b""
    except BrokenPipeError:
        pass
    finally:
        agent.close()


if __name__ == "__main__":
    main()
