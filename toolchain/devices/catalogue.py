"""TODO."""

from __future__ import annotations

from pathlib import Path

from toolchain.core.errors import ConfigError, did_you_mean
from toolchain.formats.target import Target


def profile_folder() -> Path:
    """Where the shipped profiles lie: inside the package when installed, else the checkout's ``targets/``."""
    packaged = Path(__file__).parents[1] / "_targets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "targets"


def known_targets() -> list[str]:
    """Names that :func:`load_target` knows, ``host`` first."""
    return ["host", *sorted(p.stem for p in profile_folder().glob("*.toml"))]


def load_target(name: str) -> Target:
    """A target by name, by the path of a profile (``.toml``), or ``host``: this machine, detected.

    Raises:
        ConfigError: unknown name (with a near match), or a profile that does not follow the schema.
    """
    if name == "host":
        from toolchain.devices.detect import detect_host

        return detect_host()
    if name.endswith((".toml", ".json")) or "/" in name:
        return Target.load(name)
    path = profile_folder() / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"unknown target {name!r}", hint=did_you_mean(name, known_targets()))
    return Target.load(path)
