"""The place ``adb:SERIAL``: an Android device on a cable or the network, through the user's own ``adb``.

Android has no Python, so the runner there is the program of ``native/runner.c``, built with the user's NDK, and the
runtime is the user's ``libonnxruntime.so``. Everything lies below `ROOT`, in folders named by what is in them, and a
folder is renamed into place when all of it has arrived; so nothing is sent twice and nothing is there by half.

While a device is ours, ``runner --hold`` keeps a lock there; the end of its stdin, which is also the end of the
connection, ends every process of ours.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from toolchain.benchmark.adb_client import CALL_TIMEOUT_S, Client
from toolchain.benchmark.android import Facts, parse_conditions, parse_facts, script
from toolchain.benchmark.local import make_job
from toolchain.benchmark.model_files import model_files
from toolchain.benchmark.native.build import build, check_library, ndk_compiler
from toolchain.benchmark.native.runner import NativeRunner, read_answers, store_feed
from toolchain.benchmark.place import Say
from toolchain.benchmark.process import Death, LineProcess
from toolchain.core.errors import InputError, one_line
from toolchain.core.files import sha256
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Architecture, Target

ROOT = "/data/local/tmp/edge-toolchain"
ABIS: dict[str, Architecture] = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
SOURCE = "take it from onnxruntime-android's .aar (Maven Central, com.microsoft.onnxruntime), there in jni"


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
        self._client = Client(place.serial)
        self._guard: LineProcess | None = None
        self._client.check()

    def describe(self) -> Host:
        """As `place.Device.describe`; the runner is built, and it and the runtime are sent, unless they are there.

        Raises:
            InputError: no library was given, or one for another processor.
        """
        with self._start({"feed": None}, "/", self._given_library()) as runner:
            version = runner.started()["onnxruntime"]
        return self._facts.host(version)

    def read_conditions(self) -> Reading:
        """As `place.Device.read_conditions`; throttled is 4 where Android's thermal service tells of throttling."""
        return parse_conditions(self._client.shell(script("conditions")))

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
    ) -> NativeRunner:
        """As `place.Device.open`; files that are not there yet are sent.

        Raises:
            DeviceError: as every method, or it has no such processors.
        """
        if cpus in ("big", "little"):
            cpus = self._processors(cpus)
        stored = None if feed is None else self._send_feed(feed)
        folder = self._send({name: model.parent / name for name in model_files(model)})
        job = make_job(model.name, threads, session_options, stored, dims)
        return self._start(job | {"arena": arena, "cpus": cpus}, folder, model)

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
                self._client.pull(there, Path(folder, "answer"))
                found.append(read_answers(Path(folder, "answer"), names))
            self._client.shell(f"rm -f {there}")
        return found

    def release(self) -> None:
        """Give the device back: nothing of ours runs there any more."""
        if self._guard is not None:
            with self._guard as guard:
                guard.finish(5.0)

    @cached_property
    def _facts(self) -> Facts:
        return parse_facts(self._client.shell(script("facts")))

    @cached_property
    def _program(self) -> str:
        """The runner's folder there; from now on the device is ours."""
        library, architecture = self._given_library(), self._architecture()
        found = check_library(library)
        if found != architecture:
            abi = next(abi for abi, name in ABIS.items() if name == architecture)
            what = f"is for {found}, and {self._place.name} is {architecture}"
            raise InputError(what, where=library, hint=f"{SOURCE}/{abi}")
        folder = self._send({"runner": build(ndk_compiler(architecture, self._place.ndk))})
        self._hold(folder)
        return folder

    @cached_property
    def _runtime(self) -> str:
        """The runtime there, sent once the device is ours."""
        self._program  # noqa: B018 (with it comes the lock)
        return f"{self._send({'libonnxruntime.so': self._given_library()})}/libonnxruntime.so"

    def _given_library(self) -> Path:
        if self._place.library is None:
            raise InputError(f"is missing for {self._place.name}", where="--library", hint=f"{SOURCE}/arm64-v8a")
        return self._place.library

    def _architecture(self) -> Architecture:
        abis = self._facts.abis
        known = next((ABIS[abi] for abi in abis if abi in ABIS), None)
        if known is None:
            what = f"runs no 64-bit programs ({', '.join(abis) or 'it tells no ABI'})"
            raise self._client.error(what, "use another device")
        return known

    def _processors(self, kind: str) -> str:
        """The list of its fastest or slowest processors."""
        found = self._facts.processors(kind)
        if found is None:
            raise self._client.error("has one kind of core only, or tells no clocks", "give their numbers, such as 0-3")
        return ",".join(map(str, found))

    def _hold(self, folder: str) -> None:
        guard = LineProcess(self._client.start(f"exec {folder}/runner --hold {ROOT}/lock"))
        answer = guard.receive(CALL_TIMEOUT_S)
        if not isinstance(answer, Death) and "busy" not in answer:
            self._guard = guard
            self._client.shell(f"rm -rf {ROOT}/files/*.part")  # of transfers that were cut off
            return
        with guard:
            if isinstance(answer, Death):
                said = one_line(answer.said or f"exit code {answer.code}")
                error = self._client.error(f"cannot run the benchmark ({said})", "check the NDK's version")
                raise self._client.lost() or error
            raise self._client.error(f"busy: it is running another benchmark ({answer['busy']})", "wait for its end")

    def _start(self, job: Mapping[str, Any], folder: str, model: Path) -> NativeRunner:
        command = f"cd {shlex.quote(folder)} && exec {self._program}/runner {self._runtime}"
        return NativeRunner(
            self._client.start(command),
            job,
            model=model,
            library=self._given_library(),
            why=lambda death: None if death.timed_out else self._client.lost(),
        )

    def _send_feed(self, feed: Feed) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="toolchain-bench-") as name:
            stored = store_feed(feed, Path(name, "feed"))
            return stored | {"path": f"{self._send({'feed': Path(name, 'feed')})}/feed"}

    def _send(self, files: Mapping[str, Path]) -> str:
        """The folder there that holds these files under these names, sent unless it is there."""
        content = "\n".join(f"{sha256(path)} {name}" for name, path in sorted(files.items()))
        folder = f"{ROOT}/files/{hashlib.sha256(content.encode()).hexdigest()[:32]}"
        if self._client.shell(f"if [ -d {folder} ]; then echo there; fi").strip() == "there":
            return folder
        part = f"{folder}.{os.getpid()}.part"
        try:
            self._client.shell(f"mkdir -p {shlex.join(sorted({str(PurePosixPath(part, n).parent) for n in files}))}")
            for name, path in files.items():
                self._say(f"sending {PurePosixPath(name).name} ({path.stat().st_size / 1e6:.1f} MB)")
                self._client.push(path, f"{part}/{name}")
            self._client.shell(f"chmod -R 755 {part} && mv {part} {folder}")
        except BaseException:
            if self._client.lost() is None:
                self._client.call("shell", "-T", f"rm -rf {part}")
            raise
        return folder
