"""What the machine is (`describe_host`) and what it is doing (`read_conditions`)."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import psutil

from toolchain.bench import agent
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
        governor=agent.text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    )


@dataclass(frozen=True)
class Reading:
    """One look at the machine; what each number means says `agent.read_conditions`."""

    load: float | None
    clock_mhz: float | None
    temperature_c: float | None
    throttled: int | None = None


def read_conditions(root: Path = Path("/")) -> Reading:
    """Load, clock, temperature and throttling flags; None where unreadable. root: where ``sys`` lies."""
    return Reading(**agent.read_conditions(root))


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
