#!/usr/bin/env -S python3 -IS
"""A scripted ``adb`` whose device is this machine. The folder ``$FAKE_ADB`` controls its behaviour:

    devices    the lines that ``adb devices`` prints after its first one: serial, tab, state
    features   the output of ``adb features``
    full       where it exists, nothing can be copied to the device
    bin/       programs of the device, found before those of this machine
    log        every call is appended here

A command of the device's shell runs in a session of its own, as on a device: when this client is killed, the command's
stdin ends, but the command is not killed.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

HOME = Path(os.environ["FAKE_ADB"])


def main(arguments: list[str]) -> int:
    with (HOME / "log").open("a") as log:
        log.write(" ".join(arguments).replace("\n", " ") + "\n")
    serial = arguments[1]
    command, *rest = arguments[2:]
    devices = (HOME / "devices").read_text()
    if command == "devices":
        sys.stdout.write(f"List of devices attached\n{devices}\n")
        return 0
    states = dict(line.split("\t") for line in devices.splitlines())
    if states.get(serial) != "device":
        return refuse(f"adb: device {serial!r} not found" if serial not in states else "error: device offline")
    if command == "features":
        sys.stdout.write((HOME / "features").read_text())
        return 0
    if command in ("push", "pull"):
        return copy(*rest, full=command == "push" and (HOME / "full").exists())
    assert (command, rest[0]) == ("shell", "-T")
    return shell(" ".join(rest[1:]))


def refuse(sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return 1


def copy(source: str, target: str, *, full: bool) -> int:
    if full:
        error = "remote couldn't create file: No space left on device"
        return refuse(f"adb: error: failed to copy '{source}' to '{target}': {error}")
    shutil.copy(source, target)
    sys.stdout.write(f"{source}: 1 file pushed, 0 skipped.\n")
    return 0


def shell(command: str) -> int:
    path = f"{HOME / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.PIPE, start_new_session=True, env={**os.environ, "PATH": path}
    )

    def forward() -> None:
        while content := os.read(0, 1 << 16):
            os.write(process.stdin.fileno(), content)
        process.stdin.close()

    threading.Thread(target=forward, daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # not waiting for the thread that reads stdin
