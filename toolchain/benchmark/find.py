"""`find_place`: the place that a user names, such as ``ssh:pi``."""

from __future__ import annotations

from pathlib import Path

from toolchain.benchmark import emulator
from toolchain.benchmark.adb import Adb
from toolchain.benchmark.emulated import Emulated
from toolchain.benchmark.local import Local
from toolchain.benchmark.place import Place
from toolchain.benchmark.ssh import Ssh
from toolchain.core.errors import InputError, did_you_mean

PLACE_FORMS = {"local": "local", "ssh": "ssh:HOST", "adb": "adb:SERIAL", "emulator": "emulator:CPU"}
"""Kinds of places, and how each is written."""


def find_place(text: str, *, python: str | None = None, library: Path | None = None, ndk: Path | None = None) -> Place:
    """Return the place called `text`; no connection is made yet.

    Args:
        text: ``local``, ``ssh:HOST``, ``adb:SERIAL`` or ``emulator:CPU``.
        python: the interpreter to use on an SSH host; None finds or installs one.
        library: the ``libonnxruntime.so`` for an Android device; without it only `detect` works there.
        ndk: the Android NDK's folder; None looks for an installed one.

    Raises:
        InputError: no such kind of place, its name is missing, or an option does not apply to it.
        DeviceError: no such emulated CPU.
    """
    kind, colon, name = text.partition(":")
    if kind not in PLACE_FORMS or (kind == "local" and colon):
        near = did_you_mean(kind, PLACE_FORMS)
        hint = near.replace("'?", f"{colon}{name}'?") if near.startswith("did") and kind != "local" else ""
        forms = f"give one of: {', '.join(PLACE_FORMS.values())}"
        raise InputError(f"unknown place {text!r}", where="--on", hint=hint or forms)
    if kind != "local" and not name:
        raise InputError(f"{text!r} does not say which", where="--on", hint=f"give {PLACE_FORMS[kind]}")
    for option, given, of in (("--python", python, "ssh"), ("--library", library, "adb"), ("--ndk", ndk, "adb")):
        if given is not None and kind != of:
            raise InputError(f"has no meaning for {text}", where=option, hint=f"give it with --on {PLACE_FORMS[of]}")
    if kind == "ssh":
        return Ssh(name, python)
    if kind == "adb":
        return Adb(name, library, ndk)
    if kind == "emulator":
        emulator.find_cpu(name)
        return Emulated(name)
    return Local()
