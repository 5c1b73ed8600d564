"""The place ``adb:SERIAL``: an Android device on a cable or the network, through the user's own ``adb``.

Android has no Python. The runner there is the program of ``native/runner.c``, built with the user's NDK, and the
runtime is the user's ``libonnxruntime.so``. All files lie below `DEVICE_FOLDER`, in folders named by the hash of their
contents. A folder is renamed into place when all of it has arrived, so nothing is sent twice and no folder is
incomplete.

While a device is reserved, ``runner --hold`` keeps a lock there. The end of its stdin, which is also the end of the
connection, ends every process of the benchmark.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from toolchain.benchmark.adb_client import CALL_TIMEOUT_S, AdbClient
from toolchain.benchmark.android import AndroidFacts, parse_conditions, parse_facts, script
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.model_files import model_files
from toolchain.benchmark.native.build import build, check_library, ndk_compiler
from toolchain.benchmark.native.runner import NativeRunner, read_answers, store_feed_npy
from toolchain.benchmark.place import ReserveAnswering, ReserveTiming, TargetEvidence, detected_evidence
from toolchain.benchmark.process import END_TIMEOUT_S, LineProcess, ProcessEnd
from toolchain.core.errors import InputError, one_line
from toolchain.core.files import sha256
from toolchain.core.progress import Progress
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Architecture, Target

LOGGER = logging.getLogger(__name__)

DEVICE_FOLDER = "/data/local/tmp/edge-toolchain"
ABI_ARCHITECTURES: dict[str, Architecture] = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
LIBRARY_SOURCE_HINT = "take it from onnxruntime-android's .aar (Maven Central, com.microsoft.onnxruntime): jni"


@dataclass(frozen=True)
class Adb:
    """An Android device that models can be timed and run on; see `place.Place`.

    Attributes:
        serial: the device's name in ``adb devices``.
        library: the runtime for it, a ``libonnxruntime.so``; without it only `detect` works.
        ndk: the Android NDK's folder; None looks for an installed one.
    """

    serial: str
    library: Path | None = None
    ndk: Path | None = None

    @property
    def name(self) -> str:
        """``adb:SERIAL``."""
        return f"adb:{self.serial}"

    @property
    def timing(self) -> ReserveTiming:
        """See `place.Place.timing`."""
        return self.reserve

    @property
    def answering(self) -> ReserveAnswering:
        """See `place.Place.answering`."""
        return self.reserve

    @property
    def profiles_operators(self) -> bool:
        """False: the runner in C makes no profiles."""
        return False

    @contextmanager
    def reserve(self, progress: Progress) -> Iterator[AdbDevice]:
        """See `place.Place`; the lock is taken when a process is first started there, not for `detect`.

        Raises:
            InputError: the library is not a shared library.
        """
        if self.library is not None:
            check_library(self.library)
        progress(f"looking for {self.serial}")
        device = AdbDevice(self, progress)
        try:
            yield device
        finally:
            device.release()


class AdbDevice:
    """A reserved Android device; see `place.TimingDevice` and `place.AnsweringDevice`.

    Raises:
        DeviceError: it cannot be reached or used.
    """

    def __init__(self, place: Adb, progress: Progress) -> None:
        self._place, self._progress = place, progress
        self._client = AdbClient(place.serial)
        self._lock_holder: LineProcess | None = None
        self._client.check()

    def describe(self) -> Host:
        """See `place.Device.describe`; the runner is built and sent, with the runtime, unless they are there already.

        Raises:
            InputError: the library is missing, or it is for another processor.
        """
        job = BenchJob(self._given_library())
        with self._start(job, {"feed": None}, "/") as runner:
            version = runner.started()["onnxruntime"]
        return self._facts.host(version)

    def evidence_for(self, target: Target | None) -> TargetEvidence:
        """See `place.Device.evidence_for`."""
        return detected_evidence(self.detect(), target)

    def detect(self) -> Target:
        """See `place.TimingDevice.detect`; named after the device's model. It starts no process of ours there."""
        self._architecture()
        return self._facts.target()

    def read_conditions(self) -> Reading:
        """See `place.TimingDevice.read_conditions`; throttled is 4 where Android's thermal service reports it."""
        return parse_conditions(self._client.shell(script("conditions")))

    def open(self, job: BenchJob) -> NativeRunner:
        """See `place.TimingDevice.open`.

        Raises:
            DeviceError: it has no such processors, or can no longer be reached.
        """
        if job.cpus in ("big", "little"):
            job = replace(job, cpus=self._processors(job.cpus))
        feed = None if job.feed is None else self._send_feed(job.feed)
        folder = self._send({name: job.path.parent / name for name in model_files(job.path)})
        return self._start(job, first_line(job, job.path.name, feed), folder)

    def answer(
        self, model: Path, feeds: Sequence[Feed], *, session_options: Mapping[str, str]
    ) -> list[dict[str, Array]]:
        """See `place.AnsweringDevice.answer`."""
        answers = []
        there = f"{DEVICE_FOLDER}/answer"
        with (
            tempfile.TemporaryDirectory(prefix="toolchain-bench-") as folder,
            self.open(BenchJob(model, session_options=session_options)) as runner,
        ):
            runner.started()
            runner.ask("load")
            for feed in feeds:
                names = runner.answer(self._send_feed(feed), there)
                self._client.pull(there, Path(folder, "answer"))
                answers.append(read_answers(Path(folder, "answer"), names))
            self._client.shell(f"rm -f {there}")
        return answers

    def release(self) -> None:
        """Give the lock back, which ends every process of the benchmark there."""
        if self._lock_holder is not None:
            with self._lock_holder as holder:
                holder.finish(END_TIMEOUT_S)

    @cached_property
    def _facts(self) -> AndroidFacts:
        return parse_facts(self._client.shell(script("facts")))

    @cached_property
    def _program_folder(self) -> str:
        """The runner's folder there, sent on first use; this also takes the lock."""
        library, architecture = self._given_library(), self._architecture()
        library_architecture = check_library(library)
        if library_architecture != architecture:
            abi = next(abi for abi, name in ABI_ARCHITECTURES.items() if name == architecture)
            what = f"is for {library_architecture}, and {self._place.name} is {architecture}"
            raise InputError(what, where=library, hint=f"{LIBRARY_SOURCE_HINT}/{abi}/libonnxruntime.so")
        folder = self._send({"runner": build(ndk_compiler(architecture, self._place.ndk))})
        self._take_lock(folder)
        return folder

    @cached_property
    def _runtime(self) -> str:
        """The runtime's path there, sent on first use after the lock is taken."""
        self._program_folder  # noqa: B018 (takes the lock)
        return f"{self._send({'libonnxruntime.so': self._given_library()})}/libonnxruntime.so"

    def _given_library(self) -> Path:
        if self._place.library is None:
            hint = f"{LIBRARY_SOURCE_HINT}/arm64-v8a/libonnxruntime.so"
            raise InputError(f"is missing for {self._place.name}", where="--library", hint=hint)
        return self._place.library

    def _architecture(self) -> Architecture:
        abis = self._facts.abis
        known = next((ABI_ARCHITECTURES[abi] for abi in abis if abi in ABI_ARCHITECTURES), None)
        if known is None:
            what = f"runs no 64-bit programs ({', '.join(abis) or 'it reports no ABI'})"
            raise self._client.error(what, "use another device")
        return known

    def _processors(self, kind: str) -> str:
        """Return its fastest (``big``) or slowest (``little``) processors, as a list such as ``4,5``."""
        numbers = self._facts.processors(kind)
        if numbers is None:
            what = "has one kind of core only, or reports no clocks"
            raise self._client.error(what, "give the processors' numbers, such as 0-3")
        return ",".join(map(str, numbers))

    def _take_lock(self, folder: str) -> None:
        holder = LineProcess(self._client.start(f"exec {folder}/runner --hold {DEVICE_FOLDER}/lock"))
        answer = holder.receive(CALL_TIMEOUT_S)
        if not isinstance(answer, ProcessEnd) and "busy" not in answer:
            self._lock_holder = holder
            self._client.shell(f"rm -rf {DEVICE_FOLDER}/files/*.part")  # left by interrupted transfers
            return
        with holder:
            if isinstance(answer, ProcessEnd):
                reason = one_line(answer.last_line or f"exit code {answer.code}")
                error = self._client.error(f"cannot run the benchmark ({reason})", "check the NDK's version")
                raise self._client.lost() or error
            raise self._client.error(f"busy: it is running another benchmark ({answer['busy']})", "wait for its end")

    def _start(self, job: BenchJob, line: Mapping[str, Any], folder: str) -> NativeRunner:
        command = f"cd {shlex.quote(folder)} && exec {self._program_folder}/runner {self._runtime}"
        return NativeRunner(
            self._client.start(command),
            job,
            line,
            library=self._given_library(),
            outside_cause=lambda end: None if end.timed_out_s is not None else self._client.lost(),
        )

    def _send_feed(self, feed: Feed) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="toolchain-bench-") as name:
            stored = store_feed_npy(feed, Path(name, "feed"))
            return stored | {"path": f"{self._send({'feed': Path(name, 'feed')})}/feed"}

    def _send(self, files: Mapping[str, Path]) -> str:
        """Send files unless the device already has them, and return the folder there that holds them.

        Args:
            files: files on this machine, by their names in that folder.
        """
        content = "\n".join(f"{sha256(path)} {name}" for name, path in sorted(files.items()))
        folder = f"{DEVICE_FOLDER}/files/{hashlib.sha256(content.encode()).hexdigest()[:32]}"
        if self._client.shell(f"if [ -d {folder} ]; then echo there; fi").strip() == "there":
            LOGGER.debug("%s already has %s", self._place.name, ", ".join(files))
            return folder
        part = f"{folder}.{os.getpid()}.part"
        try:
            self._client.shell(f"mkdir -p {shlex.join(sorted({str(PurePosixPath(part, n).parent) for n in files}))}")
            for name, path in files.items():
                self._progress(f"sending {PurePosixPath(name).name} ({path.stat().st_size / 1e6:.1f} MB)")
                self._client.push(path, f"{part}/{name}")
            self._client.shell(f"chmod -R 755 {part} && mv {part} {folder}")
        except BaseException:
            if self._client.lost() is None:
                self._client.call("shell", "-T", f"rm -rf {part}")
            raise
        return folder
