"""What the machine is (`describe_host`) and what it is doing (`read_conditions`)."""

from __future__ import annotations

import platform
import socket
from pathlib import Path

import onnxruntime
import psutil

from toolchain.bench import agent
from toolchain.cpuinfo import read_cpu
from toolchain.measurement import Host, Reading

__all__ = ["Reading", "describe_host", "read_conditions"]


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
        governor=agent.text(Path("/", agent.GOVERNOR)),
    )


def read_conditions(root: Path = Path("/")) -> Reading:
    """What `agent.read_conditions` tells of this machine. root: where ``sys`` lies."""
    return Reading(**agent.read_conditions(root))
