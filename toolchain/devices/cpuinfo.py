"""The processor of a machine, as its kernel reports it; used to detect targets and to describe measuring hosts.

Sources
    Linux   ``/proc/cpuinfo`` (x86 prints ``flags``, ARM ``Features``); the board's name from its ``Model`` line or from
            ``/proc/device-tree/model``
    macOS   ``sysctl``

The numbers of ARM cores are those of the Linux kernel, ``arch/arm64/include/asm/cputype.h``.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from toolchain.formats.target import Feature

_FEATURES: dict[str, Feature] = {
    "asimd": "asimd", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sme": "sme", "sse4_1": "sse4.1", "avx": "avx", "avx2": "avx2", "avx512f": "avx512",
    "avx_vnni": "avx-vnni", "avx512_vnni": "avx512-vnni", "amx_int8": "amx-int8",
}  # fmt: skip
_SYSCTL_FEATURES: dict[str, Feature] = {
    "AdvSIMD": "asimd", "arm.FEAT_FP16": "fp16", "arm.FEAT_DotProd": "dotprod", "arm.FEAT_I8MM": "i8mm",
    "arm.FEAT_BF16": "bf16", "arm.FEAT_SME": "sme", "sse4_1": "sse4.1", "avx1_0": "avx", "avx2_0": "avx2",
    "avx512f": "avx512", "avx512vnni": "avx512-vnni",
}  # fmt: skip
_ARM_CORES = {
    0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57", 0xD08: "cortex-a72",
    0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76", 0xD0C: "neoverse-n1", 0xD0D: "cortex-a77",
    0xD40: "neoverse-v1", 0xD41: "cortex-a78", 0xD42: "cortex-a78ae", 0xD44: "cortex-x1", 0xD46: "cortex-a510",
    0xD47: "cortex-a710", 0xD48: "cortex-x2", 0xD49: "neoverse-n2", 0xD4B: "cortex-a78c", 0xD4C: "cortex-x1c",
    0xD4D: "cortex-a715", 0xD4E: "cortex-x3", 0xD4F: "neoverse-v2", 0xD80: "cortex-a520", 0xD81: "cortex-a720",
    0xD82: "cortex-x4", 0xD84: "neoverse-v3", 0xD85: "cortex-x925", 0xD87: "cortex-a725", 0xD8E: "neoverse-n3",
}  # fmt: skip


@dataclass(frozen=True)
class Cores:
    """Cores of one kind.

    Attributes:
        kind: name of the core, such as "cortex-a76".
        count: number of cores; hardware threads do not count.
        processors: the kernel's numbers for them, one for each hardware thread.
    """

    kind: str
    count: int
    processors: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        architecture: such as "x86_64"; also one that targets cannot have.
        name: a name for people; on ARM it includes the board.
        features: features, with the names that `Target` has for them.
        cores: the cores, grouped by kind.
    """

    architecture: str
    name: str
    features: tuple[Feature, ...]
    cores: tuple[Cores, ...]

    @property
    def physical_cores(self) -> int:
        """Number of cores of all kinds; hardware threads do not count."""
        return sum(c.count for c in self.cores)


def read_cpu(root: Path = Path("/")) -> Cpu:
    """Read this machine's processor. Features that cannot be read are left out, never guessed.

    Args:
        root: the folder that contains ``proc``.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if "processor" in text:
        return parse_cpuinfo(text, board=_board(root))
    if platform.system() == "Darwin":
        names = ["hw.optional", "hw.physicalcpu", "machdep.cpu.brand_string"]
        shown = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
        return parse_sysctl(shown.stdout)
    count = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    name = platform.processor() or platform.machine()
    return Cpu(_architecture(platform.machine()), name, (), (Cores(name, count),))


def parse_cpuinfo(text: str, board: str = "") -> Cpu:
    """Parse Linux's ``/proc/cpuinfo``.

    Args:
        text: content of the file.
        board: name of the board, used if `text` has none.
    """
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", text)]
    processors = [block for block in blocks if block.get("processor", "").isdigit()]
    flags = [set(p.get("flags", p.get("Features", "")).split()) for p in processors]
    # A thread may move between the cores of a big.LITTLE chip, so it can use only the features that all of them have.
    features = _features(_FEATURES, set.intersection(*flags) if flags else ())
    board = next((b["Model"] for b in blocks if "Model" in b), board)
    if any("flags" in p for p in processors):
        return _x86(processors, features)
    return _arm(processors, features, re.sub(r"\s+Rev\s+[\d.]+$", "", board))


def parse_sysctl(text: str) -> Cpu:
    """Parse the output of macOS's ``sysctl hw.optional hw.physicalcpu machdep.cpu.brand_string``."""
    values = _fields(text)
    on = [k.removeprefix("hw.optional.") for k, v in values.items() if k.startswith("hw.optional.") and v == "1"]
    name = values.get("machdep.cpu.brand_string", "unknown")
    architecture = "aarch64" if values.get("hw.optional.arm64") == "1" else "x86_64"
    count = int(values.get("hw.physicalcpu", "1"))
    return Cpu(architecture, name, _features(_SYSCTL_FEATURES, on), (Cores(name, count),))


def _x86(processors: list[dict[str, str]], features: tuple[Feature, ...]) -> Cpu:
    first = processors[0]
    name = " ".join((first.get("model name") or first.get("vendor_id", "unknown")).split())
    # Hardware threads of one core share both ids; some virtual machines print neither.
    cores = {(p.get("physical id", "0"), p.get("core id", p["processor"])) for p in processors}
    return Cpu("x86_64", name, features, (Cores(name, len(cores), tuple(int(p["processor"]) for p in processors)),))


def _arm(processors: list[dict[str, str]], features: tuple[Feature, ...], board: str) -> Cpu:
    kinds: dict[str, list[int]] = {}
    for p in processors:
        kinds.setdefault(_core_name(p), []).append(int(p["processor"]))
    cores = tuple(Cores(kind, len(numbers), tuple(numbers)) for kind, numbers in kinds.items())
    named = " + ".join(f"{c.count}x {c.kind}" for c in cores)
    # Only 64-bit kernels print `asimd`; a 32-bit one prints `neon`.
    architecture = "aarch64" if "asimd" in features else _architecture(platform.machine())
    return Cpu(architecture, f"{board}, {named}" if board else named, features, cores)


def _core_name(processor: dict[str, str]) -> str:
    maker, part = processor.get("CPU implementer", "?"), processor.get("CPU part", "?")
    known = _ARM_CORES.get(int(part, 16)) if maker == "0x41" and part != "?" else None
    return known or f"arm {maker}:{part}"


def _board(root: Path) -> str:
    try:
        return (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _features(names: dict[str, Feature], present: Iterable[str]) -> tuple[Feature, ...]:
    present = set(present)
    return tuple(feature for key, feature in names.items() if key in present)


def _architecture(machine: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
