"""`detect_host`: make the profile of this machine from facts that its kernel reports; nothing is timed."""

from __future__ import annotations

from pathlib import Path

import psutil

from toolchain.core.errors import DeviceError
from toolchain.devices.cpuinfo import Cores, read_cpu
from toolchain.formats.target import Cache, CoreCluster, Feature, Int8, Package, Runtime, Target

MAX_THREADS = 4
"""Most threads in a detected profile: small models do not get faster with more, and the computer stays usable."""


def detect_host(root: Path = Path("/")) -> Target:
    """Make the profile named ``host``.

    Args:
        root: the folder that contains ``proc`` and ``sys``.

    Raises:
        DeviceError: this machine is neither x86_64 nor aarch64.
    """
    cpu = read_cpu(root)
    if cpu.architecture not in ("x86_64", "aarch64"):
        raise DeviceError(
            f"this machine is {cpu.architecture or 'of an unknown kind'}, but only x86_64 and aarch64 are supported",
            hint="give the name of a target instead of 'host'",
        )
    x86 = cpu.architecture == "x86_64"
    vnni = bool({"avx-vnni", "avx512-vnni"} & set(cpu.features))
    clocks = {cores: _clock_ghz(root, cores) for cores in cpu.cores}
    cores = sorted(cpu.cores, key=lambda c: -(clocks[c] or 0.0))
    return Target(
        name="host",
        title=cpu.name,
        architecture="x86_64" if x86 else "aarch64",
        features=cpu.features,
        cores=tuple(CoreCluster(core=c.kind, count=c.count, clock_ghz=clocks[c]) for c in cores),
        cache=_cache(root, cores[0]),
        memory_mib=_memory_mib(root),
        channel_multiple=_channel_multiple(cpu.features),
        runtime=Runtime(threads=min(cpu.physical_cores, MAX_THREADS)),
        int8=Int8(activations="u8" if x86 else "s8", saturates=x86 and not vnni),
        package=Package(ort_platform="amd64" if x86 else "arm"),
    )


def _channel_multiple(features: tuple[Feature, ...]) -> int:
    """Return the number that channel counts should be a multiple of for fast convolutions.

    It is 16 with AVX-512, whose registers hold a block of 16 floats, and with ARM dot products, where the int8
    convolution (MLAS ConvSym) takes output channels in blocks of 16. Otherwise it is 8.
    """
    return 16 if {"avx512", "dotprod"} & set(features) else 8


def _clock_ghz(root: Path, cores: Cores) -> float | None:
    """Return the highest clock of these cores as the kernel states it; None in many virtual machines."""
    files = (root / f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq" for n in cores.processors)
    khz = [int(text) for file in files if (text := _text(file)).isdigit()]
    return max(khz) / 1e6 if khz else None


def _cache(root: Path, cores: Cores) -> Cache:
    sizes: dict[str, int] = {}
    first = cores.processors[0] if cores.processors else 0
    for index in sorted((root / f"sys/devices/system/cpu/cpu{first}/cache").glob("index*")):
        kind, level, size = (_text(index / name) for name in ("type", "level", "size"))
        if kind in ("Data", "Unified") and size[:-1].isdigit():
            name = "l1d_kib" if level == "1" else f"l{level}_kib"
            sizes[name] = int(size[:-1]) * {"K": 1, "M": 1024}[size[-1]]
    return Cache(l1d_kib=sizes.get("l1d_kib"), l2_kib=sizes.get("l2_kib"), l3_kib=sizes.get("l3_kib"))


def _memory_mib(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return int(psutil.virtual_memory().total) // 2**20


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
