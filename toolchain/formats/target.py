"""`Target`: what a device is and how a model should be built for it.

One TOML file a device, in ``targets/`` (shipped in the wheel as ``toolchain/_targets``). A profile
states facts; nothing in it is measured by us. What an *operator* can do stands in ``ops.py``; what a
*device* can do stands here and nowhere else.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Part

Architecture = Literal["x86_64", "aarch64"]
Feature = Literal[
    "asimd", "fp16", "dotprod", "i8mm", "bf16", "sve", "sme",
    "sse4.1", "avx", "avx2", "avx512", "avx-vnni", "avx512-vnni", "amx-int8",
]  # fmt: skip
PackageFormat = Literal["onnx", "ort"]


class CoreCluster(Part):
    """Cores of one kind. clock_ghz: the highest; None where the machine does not tell (virtual machines)."""

    core: str
    count: int = pydantic.Field(ge=1)
    clock_ghz: float | None = pydantic.Field(default=None, gt=0)


class Cache(Part):
    """Cache sizes in KiB, as one core of the first cluster sees them; None where unknown or absent."""

    l1d_kib: int | None = None
    l2_kib: int | None = None
    l3_kib: int | None = None


class Runtime(Part):
    """How the model is run there."""

    version: str = ">=1.20"
    provider: Literal["cpu"] = "cpu"
    threads: int = pydantic.Field(ge=1)
    session_options: dict[str, str] = pydantic.Field(default_factory=dict)


class Int8(Part):
    """How int8 models are written for the device.

    activations: u8 where the kernels take unsigned activations (x86), s8 where signed ones are
        native (ARM). Both spell the same real numbers: u8 with zero point z is s8 with z - 128.
    saturates: adjacent products are added in saturating int16 (x86 ``VPMADDUBSW`` without VNNI), so
        weights must be overflow-free for the answers to be right.
    """

    activations: Literal["u8", "s8"]
    saturates: bool = False


class Package(Part):
    """Which files an exported folder holds."""

    formats: tuple[PackageFormat, ...] = ("onnx", "ort")
    ort_platform: Literal["arm", "amd64"]


class Budget(Part):
    """Limits that `inspect` and `export` compare with; none by default."""

    size_mib: float | None = pydantic.Field(default=None, gt=0)
    memory_mib: float | None = pydantic.Field(default=None, gt=0)
    latency_ms: float | None = pydantic.Field(default=None, gt=0)


class Target(Document):
    """A device profile."""

    KIND: ClassVar[str] = "target profile"

    schema_version: Literal[1] = 1
    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    architecture: Architecture
    features: tuple[Feature, ...]
    cores: tuple[CoreCluster, ...] = pydantic.Field(min_length=1)
    cache: Cache = Cache()
    memory_mib: int | None = pydantic.Field(default=None, gt=0)
    channel_multiple: int = pydantic.Field(ge=1)
    runtime: Runtime
    int8: Int8
    package: Package
    budget: Budget = Budget()

    @property
    def has_vnni(self) -> bool:
        """Whether x86 int8 dot products are exact."""
        return bool({"avx-vnni", "avx512-vnni"} & set(self.features))

    def renamed(self, name: str) -> Target:
        """The same profile under a name made of `name`: lower case, and a hyphen for what a name cannot have."""
        name = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
        return self.model_copy(update={"name": name or "device"})

    def to_toml(self) -> str:
        """The profile as TOML; what is unknown or empty is left out."""
        data = self.model_dump(mode="json", exclude_none=True)
        tables = {key: value for key, value in data.items() if isinstance(value, dict) and value}
        lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
        for key, table in tables.items():
            entries = {name: value for name, value in table.items() if value != {}}
            lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in entries.items())]
        return "\n".join(lines) + "\n"

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Target:
        arm = {"asimd", "fp16", "dotprod", "i8mm", "bf16", "sve", "sme"}
        wrong = [f for f in self.features if (f in arm) != (self.architecture == "aarch64")]
        if wrong:
            raise ValueError(f"feature {wrong[0]!r} does not exist on {self.architecture}")
        if self.runtime.threads > sum(c.count for c in self.cores):
            raise ValueError(f"runtime.threads is {self.runtime.threads} on {sum(c.count for c in self.cores)} cores")
        if self.int8.saturates and (self.architecture == "aarch64" or self.has_vnni):
            raise ValueError("int8.saturates is true, but only x86 without VNNI saturates")
        if self.architecture == "x86_64" and not self.has_vnni and not self.int8.saturates:
            raise ValueError("int8.saturates is false, but x86 without VNNI adds products in saturating int16")
        return self


def _toml(value: object) -> str:
    """A value as TOML writes it: strings, numbers, bools and lists are as in JSON."""
    if isinstance(value, dict):
        keys = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in value}
        return f"{{ {', '.join(f'{keys[key]} = {_toml(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return json.dumps(value, ensure_ascii=False)
