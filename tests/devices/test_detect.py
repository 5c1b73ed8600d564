"""Detection from checked-in /proc/cpuinfo texts, laid out as the kernel does."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from toolchain.core.errors import DeviceError
from toolchain.devices.catalogue import load_target
from toolchain.devices.cpuinfo import parse_cpuinfo, parse_sysctl
from toolchain.devices.detect import detect_host

TEXTS = Path(__file__).parent / "cpuinfo"


def machine(root: Path, name: str, files: dict[str, str] | None = None) -> Path:
    """A root folder with `proc` and `sys` of the machine called `name`."""
    contents = {"proc/cpuinfo": (TEXTS / f"{name}.txt").read_text(), "proc/meminfo": "MemTotal:  8256000 kB\n"}
    for path, text in (contents | (files or {})).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def cache(cpu: int, *rows: tuple[str, str, str]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/cache/index{i}/{name}": f"{text}\n"
        for i, row in enumerate(rows)
        for name, text in zip(("level", "type", "size"), row, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "architecture", "features", "threads", "multiple", "activations", "saturates"),
    [
        ("raspberry-pi-4", "aarch64", {"asimd"}, 4, 8, "s8", False),
        ("raspberry-pi-5", "aarch64", {"asimd", "fp16", "dotprod"}, 4, 16, "s8", False),
        ("rk3588", "aarch64", {"asimd", "fp16", "dotprod"}, 4, 16, "s8", False),
        ("i7-9750h", "x86_64", {"sse4.1", "avx", "avx2"}, 2, 8, "u8", True),
        ("n100", "x86_64", {"sse4.1", "avx", "avx2", "avx-vnni"}, 4, 8, "u8", False),
        ("i7-1165g7", "x86_64", {"sse4.1", "avx", "avx2", "avx512", "avx512-vnni"}, 4, 16, "u8", False),
    ],
)
def test_machines(tmp_path, name, architecture, features, threads, multiple, activations, saturates):
    target = detect_host(machine(tmp_path, name))
    assert (target.name, target.architecture, set(target.features)) == ("host", architecture, features)
    assert (target.runtime.threads, target.channel_multiple, target.memory_mib) == (threads, multiple, 8062)
    assert (target.int8.activations, target.int8.saturates) == (activations, saturates)
    assert target.package.ort_platform == ("arm" if architecture == "aarch64" else "amd64")


def test_big_cores_come_first_with_their_caches(tmp_path):
    clocks = {
        f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": "1800000\n" if n < 4 else "2400000\n"
        for n in range(8)
    }
    small = cache(0, ("1", "Data", "32K"), ("2", "Unified", "128K"))
    big = cache(4, ("1", "Data", "64K"), ("1", "Instruction", "48K"), ("2", "Unified", "512K"), ("3", "Unified", "3M"))
    target = detect_host(machine(tmp_path, "rk3588", clocks | small | big))
    assert [(c.core, c.count, c.clock_ghz) for c in target.cores] == [("cortex-a76", 4, 2.4), ("cortex-a55", 4, 1.8)]
    assert (target.cache.l1d_kib, target.cache.l2_kib, target.cache.l3_kib) == (64, 512, 3072)


def test_names():
    pi = parse_cpuinfo((TEXTS / "raspberry-pi-4.txt").read_text())
    assert pi.name == "Raspberry Pi 4 Model B, 4x cortex-a72"
    rk = parse_cpuinfo((TEXTS / "rk3588.txt").read_text(), board="Radxa ROCK 5B")
    assert rk.name == "Radxa ROCK 5B, 4x cortex-a55 + 4x cortex-a76"
    laptop = parse_cpuinfo((TEXTS / "i7-9750h.txt").read_text())
    assert (laptop.name, laptop.physical_cores) == ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", 2)


def test_a_feature_of_the_big_cores_alone_is_not_reported():
    text = (TEXTS / "rk3588.txt").read_text().replace(" asimddp", "", 1)
    assert parse_cpuinfo(text).features == ("asimd", "fp16")


def test_unknown_arm_core_keeps_its_number():
    text = (TEXTS / "raspberry-pi-5.txt").read_text().replace("0xd0b", "0xfff")
    assert parse_cpuinfo(text).cores[0].kind == "arm 0x41:0xfff"


def test_sysctl():
    text = (
        "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.arm64: 1\n"
        "hw.physicalcpu: 8\nmachdep.cpu.brand_string: Apple M2\n"
    )
    cpu = parse_sysctl(text)
    assert (cpu.architecture, cpu.name, cpu.features) == ("aarch64", "Apple M2", ("asimd", "dotprod"))
    assert cpu.physical_cores == 8


def test_other_architectures_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    text = (TEXTS / "raspberry-pi-4.txt").read_text().replace("fp asimd", "half thumb neon")
    with pytest.raises(DeviceError, match=r"armv7l.*x86_64 and aarch64.*give the name of a target"):
        detect_host(machine(tmp_path, "raspberry-pi-4", {"proc/cpuinfo": text}))


def test_this_machine_is_a_valid_target():
    target = load_target("host")
    assert target.name == "host"
    assert target.architecture == {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
