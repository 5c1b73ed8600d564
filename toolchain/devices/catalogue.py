"""The profiles that come with the toolchain, and loading a profile by name or path."""

from __future__ import annotations

from pathlib import Path

from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.formats.target import Target


def profile_folder() -> Path:
    """Return the folder of the shipped profiles: in the package when installed, else ``targets/`` of the checkout."""
    packaged = Path(__file__).parents[1] / "_targets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "targets"


def known_targets() -> list[str]:
    """List the names that :func:`load_target` knows, ``host`` first."""
    return ["host", *sorted(p.stem for p in profile_folder().glob("*.toml"))]


def load_target(name: str | Path) -> Target:
    """Load the profile of a target.

    Args:
        name: the name of a shipped profile, the path of a profile (``.toml`` or ``.json``), or ``host``: this machine,
            detected.

    Raises:
        ConfigError: the name is unknown, or the profile does not follow the schema.
        DeviceError: ``host``, and this machine is neither x86_64 nor aarch64.
    """
    name = str(name)
    if name == "host":
        from toolchain.devices.detect import detect_host

        return detect_host()
    if name.endswith((".toml", ".json")) or "/" in name:
        return Target.load(name)
    path = profile_folder() / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"unknown target {name!r}", hint=did_you_mean(name, known_targets()))
    return Target.load(path)


def shipped_targets() -> list[Target]:
    """Load all shipped profiles, the one with the least memory first."""
    targets = [Target.load(path) for path in sorted(profile_folder().glob("*.toml"))]
    return sorted(targets, key=lambda target: target.memory_mib or 0)
