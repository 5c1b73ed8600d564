"""The place ``adb:SERIAL``: an Android device on a cable or the network, through the user's own ``adb``.

Android has no Python, so the runner there is the program of ``native/runner.c``, built with the user's NDK, and the
runtime is the user's ``libonnxruntime.so``. Everything lies below `ROOT`, in folders named by what is in them, and a
folder is renamed into place when all of it has arrived; so nothing is sent twice and nothing is there by half.

``adb shell -T`` gives the command no terminal: stdin, stdout, stderr and the exit code are those of a pipe (Android 7 on,
the feature ``shell_v2``). While a device is ours, ``runner --hold`` keeps a lock there; the end of its stdin, which is
also the end of the connection, ends every process of ours. ``$TOOLCHAIN_ADB`` is the client, ``adb`` where it is not set.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from toolchain.bench import native
from toolchain.bench.android import Facts, parse_conditions, parse_facts, script
from toolchain.bench.host import Reading
from toolchain.bench.local import make_job
from toolchain.bench.model_files import model_files
from toolchain.bench.native.build import build, check_library, ndk_compiler
from toolchain.bench.place import Say
from toolchain.bench.process import Death, LineProcess
from toolchain.data import Array, Feed
from toolchain.errors import DeviceError, InputError, one_line
from toolchain.files import sha256
from toolchain.measurement import Host
from toolchain.target import Target

ROOT = "/data/local/tmp/edge-toolchain"
ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
WHERE = "take it from onnxruntime-android's .aar (Maven Central, com.microsoft.onnxruntime), jni"
CALL_TIMEOUT_S = 60.0
PUSH_TIMEOUT_S = 1800.0
FULL = ("No space left on device", "Disk quota exceeded")
STATES = {
    "unauthorized": "unlock it and allow USB debugging from this computer",
    "offline": "unplug it and plug it in again, or run `adb reconnect`",
    "authorizing": "unlock it and allow USB debugging from this computer",
    "no permissions": "give your user access to its USB device (`adb devices` tells more)",
}


@dataclass(frozen=True)
class Adb:
    """A device, named as `adb devices` does. library: the runtime for it; ndk: None looks for an installed one."""

    serial: str
    library: Path | None = None
    ndk: Path | None = None

    @property
    def name(self) -> str:
        """``adb:SERIAL``."""
        return f"adb:{self.serial}"

    @contextmanager
    def reserve(self, say: Say) -> Iterator[Phone]:
        """As `place.Place.reserve`; the lock is taken when something is to run there, not for `detect`.

        Raises:
            InputError: the library is none.
        """
        if self.library is not None:
            check_library(self.library)
        say(f"looking for {self.serial}")
        phone = Phone(self, say)
        try:
            yield phone
        finally:
            phone.release()


class Phone:
    """An Android device that is ours for now: place.Device over `adb`.

    Raises:
        DeviceError: it cannot be reached or used.
    """

    def __init__(self, place: Adb, say: Say) -> None:
        self._place, self._say = place, say
        self._guard: LineProcess | None = None
        self._command = [os.environ.get("TOOLCHAIN_ADB", "adb"), "-s", place.serial]
        state = self._state()
        if state != "device":
            raise self._unusable(state)
        features = self._adb("features").stdout
        if "shell_v2" not in features.split():
            raise self._error("is too old: its adb passes no exit codes on", "use a device with Android 7 or newer")

    def describe(self) -> Host:
        """As `place.Device.describe`; what is not there yet is built and sent now."""
        library = self._library
        with self._start({}, "/", library) as runner:
            version = runner.started()["onnxruntime"]
        return self._facts.host(version)

    def read_conditions(self) -> Reading:
        """As `place.Device.read_conditions`; throttled is 4 where Android's thermal service tells of throttling."""
        return parse_conditions(self._shell(script("conditions")))

    def open(
        self,
        model: Path,
        *,
        threads: int,
        session_options: Mapping[str, str],
        feed: Feed | None = None,
        dims: Mapping[str, int] | None = None,
    ) -> native.NativeRunner:
        """As `place.Device.open`; files that are not there yet are sent."""
        library = self._library
        stored = None if feed is None else self._send_feed(feed)
        folder = self._send({name: model.parent / name for name in model_files(model)})
        job = make_job(model.name, threads, session_options, stored, dims)
        return self._start(job, folder, library, model)

    def detect(self) -> Target:
        """As `place.Device.detect`, named after the device's model; nothing of ours runs there for it."""
        self._architecture()
        return self._facts.target()

    def answer(
        self, model: Path, feeds: Sequence[Feed], *, session_options: Mapping[str, str] | None = None
    ) -> list[dict[str, Array]]:
        """What the model computes there, with one thread: outputs by name, one dictionary a feed.

        Raises:
            ModelError: the runtime refuses the model or a feed. DeviceError: the device cannot be used any more.
        """
        found = []
        there = f"{ROOT}/answer"
        with (
            tempfile.TemporaryDirectory(prefix="toolchain-bench-") as folder,
            self.open(model, threads=1, session_options=session_options or {}) as runner,
        ):
            runner.started()
            runner.ask("load")
            for feed in feeds:
                names = runner.answer(self._send_feed(feed), there)
                self._adb("pull", there, f"{folder}/answer", timeout_s=PUSH_TIMEOUT_S)
                found.append(native.read_answers(Path(folder, "answer"), names))
            self._shell(f"rm -f {there}")
        return found

    def release(self) -> None:
        """Give the device back: nothing of ours runs there any more."""
        if self._guard is not None:
            with self._guard as guard:
                guard.finish(5.0)

    @cached_property
    def _facts(self) -> Facts:
        return parse_facts(self._shell(script("facts")))

    @cached_property
    def _program(self) -> str:
        """The runner's folder there; from now on the device is ours."""
        architecture = self._architecture()
        library = self._needed_library()
        found = check_library(library)
        if found != architecture:
            abi = next(abi for abi, name in ABIS.items() if name == architecture)
            hint = f"{WHERE}/{abi}"
            raise InputError(f"is for {found}, and {self._place.name} is {architecture}", where=library, hint=hint)
        program = build(ndk_compiler(architecture, self._place.ndk))
        folder = self._send({"runner": program})
        self._hold(folder)
        return folder

    @cached_property
    def _library(self) -> str:
        """The runtime's folder there, sent when the device is ours."""
        self._program  # noqa: B018 (the lock comes first)
        return self._send({"libonnxruntime.so": self._needed_library()})

    def _needed_library(self) -> Path:
        if self._place.library is None:
            raise InputError(f"is missing for {self._place.name}", where="--library", hint=f"{WHERE}/arm64-v8a")
        return self._place.library

    def _architecture(self) -> str:
        abis = self._facts.abis
        known = next((ABIS[abi] for abi in abis if abi in ABIS), None)
        if known is None:
            what = f"has a 32-bit system ({', '.join(abis) or 'no ABI told'}), and onnxruntime's int8 kernels need 64 bits"
            raise self._error(what, "use another device")
        return known

    def _hold(self, folder: str) -> None:
        guard = LineProcess([*self._command, "shell", "-T", f"exec {folder}/runner --hold {ROOT}/lock"])
        answer = guard.receive(CALL_TIMEOUT_S)
        if isinstance(answer, Death) or "busy" in answer:
            guard.__exit__(None, None, None)
        if isinstance(answer, Death):
            said = one_line(answer.said or f"exit code {answer.code}")
            raise self._lost() or self._error(f"cannot run the benchmark ({said})", "check the NDK and the device")
        if "busy" in answer:
            raise self._error(f"busy: it is running another benchmark ({answer['busy']})", "wait for its end")
        self._guard = guard
        self._shell(f"rm -rf {ROOT}/files/*.part")  # of a transfer that was cut off

    def _start(
        self, job: Mapping[str, object], folder: str, library: str, model: Path | None = None
    ) -> native.NativeRunner:
        command = f"cd {shlex.quote(folder)} && exec {self._program}/runner {library}/libonnxruntime.so"
        return native.NativeRunner(
            [*self._command, "shell", "-T", command],
            {"feed": None, **job},
            model=model or self._needed_library(),
            library=self._needed_library(),
            why=lambda death: None if death.timed_out else self._lost(),
        )

    def _send_feed(self, feed: Feed) -> dict[str, object]:
        with tempfile.TemporaryDirectory(prefix="toolchain-bench-") as name:
            path = Path(name, "feed")
            stored = native.store_feed(feed, path)
            return stored | {"path": f"{self._send({'feed': path})}/feed"}

    def _send(self, files: Mapping[str, Path]) -> str:
        """The folder there that holds these files under these names, sent unless it is there."""
        key = hashlib.sha256("\n".join(f"{sha256(path)} {name}" for name, path in sorted(files.items())).encode())
        folder = f"{ROOT}/files/{key.hexdigest()[:32]}"
        if self._shell(f"[ -d {folder} ] && echo there; true").strip() == "there":
            return folder
        part = f"{folder}.{os.getpid()}.part"
        parents = sorted({str(PurePosixPath(part, name).parent) for name in files})
        try:
            self._shell(f"mkdir -p {shlex.join(parents)}")
            for name, path in files.items():
                self._say(f"sending {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
                self._adb("push", str(path), f"{part}/{name}", timeout_s=PUSH_TIMEOUT_S)
            self._shell(f"chmod -R 755 {part} && if [ -d {folder} ]; then rm -rf {part}; else mv {part} {folder}; fi")
        except BaseException:
            if self._state() == "device":
                self._call("shell", "-T", f"rm -rf {part}")
            raise
        return folder

    def _shell(self, command: str) -> str:
        return self._adb("shell", "-T", command).stdout

    def _adb(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """One call that succeeded."""
        done = self._call(*arguments, timeout_s=timeout_s)
        if done.returncode == 0:
            return done
        said = f"{done.stderr}\n{done.stdout}"
        full = next((sign for sign in FULL if sign in said), None)
        if full is not None:
            raise self._error(f"its storage is full ({full})", f"free some space, or remove {ROOT} there")
        last = Death(done.returncode, said).said
        raise self._lost() or self._error(
            f"cannot be used (adb {arguments[0]}: {one_line(last or f'exit code {done.returncode}')})",
            f"see whether `adb -s {self._place.serial} shell` works",
        )

    def _call(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except OSError as error:
            what = f"{self._command[0]} cannot be started ({error.strerror})"
            raise self._error(what, "install Android's platform-tools, or set TOOLCHAIN_ADB") from None
        except subprocess.TimeoutExpired:
            what = f"gave no answer to `adb {arguments[0]}` within {timeout_s:g} s"
            raise self._error(what, "unplug it and plug it in again") from None

    def _devices(self) -> dict[str, str]:
        """State by serial number, as `adb devices` shows them."""
        lines = self._call("devices").stdout.splitlines()
        return {serial: state.strip() for serial, tab, state in (line.partition("\t") for line in lines) if tab}

    def _state(self) -> str | None:
        return self._devices().get(self._place.serial)

    def _lost(self) -> DeviceError | None:
        """The error for a device that is not there any more, None where it is."""
        state = self._state()
        if state == "device":
            return None
        shown = state or "gone"
        return self._error(f"the connection was lost (it is {shown})", "check the cable, then try again")

    def _unusable(self, state: str | None) -> DeviceError:
        if state is None:
            shown = ", ".join(f"{serial} ({state})" for serial, state in self._devices().items()) or "none"
            hint = "connect it and turn on USB debugging in its developer options"
            return self._error(f"no such device; `adb devices` shows {shown}", hint)
        hint = next((hint for sign, hint in STATES.items() if state.startswith(sign)), "start Android on it")
        return self._error(f"is not ready: `adb devices` shows {state}", hint)

    def _error(self, what: str, hint: str) -> DeviceError:
        return DeviceError(what, where=self._place.name, hint=hint)
