"""Facts and current conditions of an Android device, read from the output of one shell script.

Sources: properties (``getprop``); ``/proc`` and ``/sys`` where the shell's user may read them; and two of Android's
services. ``thermalservice`` (Android 10 or newer): temperatures of kind 0 are the processor's, kind 3 the skin's, and
status 0 is no throttling (android.hardware.thermal, Temperature and ThrottlingSeverity). ``battery``: temperature in
tenths of °C.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.benchmark.agent import FACT_FILES, GOVERNOR
from toolchain.benchmark.host import root_of
from toolchain.devices.cpuinfo import read_cpu
from toolchain.devices.detect import detect_host
from toolchain.formats.results import Host, Reading
from toolchain.formats.target import Target

SECTION_MARK = "@@ "
SECTION_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "facts": {"properties": "getprop", "kernel": "uname -sr"},
    "conditions": {"thermal": "dumpsys thermalservice", "battery": "dumpsys battery"},
}
SECTION_FILES: Mapping[str, tuple[str, ...]] = {
    "facts": FACT_FILES,
    "conditions": (
        "proc/loadavg",
        "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
        "sys/class/thermal/thermal_zone*/temp",
        GOVERNOR,
    ),
}
THROTTLED_BIT = 4
"""The bit of `Reading.throttled` for a throttled processor."""


def script(about: Literal["facts", "conditions"]) -> str:
    """Return the script to run in the device's shell; `parse_facts` or `parse_conditions` reads its output."""
    patterns = " ".join(f"/{pattern}" for pattern in SECTION_FILES[about])
    files = (
        f'for f in {patterns}; do if [ -r "$f" ]; then echo "{SECTION_MARK}$f"; cat "$f" 2>/dev/null; echo; fi; done'
    )
    commands = [
        f'echo "{SECTION_MARK}{name}"; {command} 2>/dev/null' for name, command in SECTION_COMMANDS[about].items()
    ]
    return "; ".join([files, *commands, "true"])


@dataclass(frozen=True)
class AndroidFacts:
    """Facts that a device reports about itself.

    Attributes:
        properties: Android's system properties, as ``getprop`` prints them.
        files: contents of kernel files, by path below ``/``.
        kernel: the kernel's name and release.
    """

    properties: Mapping[str, str]
    files: Mapping[str, str]
    kernel: str

    @property
    def abis(self) -> list[str]:
        """The application binary interfaces (ABIs) that the device supports, the preferred one first."""
        return [abi for abi in self.properties.get("ro.product.cpu.abilist", "").split(",") if abi]

    @property
    def title(self) -> str:
        """The name under which the device is sold."""
        return self.properties.get("ro.product.model") or "Android device"

    @property
    def soc(self) -> str:
        """The maker's name of the processor (Android 12 or newer), or the platform that Android was built for."""
        named = [self.properties.get(f"ro.soc.{key}", "") for key in ("manufacturer", "model")]
        known = " ".join(name for name in named if name)
        return known or self.properties.get("ro.board.platform", "")

    def processors(self, kind: str) -> list[int] | None:
        """Return the numbers of the processors with the highest clock.

        Args:
            kind: ``big``, or ``little`` for those with the lowest clock.

        Returns:
            The numbers; None where all processors have the same clock or none is known.
        """
        paths = [re.fullmatch(r"sys/devices/system/cpu/cpu(\d+)/cpufreq/cpuinfo_max_freq", path) for path in self.files]
        clocks = {int(path[1]): int(self.files[path[0]]) for path in paths if path and self.files[path[0]].isdigit()}
        if len(set(clocks.values())) < 2:
            return None
        chosen = (max if kind == "big" else min)(clocks.values())
        return sorted(cpu for cpu, clock in clocks.items() if clock == chosen)

    def host(self, onnxruntime: str) -> Host:
        """Return the device as results describe it.

        Args:
            onnxruntime: the version that runs there.
        """
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
        """Return the device's profile."""
        with root_of(self.files) as root:
            detected = detect_host(root)
        title = ", ".join(name for name in (self.title, self.soc, detected.title) if name)
        return detected.model_copy(update={"title": title}).renamed(self.title)


def parse_facts(text: str) -> AndroidFacts:
    """Read the output of ``script("facts")``."""
    sections = _sections(text)
    properties = dict(re.findall(r"^\[(.+?)\]: \[(.*)\]$", sections.get("properties", ""), re.MULTILINE))
    files = {path.removeprefix("/"): content for path, content in sections.items() if path.startswith("/")}
    return AndroidFacts(properties, files, sections.get("kernel", "Linux"))


def parse_conditions(text: str) -> Reading:
    """Read the output of ``script("conditions")``: load, clock of the fastest core, temperature, throttling.

    The temperature is that of the processor's hottest part. Where the thermal service does not name the processor, it
    is the skin's, the hottest thermal zone's or the battery's, the first of these that is known.
    """
    sections = _sections(text)
    load = re.match(r"[\d.]+", sections.get("/proc/loadavg", ""))
    clocks = [
        int(content) for path, content in sections.items() if path.endswith("scaling_cur_freq") and content.isdigit()
    ]
    zones = [int(content) / 1e3 for path, content in sections.items() if "thermal_zone" in path and content.isdigit()]
    thermal = sections.get("thermal", "")
    status = re.search(r"^Thermal Status: (\d+)$", thermal, re.MULTILINE)
    battery = re.search(r"^\s*temperature: (\d+)$", sections.get("battery", ""), re.MULTILINE)
    now = thermal.partition("Current temperatures from HAL:")[2] or thermal
    sensed = [(int(kind), float(value)) for value, kind in re.findall(r"mValue=(-?[\d.]+), mType=(\d+)", now)]
    processor, skin = ([value for kind, value in sensed if kind == number and value > 0] for number in (0, 3))
    candidates = processor or skin or zones or ([int(battery[1]) / 10] if battery else [])
    return Reading(
        load=float(load[0]) if load else None,
        clock_mhz=max(clocks) / 1e3 if clocks else None,
        temperature_c=max(candidates) if candidates else None,
        governor=sections.get(f"/{GOVERNOR}"),
        throttled=(THROTTLED_BIT if int(status[1]) else 0) if status else None,
    )


def _sections(text: str) -> dict[str, str]:
    """Return the text after each mark, by the name in the mark."""
    pieces = re.split(rf"^{SECTION_MARK}(.+)$", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]
    return {name: content.strip("\0 \n") for name, content in zip(pieces[::2], pieces[1::2], strict=True)}
