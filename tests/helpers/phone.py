"""A simulated phone on this machine: a scripted adb, a folder for its files, an NDK whose clang is the local cc."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import psutil
import pytest

from toolchain.benchmark import adb

SERIAL = "R58M123"
CLIENT = Path(__file__).with_name("fake_adb.py")
LIBRARY = Path(onnxruntime.__file__).parent / f"capi/libonnxruntime.so.{onnxruntime.__version__}"
PROPERTIES = {
    "ro.product.cpu.abilist": {"x86_64": "x86_64,x86", "aarch64": "arm64-v8a"}.get(platform.machine(), ""),
    "ro.product.model": "Phone 5",
    "ro.build.version.release": "14",
    "ro.soc.manufacturer": "Maker",
    "ro.soc.model": "X1",
}
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@dataclass
class Phone:
    """home: folder of the scripted client. root: the folder that `adb.DEVICE_FOLDER` names."""

    home: Path
    root: Path
    ndk: Path

    @property
    def place(self) -> adb.Adb:
        return adb.Adb(SERIAL, LIBRARY, self.ndk)

    def calls(self, word: str) -> list[str]:
        """The client's calls so far with that command."""
        return [line for line in (self.home / "log").read_text().splitlines() if line.split(" ")[2] == word]

    def show(self, *devices: str) -> None:
        """Set what ``adb devices`` shows from now on."""
        (self.home / "devices").write_text("".join(f"{line}\n" for line in devices))

    def says(self, properties: dict[str, str]) -> None:
        """Set what ``getprop`` prints from now on."""
        lines = "".join(f"[{key}]: [{value}]\n" for key, value in properties.items())
        program(self.home / "bin/getprop", f"cat <<'END'\n{lines}END\n")

    def processes(self) -> list[psutil.Process]:
        """Running processes whose program lies below the root."""
        processes = []
        for process in psutil.process_iter(["exe", "status"]):
            running = process.info["status"] != psutil.STATUS_ZOMBIE
            if running and (process.info["exe"] or "").startswith(f"{self.root}/"):
                processes.append(process)
        return processes


def make(folder: Path, monkeypatch) -> Phone:
    """Make a phone that is connected and has no files of ours."""
    phone = Phone(folder / "client", folder / "data/edge-toolchain", folder / "ndk")
    (phone.home / "bin").mkdir(parents=True)
    phone.root.parent.mkdir()
    phone.show(f"{SERIAL}\tdevice")
    phone.says(PROPERTIES)
    (phone.home / "features").write_text("cmd\nshell_v2\nstat_v2\n")
    clang = phone.ndk / f"toolchains/llvm/prebuilt/linux-x86_64/bin/{platform.machine()}-linux-android26-clang"
    clang.parent.mkdir(parents=True)
    program(clang, 'exec cc "$@"\n')
    monkeypatch.setenv("FAKE_ADB", str(phone.home))
    monkeypatch.setenv("TOOLCHAIN_ADB", str(CLIENT))
    monkeypatch.setattr(adb, "DEVICE_FOLDER", str(phone.root))
    return phone


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
