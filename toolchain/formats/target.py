"""`Target`: the profile of a device, with the facts that decide how a model is built for it.

One TOML file for each device, in ``targets/`` (in the wheel: ``toolchain/_targets``). A profile states facts; nothing
in it is measured by the toolchain. What an *operator* can do is in ``ops/table.py``; what a *device* can do is here and
nowhere else.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Record

Architecture = Literal["x86_64", "aarch64"]
Feature = Literal[
    "asimd", "fp16", "dotprod", "i8mm", "bf16", "sve", "sme",
    "sse4.1", "avx", "avx2", "avx512", "avx-vnni", "avx512-vnni", "amx-int8",
]  # fmt: skip
ARM_FEATURES = frozenset({"asimd", "fp16", "dotprod", "i8mm", "bf16", "sve", "sme"})
Encoding = Literal["u8", "s8"]
"""Encoding of activations. u8 with zero point z and s8 with zero point z - 128 represent the same real numbers."""
PackageFormat = Literal["onnx", "ort"]
NAME_PATTERN = r"^[a-z0-9][a-z0-9.-]*$"


class CoreCluster(Record):
    """Processor cores of one kind."""

    core: str
    """Name of the core design, such as "cortex-a76"."""
    count: int = pydantic.Field(ge=1)
    """Number of cores of this kind."""
    clock_ghz: float | None = pydantic.Field(default=None, gt=0)
    """Highest clock in GHz; null where the machine does not state it (virtual machines)."""


class Cache(Record):
    """Cache sizes in KiB that one core of the first kind sees, shared or not; null where unknown or absent."""

    l1d_kib: int | None = None
    """First level, data."""
    l2_kib: int | None = None
    """Second level."""
    l3_kib: int | None = None
    """Third level."""


class Runtime(Record):
    """Settings of onnxruntime on the device."""

    version: str = ">=1.20"
    """Releases of onnxruntime that work on the device."""
    provider: Literal["cpu"] = "cpu"
    """Execution provider."""
    threads: int = pydantic.Field(ge=1)
    """Threads within an operator."""
    session_options: dict[str, str] = pydantic.Field(default_factory=dict)
    """Session options of onnxruntime, keys and values as text."""


class Int8(Record):
    """Form of int8 models for the device."""

    activations: Encoding
    """u8 where the kernels take unsigned activations (x86), s8 where signed ones are native (ARM). Both stand for the
    same real numbers: u8 with zero point z is s8 with z - 128."""
    saturates: bool = False
    """Adjacent products are added in saturating int16 (x86 ``VPMADDUBSW`` without VNNI), so weights must be chosen such
    that no sum overflows."""


class Package(Record):
    """The model files in an exported folder."""

    formats: tuple[PackageFormat, ...] = ("onnx", "ort")
    """File formats to write."""
    ort_platform: Literal["arm", "amd64"]
    """Platform that ``model.ort`` is optimized for."""


class Budget(Record):
    """Limits of the application that `inspect` and `export` compare a model with; none by default."""

    size_mib: float | None = pydantic.Field(default=None, gt=0)
    """Size of the model file in MiB."""
    memory_mib: float | None = pydantic.Field(default=None, gt=0)
    """Memory while the model runs, in MiB."""
    latency_ms: float | None = pydantic.Field(default=None, gt=0)
    """Latency of one inference in milliseconds."""


class Target(Document):
    """The profile of a device. An optional field that is missing means unknown, never zero."""

    KIND: ClassVar[str] = "target profile"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    name: str = pydantic.Field(json_schema_extra={"pattern": NAME_PATTERN})
    """Name for the command line and for the exported folder; the file's name without ``.toml``."""
    title: str
    """Name for people; it says which variant of the device `memory_mib` belongs to."""
    architecture: Architecture
    """Instruction set."""
    features: tuple[Feature, ...]
    """Extensions of the instruction set that onnxruntime can use. They decide which int8 kernels run."""
    cores: tuple[CoreCluster, ...] = pydantic.Field(min_length=1)
    """Kinds of cores, the fastest first."""
    cache: Cache = Cache()
    """Cache sizes."""
    memory_mib: int | None = pydantic.Field(default=None, gt=0)
    """Main memory in MiB."""
    channel_multiple: int = pydantic.Field(ge=1)
    """Multiple of output channels that the convolution kernels want; other widths run on slower kernels."""
    runtime: Runtime
    """Version, threads and options of onnxruntime."""
    int8: Int8
    """Encoding of int8 models."""
    package: Package
    """Model files to export."""
    budget: Budget = Budget()
    """Limits of the application."""

    @property
    def has_vnni(self) -> bool:
        """True where int8 dot products of x86 are exact."""
        return bool({"avx-vnni", "avx512-vnni"} & set(self.features))

    def renamed(self, name: str) -> Target:
        """Copy the profile under a name made from `name`: lower case, with hyphens in place of other characters."""
        name = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
        return self.model_copy(update={"name": name or "device"})

    def to_toml(self) -> str:
        """Return the profile as TOML, without unknown and empty values."""
        data = self.model_dump(mode="json", exclude_none=True)
        tables = {key: value for key, value in data.items() if isinstance(value, dict) and value}
        lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
        for key, table in tables.items():
            entries = {name: value for name, value in table.items() if value != {}}
            lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in entries.items())]
        return "\n".join(lines) + "\n"

    @pydantic.field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(NAME_PATTERN.strip("^$"), name):
            raise ValueError(
                f"{name!r} is not made of lower-case letters, digits, dots and hyphens, the first no hyphen"
            )
        return name

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Target:
        wrong = [f for f in self.features if (f in ARM_FEATURES) != (self.architecture == "aarch64")]
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
    """Write a value as TOML: strings, numbers, booleans and lists look as in JSON."""
    if isinstance(value, dict):
        keys = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in value}
        return f"{{ {', '.join(f'{keys[key]} = {_toml(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    return json.dumps(value, ensure_ascii=False)
