"""What an Android device is and what it is doing, from one shell script's output.

Sources: properties (``getprop``), ``/proc`` and ``/sys`` where the shell's user may read them, and the services of
Android: ``thermalservice`` (Android 10 on; temperatures of kind 0 are the processor's, 3 the skin's, and status 0 is no
throttling: android.hardware.thermal, Temperature and ThrottlingSeverity), ``battery`` (temperature in tenths of °C).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.benchmark.agent import FACTS, GOVERNOR
from toolchain.benchmark.host import root_of
from toolchain.devices.cpuinfo import read_cpu
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

MARK = "@@ "
COMMANDS: Mapping[str, Mapping[str, str]] = {
    "facts": {"properties": "getprop", "kernel": "uname -sr"},
    "conditions": {"thermal": "dumpsys thermalservice", "battery": "dumpsys battery"},
}
FILES: Mapping[str, tuple[str, ...]] = {
    "facts": FACTS,
    "conditions": (
        "proc/loadavg",
        "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
        "sys/class/thermal/thermal_zone*/temp",
        GOVERNOR,
    ),
}
THROTTLED = 4  # the bit of `Reading.throttled`


def script(about: Literal["facts", "conditions"]) -> str:
    """What a shell is to run; `parse_facts` or `parse_conditions` takes what it prints."""
    patterns = " ".join(f"/{pattern}" for pattern in FILES[about])
    files = f'for f in {patterns}; do if [ -r "$f" ]; then echo "{MARK}$f"; cat "$f" 2>/dev/null; echo; fi; done'
    commands = [f'echo "{MARK}{name}"; {command} 2>/dev/null' for name, command in COMMANDS[about].items()]
    return "; ".join([files, *commands, "true"])


@dataclass(frozen=True)
class Facts:
    """What a device says of itself. properties: of `getprop`; files: below ``/``, by path."""

    properties: Mapping[str, str]
    files: Mapping[str, str]
    kernel: str

    @property
    def abis(self) -> list[str]:
        """What programs it runs, its favourite first."""
        return [abi for abi in self.properties.get("ro.product.cpu.abilist", "").split(",") if abi]

    @property
    def title(self) -> str:
        """The device's name, as it is sold."""
        return self.properties.get("ro.product.model") or "Android device"

    @property
    def soc(self) -> str:
        """The processor, as its maker calls it (Android 12 on), or the platform it was built for."""
        named = [self.properties.get(f"ro.soc.{key}", "") for key in ("manufacturer", "model")]
        known = " ".join(name for name in named if name)
        return known or self.properties.get("ro.board.platform", "")

    def processors(self, kind: str) -> list[int] | None:
        """Numbers of the processors with the highest clock, for ``big``, or the lowest; None where all are alike."""
        found = [re.fullmatch(r"sys/devices/system/cpu/cpu(\d+)/cpufreq/cpuinfo_max_freq", path) for path in self.files]
        clocks = {int(path[1]): int(self.files[path[0]]) for path in found if path and self.files[path[0]].isdigit()}
        if len(set(clocks.values())) < 2:
            return None
        wanted = (max if kind == "big" else min)(clocks.values())
        return sorted(cpu for cpu, clock in clocks.items() if clock == wanted)

    def host(self, onnxruntime: str) -> Host:
        """As a measurement tells it. onnxruntime: the version that runs there."""
        with root_of(self.files) as root:
            cpu = read_cpu(root)
        memory = re.search(r"MemTotal:\s+(\d+)", self.files.get("proc/meminfo", ""))
        return Host(
            name=self.title,
            architecture=cpu.architecture,
            cpu=", ".join(name for name in (self.soc, cpu.name) if name),
            features=cpu.features,
            cores=cpu.physical_cores,
            memory_mib=int(memory[1]) // 1024 if memory else 0,
            os=f"Android {self.properties.get('ro.build.version.release', '?')} ({self.kernel})",
            python="none, the runner is in C",
            onnxruntime=onnxruntime,
            governor=self.files.get(GOVERNOR),
        )

    def target(self) -> Target:
        """As a profile."""
        with root_of(self.files) as root:
            found = detect_host(root)
        title = ", ".join(name for name in (self.title, self.soc, found.title) if name)
        return found.model_copy(update={"title": title}).renamed(self.title)


def parse_facts(text: str) -> Facts:
    """From the output of ``script("facts")``."""
    parts = _parts(text)
    properties = dict(re.findall(r"^\[(.+?)\]: \[(.*)\]$", parts.get("properties", ""), re.MULTILINE))
    files = {path.removeprefix("/"): content for path, content in parts.items() if path.startswith("/")}
    return Facts(properties, files, parts.get("kernel", "Linux"))


def parse_conditions(text: str) -> Reading:
    """From the output of ``script("conditions")``: load, the fastest core's clock, the hottest part of the processor.

    Where the thermal service names no processor, its temperature is the skin's, the hottest zone's or the battery's.
    """
    parts = _parts(text)
    load = re.match(r"[\d.]+", parts.get("/proc/loadavg", ""))
    clocks = [
        int(content) for path, content in parts.items() if path.endswith("scaling_cur_freq") and content.isdigit()
    ]
    zones = [int(content) / 1e3 for path, content in parts.items() if "thermal_zone" in path and content.isdigit()]
    thermal = parts.get("thermal", "")
    status = re.search(r"^Thermal Status: (\d+)$", thermal, re.MULTILINE)
    battery = re.search(r"^\s*temperature: (\d+)$", parts.get("battery", ""), re.MULTILINE)
    now = thermal.partition("Current temperatures from HAL:")[2] or thermal
    sensed = [(int(kind), float(value)) for value, kind in re.findall(r"mValue=(-?[\d.]+), mType=(\d+)", now)]
    processor, skin = ([value for kind, value in sensed if kind == wanted and value > 0] for wanted in (0, 3))
    candidates = processor or skin or zones or ([int(battery[1]) / 10] if battery else [])
    return Reading(
        load=float(load[0]) if load else None,
        clock_mhz=max(clocks) / 1e3 if clocks else None,
        temperature_c=max(candidates) if candidates else None,
        governor=parts.get(f"/{GOVERNOR}"),
        throttled=(THROTTLED if int(status[1]) else 0) if status else None,
    )


def _parts(text: str) -> dict[str, str]:
    """What stands behind each mark."""
    pieces = re.split(rf"^{MARK}(.+)$", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]
    return {name: content.strip("\0 \n") for name, content in zip(pieces[::2], pieces[1::2], strict=True)}
