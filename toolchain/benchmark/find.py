"""TODO."""

from __future__ import annotations

from pathlib import Path

from toolchain.benchmark.place import Place
from toolchain.core.errors import InputError, did_you_mean

PLACES = {"local": "local", "ssh": "ssh:HOST", "adb": "adb:SERIAL", "emulator": "emulator:CPU"}


def find_place(text: str, *, python: str | None = None, library: Path | None = None, ndk: Path | None = None) -> Place:
    """The place called `text`, one of `PLACES`; nothing is reached yet.

    Args:
        text: ``local``, ``ssh:HOST``, ``adb:SERIAL`` or ``emulator:CPU``.
        python: the interpreter to use on an SSH host; None finds or makes one.
        library: the ``libonnxruntime.so`` for an Android device; without it only `detect` works there.
        ndk: the Android NDK's folder; None looks for an installed one.

    Raises:
        InputError: no such kind of place, or its name is missing. DeviceError: no such emulated CPU.
    """
    kind, colon, name = text.partition(":")
    if kind not in PLACES or (kind == "local" and colon):
        near = did_you_mean(kind, PLACES)
        hint = near.replace("'?", f"{colon}{name}'?") if near.startswith("did") and kind != "local" else ""
        raise InputError(
            f"unknown place {text!r}", where="--on", hint=hint or f"give one of: {', '.join(PLACES.values())}"
        )
    if kind != "local" and not name:
        raise InputError(f"{text!r} does not say which", where="--on", hint=f"give {PLACES[kind]}")
    for option, given, of in (("--python", python, "ssh"), ("--library", library, "adb"), ("--ndk", ndk, "adb")):
        if given is not None and kind != of:
            raise InputError(f"has no meaning for {text}", where=option, hint=f"give it with --on {PLACES[of]}")
    from toolchain.benchmark import adb, emulated, emulator, local, ssh

    if kind == "ssh":
        return ssh.Ssh(name, python)
    if kind == "adb":
        return adb.Adb(name, library, ndk)
    if kind == "emulator":
        emulator.find_cpu(name)
        return emulated.Emulated(name)
    return local.Local()
