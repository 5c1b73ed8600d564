"""`build`: the program of ``runner.c`` for a processor, made once by a compiler of the user's and kept.

For Android that is the NDK's clang, for this machine or another Linux its ``gcc``. The file is kept under a hash of the
sources, of the command and of what the compiler says of its version.
"""

from __future__ import annotations

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

HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-O2")
LIBRARIES = ("-ldl", "-lm")
ANDROID_API = 24  # Android 7, the first whose adb passes stdin, stderr and exit codes on
NDK_VARIABLES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT")
SDK_VARIABLES = ("ANDROID_HOME", "ANDROID_SDK_ROOT")
MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64"}  # e_machine of the ELF header, elf(5)
SHARED_OBJECT = 3  # e_type


@dataclass(frozen=True)
class Compiler:
    """A C compiler and what it makes programs for. command: it and its own options."""

    command: tuple[str, ...]
    architecture: str


def host_compiler() -> Compiler:
    """``$CC`` or ``cc``, for this machine.

    Raises:
        DeviceError: there is none.
    """
    return _found(os.environ.get("CC", "cc"), platform.machine(), "install a C compiler, or set CC")


def cross_compiler(architecture: Architecture) -> Compiler:
    """GCC for another Linux.

    Raises:
        DeviceError: there is none.
    """
    return _found(f"{architecture}-linux-gnu-gcc", architecture, f"install Debian's gcc-{architecture}-linux-gnu")


def ndk_compiler(architecture: Architecture, ndk: Path | None) -> Compiler:
    """The clang of an Android NDK, for the oldest Android it can that we can.

    Args:
        architecture: of the device.
        ndk: the NDK's folder; None looks where the environment says, then in the SDK for the newest.

    Raises:
        InputError: `ndk` is none. DeviceError: none was found.
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
    levels = sorted(level for level in compilers if level >= ANDROID_API)
    if not levels:
        what = f"is no Android NDK with a compiler for {architecture} and Android API level {ANDROID_API} or higher"
        raise InputError(what, where=folder, hint="give the folder that holds toolchains/llvm, of NDK r21 or newer")
    return Compiler((str(compilers[levels[0]]),), architecture)


def build(compiler: Compiler) -> Path:
    """The program, built if it is not there yet.

    Raises:
        DeviceError: the compiler cannot be run, or refuses the source.
    """
    version = _run([*compiler.command, "--version"])
    sources = [source.read_bytes() for source in (HERE / "runner.c", *sorted(HERE.glob("*.h")))]
    program = cache_path("runner", compiler.command, FLAGS, version, *sources, suffix=f"-{compiler.architecture}")
    if not program.is_file():
        with replacing(program) as folder:
            output = folder / program.name
            _run([*compiler.command, *FLAGS, "-o", str(output), str(HERE / "runner.c"), *LIBRARIES])
    return program


def check_library(path: Path) -> str:
    """The architecture that a shared library is for, such as ``aarch64``.

    Raises:
        InputError: no such file, or no shared library for Linux or Android.
    """
    if not path.is_file():
        raise InputError("no such file", where=path, hint="give the libonnxruntime.so of the device's runtime")
    with path.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        hint = "give a libonnxruntime.so, not an archive that holds one"
        raise InputError("is no shared library for Linux or Android", where=path, hint=hint)
    kind, machine = struct.unpack("<HH" if header[5] == 1 else ">HH", header[16:20])
    if kind != SHARED_OBJECT:
        raise InputError("is no shared library", where=path, hint="give the runtime's libonnxruntime.so")
    return MACHINES.get(machine, f"machine {machine}")


def _known_ndk() -> Path | None:
    named = [Path(os.environ[name]) for name in NDK_VARIABLES if os.environ.get(name)]
    kits = [Path(os.environ[name], "ndk") for name in SDK_VARIABLES if os.environ.get(name)]
    return next(iter([*named, *(newest for kit in kits if (newest := _newest(kit)))]), None)


def _newest(kit: Path) -> Path | None:
    versions = [path for path in kit.glob("*") if all(part.isdigit() for part in path.name.split("."))]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def _found(name: str, architecture: str, hint: str) -> Compiler:
    if shutil.which(name) is None:
        raise DeviceError(f"there is no compiler {name}", hint=hint)
    return Compiler((name,), architecture)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise DeviceError(f"cannot be run ({error.strerror})", where=command[0], hint="check the compiler") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        said = one_line(errors[0]) if errors else f"exit code {done.returncode}"
        raise DeviceError(f"cannot compile the runner ({said})", where=command[0], hint="check the compiler")
    return done.stdout
