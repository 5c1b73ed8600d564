"""Emulated CPUs: the outputs that a model has on another processor, without any latency.

qemu's user mode translates the instructions of one program. Emulated ARM CPUs run onnxruntime's real aarch64 wheel in
a small arm64 root. Emulated x86 CPUs run this machine's own Python and onnxruntime, without the features that the
emulated CPU lacks. onnxruntime asks the CPU for its features and chooses its kernels by them, so each emulated CPU uses
the integer kernels that the real one uses. ``scripts/emulator-setup.sh`` installs the emulator.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.cache import cache_dir
from toolchain.core.errors import DeviceError, InputError, did_you_mean
from toolchain.core.progress import Progress, silent
from toolchain.data.tensors import Array, Feed
from toolchain.formats.target import Architecture

SETUP_HINT = "run `toolchain emulator setup`"


@dataclass(frozen=True)
class EmulatedCpu:
    """An emulated processor.

    Attributes:
        architecture: its instruction set.
        qemu: qemu's name for it.
        int8: the instructions that onnxruntime's integer kernels use on it.
    """

    architecture: Architecture
    qemu: str
    int8: str


CPUS: dict[str, EmulatedCpu] = {
    "cortex-a53": EmulatedCpu("aarch64", "cortex-a53", "NEON multiply-add (Raspberry Pi 3, Zero 2 W)"),
    "cortex-a72": EmulatedCpu("aarch64", "cortex-a72", "NEON multiply-add (Raspberry Pi 4)"),
    "cortex-a55": EmulatedCpu("aarch64", "cortex-a55", "dot product, the kernels for in-order cores"),
    "cortex-a76": EmulatedCpu("aarch64", "cortex-a76", "dot product (Raspberry Pi 5, RK3588, phones of 2019 on)"),
    "neoverse-n1": EmulatedCpu("aarch64", "neoverse-n1", "dot product (servers)"),
    "cortex-a710": EmulatedCpu("aarch64", "cortex-a710", "8-bit matrix multiplication (phones of 2022 on)"),
    "max": EmulatedCpu("aarch64", "max", "every feature qemu knows"),
    "x86-avx2": EmulatedCpu("x86_64", "Haswell-noTSX", "AVX2 without VNNI: adds pairs of products in saturating int16"),
}


def folder() -> Path:
    """Return the emulator's folder: ``$TOOLCHAIN_EMULATOR``, else ``emulator`` in the cache."""
    chosen = os.environ.get("TOOLCHAIN_EMULATOR")
    return Path(chosen) if chosen else cache_dir() / "emulator"


def unavailable(cpu: str = "cortex-a76") -> str | None:
    """Return the reason why `cpu` cannot be emulated here, or None if it can.

    Raises:
        DeviceError: no such CPU.
    """
    architecture = find_cpu(cpu).architecture
    if architecture == "x86_64" and platform.machine() != "x86_64":
        return f"{cpu} runs this machine's own onnxruntime, which is for {platform.machine()}"
    stamp = folder() / "onnxruntime-version"
    if not stamp.is_file():
        return f"there is no emulator in {folder()}"
    here, there = version("onnxruntime"), stamp.read_text(encoding="utf-8").strip()
    if here != there:
        return f"the emulator in {folder()} holds onnxruntime {there} where {here} is installed"
    return None


def setup_script() -> Path:
    """Return the set-up script: the package's own when installed, else the checkout's."""
    packaged = Path(__file__).parents[1] / "_scripts" / "emulator-setup.sh"
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "scripts" / "emulator-setup.sh"


def set_up(progress: Progress = silent, *, script: Path | None = None) -> Path:
    """Download and install the emulator in `folder`, unless it is complete there.

    Args:
        progress: is told each line that the script prints.
        script: the script to run; None is `setup_script`.

    Returns:
        The emulator's folder.

    Raises:
        DeviceError: it cannot be set up here.
    """
    process = subprocess.Popen(
        ["bash", str(script or setup_script()), str(folder())],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    last = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last = line.strip().removeprefix("emulator-setup: ")
            progress(last)
    except BaseException:  # an interrupt: the script's own trap removes incomplete files
        while process.poll() is None:  # a shell between two commands may still start the next one
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        raise
    finally:
        process.stdout.close()
        process.wait()
    if process.returncode:
        raise DeviceError(f"cannot be set up ({last})", where="the emulator", hint="correct that and run it again")
    return folder()


def run(
    cpu: str,
    model: Path,
    feeds: Sequence[Feed],
    *,
    options: Mapping[str, str] | None = None,
    timeout_s: float = 900.0,
) -> list[dict[str, Array]]:
    """Run a model on an emulated CPU.

    All feeds run in one process, with one thread. Starting takes about two seconds, and an inference 50 to 100 times
    as long as on this machine.

    Args:
        cpu: a name of `CPUS`.
        model: ``.onnx`` or ``.ort``; external data is found beside it.
        feeds: arrays by input name, the same names in every feed.
        options: configuration entries of the session.
        timeout_s: longest time for the whole process.

    Returns:
        Outputs by name, one dictionary for each feed.

    Raises:
        InputError: no such file.
        DeviceError: unknown CPU, emulator not set up, or the run failed or took too long.
    """
    return _answers(cpu, model, feeds, options=options, graph=None, timeout_s=timeout_s)


def optimized(cpu: str, model: Path, output: Path, *, timeout_s: float = 900.0) -> Path:
    """Write the graph that onnxruntime really runs for `model` on an emulated CPU, and return its path.

    Raises:
        InputError: as for `run`.
        DeviceError: as for `run`.
    """
    _answers(cpu, model, [], options=None, graph=output, timeout_s=timeout_s)
    return output


def find_cpu(name: str) -> EmulatedCpu:
    """Return the emulated CPU of that name.

    Raises:
        DeviceError: there is none; the message names a similar one.
    """
    if name not in CPUS:
        raise DeviceError(f"unknown emulated CPU {name!r}", hint=did_you_mean(name, CPUS))
    return CPUS[name]


def _answers(
    cpu: str,
    model: Path,
    feeds: Sequence[Feed],
    *,
    options: Mapping[str, str] | None,
    graph: Path | None,
    timeout_s: float,
) -> list[dict[str, Array]]:
    reason = unavailable(cpu)
    if reason is not None:
        raise DeviceError(reason, where=f"emulator:{cpu}", hint=SETUP_HINT)
    if not model.is_file():
        raise InputError("no such file", where=model, hint="check the path")
    inputs = list(feeds[0]) if feeds else []
    with tempfile.TemporaryDirectory(prefix="toolchain-emulator-") as temporary:
        work = Path(temporary)
        request = {
            "model": str(model.resolve()),
            "inputs": inputs,
            "feeds": len(feeds),
            "options": dict(options or {}),
            "optimized": None if graph is None else str(graph.resolve()),
        }
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        arrays: dict[str, Any] = {
            f"{i}/{j}": feed[name] for i, feed in enumerate(feeds) for j, name in enumerate(inputs)
        }
        np.savez(work / "feeds.npz", **arrays)
        _execute(cpu, [str(Path(__file__).with_name("answers.py")), str(work)], timeout_s)
        names = json.loads((work / "answer.json").read_text(encoding="utf-8"))["outputs"]
        with np.load(work / "outputs.npz") as outputs:
            return [{name: outputs[f"{i}/{j}"] for j, name in enumerate(names)} for i in range(len(feeds))]


def _execute(cpu: str, arguments: list[str], timeout_s: float) -> None:
    """Run Python with `arguments` on the emulated CPU."""
    command, environment = _python(CPUS[cpu])
    try:
        completed = subprocess.run(
            [*command, *arguments],
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"gave no answer within {timeout_s:g} s", where=f"emulator:{cpu}", hint="send fewer or smaller inputs"
        ) from None
    except OSError as error:
        raise DeviceError(f"cannot be started ({error})", where=f"emulator:{cpu}", hint=SETUP_HINT) from None
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"]
        raise DeviceError(
            f"the run failed ({lines[-1][:300]})", where=f"emulator:{cpu}", hint="see whether it runs on this machine"
        )


def _python(cpu: EmulatedCpu) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts Python on `cpu`, and the environment for it."""
    base = folder().resolve()
    if cpu.architecture == "x86_64":
        return [str(base / "bin/qemu-x86_64"), "-cpu", cpu.qemu, sys.executable], dict(os.environ)
    root = base / "root"
    command = [
        str(base / "bin/qemu-aarch64"),
        "-L",
        str(root),
        "-cpu",
        cpu.qemu,
        str(root / "usr/bin/python3.11"),
        "-s",
    ]
    # This machine's PYTHONHOME, preloads and library paths are for another processor.
    return command, {"PYTHONPATH": str(base / "site"), "PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
