"""This machine: its description (`describe_host`) and its current conditions (`read_conditions`)."""

from __future__ import annotations

import platform
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
import psutil

from toolchain.benchmark import agent
from toolchain.devices.cpuinfo import read_cpu
from toolchain.formats.results import Host, Reading


def describe_host() -> Host:
    """Return this machine and the onnxruntime it imports; fields that cannot be read are empty or None."""
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
    """Return the current conditions of this machine; see `agent.read_conditions`.

    Args:
        root: the folder that holds ``sys``.
    """
    return Reading(**agent.read_conditions(root))


@contextmanager
def root_of(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a temporary folder with another machine's files, for functions that read ``proc`` and ``sys``.

    Args:
        files: contents by path below ``/``.
    """
    with tempfile.TemporaryDirectory(prefix="toolchain-host-") as name:
        for path, content in files.items():
            target = Path(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        yield Path(name)
