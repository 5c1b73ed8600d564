"""`build`: compile ``runner.c`` for a processor with the user's compiler, once, and keep the program in the cache.

The compiler is the NDK's clang for Android, and GCC for Linux on another processor. The program's name in the cache is
a hash of the sources, the command and the compiler's version.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.cache import cache_path
from toolchain.core.errors import DeviceError, InputError, one_line
from toolchain.core.files import replacing
from toolchain.formats.target import Architecture

LOGGER = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent
COMPILER_FLAGS = ("-std=c11", "-O2")
LINKED_LIBRARIES = ("-ldl", "-lm")
MIN_ANDROID_API = 24  # Android 7, the first whose adb passes stdin, stderr and exit codes on
NDK_VARIABLES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT")
SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64"}  # e_machine of the ELF header, elf(5)
ELF_SHARED_OBJECT = 3  # e_type of the ELF header


@dataclass(frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        command: the compiler and options of its own.
        architecture: the processors that it makes programs for.
    """

    command: tuple[str, ...]
    architecture: str


def host_compiler() -> Compiler:
    """Return ``$CC`` or ``cc``, for this machine.

    Raises:
        DeviceError: it is not installed.
    """
    return _installed(os.environ.get("CC", "cc"), platform.machine(), "install a C compiler, or set CC")


def cross_compiler(architecture: Architecture) -> Compiler:
    """Return the GCC for Linux on another processor.

    Raises:
        DeviceError: it is not installed.
    """
    return _installed(f"{architecture}-linux-gnu-gcc", architecture, f"install Debian's gcc-{architecture}-linux-gnu")


def ndk_compiler(architecture: Architecture, ndk: Path | None) -> Compiler:
    """Return the clang of an Android NDK for the oldest Android that both the NDK and the runner support.

    Args:
        architecture: the device's.
        ndk: the NDK's folder; None looks where the environment says, then for the newest one in the SDK.

    Raises:
        InputError: `ndk` is not an NDK.
        DeviceError: no NDK is installed.
    """
    folder = ndk or _known_ndk()
    if folder is None:
        hint = f"install the Android NDK and give its folder with --ndk, or set {NDK_VARIABLES[0]}"
        raise DeviceError("the runner for the device cannot be built without the Android NDK", hint=hint)
    compilers = {
        int(level): path
        for path in folder.glob(f"toolchains/llvm/prebuilt/*/bin/{architecture}-linux-android*-clang")
        if (level := path.name.removesuffix("-clang").rpartition("android")[2]).isdigit()
    }
    levels = sorted(level for level in compilers if level >= MIN_ANDROID_API)
    if not levels:
        what = f"is no Android NDK with a compiler for {architecture} and Android API level {MIN_ANDROID_API} or higher"
        raise InputError(what, where=folder, hint="give the folder that holds toolchains/llvm, of NDK r21 or newer")
    return Compiler((str(compilers[levels[0]]),), architecture)


def build(compiler: Compiler, sources: Path = SOURCE_FOLDER) -> Path:
    """Return the path of the compiled runner; it is compiled if the cache does not have it.

    Args:
        compiler: the compiler to use.
        sources: the folder with ``runner.c`` and its headers.

    Raises:
        DeviceError: the compiler cannot be run, or refuses the source.
    """
    version = _run([*compiler.command, "--version"])
    contents = [path.read_bytes() for path in (sources / "runner.c", *sorted(sources.glob("*.h")))]
    name = f"-{compiler.architecture}"
    program = cache_path("runner", compiler.command, COMPILER_FLAGS, version, *contents, suffix=name)
    if not program.is_file():
        LOGGER.info("compiling the runner with %s", compiler.command[0])
        with replacing(program) as folder:
            output = str(folder / program.name)
            _run([*compiler.command, *COMPILER_FLAGS, "-o", output, str(sources / "runner.c"), *LINKED_LIBRARIES])
    return program


def check_library(path: Path) -> str:
    """Return the architecture that a shared library is for, such as ``aarch64``.

    Raises:
        InputError: there is no such file, or it is not a shared library for Linux or Android.
    """
    if not path.is_file():
        raise InputError("no such file", where=path, hint="give the libonnxruntime.so of the device's runtime")
    with path.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        hint = "give a libonnxruntime.so, not an archive that holds one"
        raise InputError("is no shared library for Linux or Android", where=path, hint=hint)
    kind, machine = struct.unpack("<HH" if header[5] == 1 else ">HH", header[16:20])
    if kind != ELF_SHARED_OBJECT:
        raise InputError("is no shared library", where=path, hint="give the runtime's libonnxruntime.so")
    return ELF_MACHINES.get(machine, f"machine {machine}")


def _known_ndk() -> Path | None:
    """Return the NDK that an environment variable names, else the newest one in the SDK that one names."""
    named = [Path(os.environ[name]) for name in NDK_VARIABLES if os.environ.get(name)]
    folders = [Path(os.environ[name], "ndk") for name in SDK_VARIABLES if os.environ.get(name)]
    return next(iter([*named, *(newest for folder in folders if (newest := _newest_version(folder)))]), None)


def _newest_version(folder: Path) -> Path | None:
    versions = [path for path in folder.glob("*") if all(part.isdigit() for part in path.name.split("."))]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def _installed(name: str, architecture: str, hint: str) -> Compiler:
    if shutil.which(name) is None:
        raise DeviceError(f"there is no compiler {name}", hint=hint)
    return Compiler((name,), architecture)


def _run(command: list[str]) -> str:
    """Run a compiler and return its stdout."""
    try:
        completed = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise DeviceError(f"cannot be run ({error.strerror})", where=command[0], hint="check the compiler") from None
    if completed.returncode:
        errors = [line for line in completed.stderr.splitlines() if "error" in line] or completed.stderr.splitlines()
        reason = one_line(errors[0]) if errors else f"exit code {completed.returncode}"
        raise DeviceError(f"cannot compile the runner ({reason})", where=command[0], hint="check the compiler")
    return completed.stdout
