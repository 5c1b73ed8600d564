"""Facts and conditions read from the text that Android devices print."""

from __future__ import annotations

import subprocess

import pytest

from toolchain.benchmark.android import parse_conditions, parse_facts, script

CORE = "processor\t: {}\nFeatures\t: fp asimd aes fphp asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
FACTS = f"""@@ /proc/cpuinfo
{"".join(CORE.format(n, "0xd05" if n < 6 else "0xd0b") for n in range(8))}
@@ /proc/meminfo
MemTotal:        5800124 kB
MemFree:          182000 kB

@@ /sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq
1804800

@@ /sys/devices/system/cpu/cpu6/cpufreq/cpuinfo_max_freq
2304000

@@ /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
schedutil

@@ properties
[ro.build.version.release]: [13]
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a,armeabi]
[ro.product.model]: [SM-A525F]
[ro.soc.manufacturer]: [QTI]
[ro.soc.model]: [SM7125]
@@ kernel
Linux 4.14.190
"""
THERMAL = """@@ thermal
IsStatusOverride: false
ThermalStatusListeners:
\tcallbacks: 4
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=90.0, mType=0, mName=AP, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
{sensors}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""


def test_facts():
    facts = parse_facts(FACTS)
    assert facts.abis == ["arm64-v8a", "armeabi-v7a", "armeabi"]
    host = facts.host("1.20.0")
    assert (host.name, host.architecture, host.cores, host.memory_mib) == ("SM-A525F", "aarch64", 8, 5664)
    assert host.cpu == "QTI SM7125, 6x cortex-a55 + 2x cortex-a76"
    assert (host.os, host.governor, host.onnxruntime) == ("Android 13 (Linux 4.14.190)", "schedutil", "1.20.0")
    assert host.features == ("asimd", "fp16", "dotprod")


def test_big_and_little_processors():
    facts = parse_facts(FACTS)
    assert (facts.processors("big"), facts.processors("little")) == ([6], [0])
    assert parse_facts(FACTS.replace("2304000", "1804800")).processors("big") is None


def test_a_profile():
    target = parse_facts(FACTS).target()
    assert (target.name, target.int8.activations, target.memory_mib) == ("sm-a525f", "s8", 5664)
    assert [(c.core, c.count, c.clock_ghz) for c in target.cores] == [
        ("cortex-a76", 2, 2.304),
        ("cortex-a55", 6, 1.8048),
    ]
    assert target.title.startswith("SM-A525F, QTI SM7125")


def sensor(kind, value):
    return f"\tTemperature{{mValue={value}, mType={kind}, mName=x, mStatus=0}}"


@pytest.mark.parametrize(
    ("sensors", "celsius"),
    [
        ([sensor(0, 41.5), sensor(0, 44.0), sensor(3, 60.0)], 44.0),
        ([sensor(0, 0.0), sensor(3, 31.0), sensor(2, 35.0)], 31.0),  # a sensor that is not there says 0
        ([], 29.8),  # the battery's
    ],
)
def test_temperature(sensors, celsius):
    text = THERMAL.format(status=0, sensors="\n".join(sensors)) + "@@ battery\n  level: 85\n  temperature: 298\n"
    found = parse_conditions(text)
    assert (found.temperature_c, found.throttled) == (celsius, 0)


def test_conditions():
    cpu = "@@ /sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq\n{}\n\n"
    zones = "@@ /sys/class/thermal/thermal_zone0/temp\n38000\n\n@@ /sys/class/thermal/thermal_zone1/temp\n\n"
    text = "@@ /proc/loadavg\n2.50 1.00 0.50 1/900 1234\n\n" + cpu.format(0, 576000) + cpu.format(6, 2304000) + zones
    found = parse_conditions(text + THERMAL.format(status=3, sensors=""))
    assert (found.load, found.clock_mhz, found.temperature_c, found.throttled) == (2.5, 2304.0, 38.0, 4)


def test_what_cannot_be_read_is_unknown():
    found = parse_conditions("@@ thermal\n@@ battery\n")
    assert (found.load, found.clock_mhz, found.temperature_c, found.governor, found.throttled) == (None,) * 5
    assert parse_facts("").abis == []


@pytest.mark.parametrize("about", ["facts", "conditions"])
def test_the_script_runs_where_nothing_of_android_is(about):
    done = subprocess.run(["sh", "-c", script(about)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    parts = parse_facts(done.stdout)
    assert ("proc/cpuinfo" in parts.files) == (about == "facts")
    assert parts.kernel.startswith("Linux")
