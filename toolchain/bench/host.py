"""What the machine is (`describe_host`) and what it is doing (`read_conditions`)."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import psutil

from toolchain.cpuinfo import read_cpu
from toolchain.measurement import Conditions, Host


def describe_host() -> Host:
    """This machine and the onnxruntime it imports. What cannot be read is empty or None."""
    cpu = read_cpu()
    return Host(
        name=socket.gethostname(),
        architecture=cpu.architecture,
        cpu=cpu.name,
        features=cpu.features,
        cores=cpu.physical_cores,
        memory_mib=int(psutil.virtual_memory().total) // 2**20,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    )


@dataclass(frozen=True)
class Reading:
    """One look at the machine. load: runnable processes over the last minute; clock: of the fastest core."""

    load: float | None
    clock_mhz: float | None
    temperature_c: float | None


def read_conditions(root: Path = Path("/")) -> Reading:
    """Load, clock and the hottest thermal zone; None where unreadable. root: where ``sys`` lies."""
    clocks = _numbers(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    zones = _numbers(root / "sys/class/thermal", "thermal_zone*/temp")
    return Reading(
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        clock_mhz=max(clocks) / 1e3 if clocks else None,
        temperature_c=max(zones) / 1e3 if zones else None,
    )


def conditions(before: Reading, after: Reading) -> Conditions:
    """The two looks as they stand in a measurement."""
    return Conditions(
        load_before=before.load,
        load_after=after.load,
        clock_mhz_before=before.clock_mhz,
        clock_mhz_after=after.clock_mhz,
        temperature_c_before=before.temperature_c,
        temperature_c_after=after.temperature_c,
    )


def _numbers(folder: Path, pattern: str) -> list[int]:
    texts = (_text(path) for path in folder.glob(pattern))
    return [int(text) for text in texts if text and text.lstrip("-").isdigit()]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
