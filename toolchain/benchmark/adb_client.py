"""`AdbClient`: calls of the user's ``adb`` for one device, copies of files, and the errors when one fails.

``adb shell -T`` runs a command without a terminal: its stdin, stdout, stderr and exit code are passed on like those of
a local command (the feature ``shell_v2``, Android 7 or newer). ``$TOOLCHAIN_ADB`` is the client, ``adb`` where it is
not set.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from toolchain.benchmark.process import ProcessEnd
from toolchain.core.errors import DeviceError, one_line

CALL_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 1800.0
STORAGE_FULL_MESSAGES = ("No space left on device", "Disk quota exceeded")
READY_STATE = "device"
STATE_HINTS = {
    "unauthorized": "unlock it and allow USB debugging from this computer",
    "authorizing": "unlock it and allow USB debugging from this computer",
    "offline": "unplug it and plug it in again, or run `adb reconnect`",
    "no permissions": "give your user access to its USB device; `adb devices` shows more",
}


@dataclass(frozen=True)
class AdbClient:
    """The client for one device, ``adb -s SERIAL``. Every method raises DeviceError if the client or the device fails.

    Attributes:
        serial: the device's name in ``adb devices``.
    """

    serial: str

    def check(self) -> None:
        """Raise DeviceError unless the device is connected, trusts this computer and is new enough."""
        devices = self._devices()
        state = devices.get(self.serial)
        if state is None:
            shown = ", ".join(f"{serial} ({state})" for serial, state in devices.items()) or "none"
            hint = "connect it and turn on USB debugging in its developer options"
            raise self.error(f"no such device; `adb devices` shows {shown}", hint)
        if state != READY_STATE:
            hint = next((hint for start, hint in STATE_HINTS.items() if state.startswith(start)), "start Android on it")
            raise self.error(f"is not ready: `adb devices` shows it as {state}", hint)
        if "shell_v2" not in self._run("features").split():
            what = "is too old to report whether a command worked"
            raise self.error(what, "use a device with Android 7 or newer")

    def start(self, command: str) -> list[str]:
        """Return the local command that runs a command in the device's shell."""
        return [*self._command(), "shell", "-T", command]

    def shell(self, command: str) -> str:
        """Run a command in the device's shell and return its stdout."""
        return self._run("shell", "-T", command)

    def push(self, path: Path, there: str) -> None:
        """Copy a file to the device."""
        self._run("push", str(path), there, timeout_s=COPY_TIMEOUT_S)

    def pull(self, there: str, path: Path) -> None:
        """Copy a file from the device."""
        self._run("pull", there, str(path), timeout_s=COPY_TIMEOUT_S)

    def lost(self) -> DeviceError | None:
        """Return the error for a device that is no longer connected; None if it is connected."""
        state = self._devices().get(self.serial)
        if state == READY_STATE:
            return None
        return self.error(f"the connection was lost, it is {state or 'gone'}", "check the cable, then try again")

    def error(self, what: str, hint: str) -> DeviceError:
        """Return an error about this device."""
        return DeviceError(what, where=f"adb:{self.serial}", hint=hint)

    def call(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run ``adb`` once; the caller looks at the exit code."""
        command = [*self._command(), *arguments]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except OSError as error:
            what = f"{command[0]} cannot be started ({error.strerror})"
            raise self.error(what, "install Android's platform-tools, or set TOOLCHAIN_ADB") from None
        except subprocess.TimeoutExpired:
            what = f"gave no answer to `adb {arguments[0]}` within {timeout_s:g} s"
            raise self.error(what, "unplug it and plug it in again") from None

    def _run(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
        call = self.call(*arguments, timeout_s=timeout_s)
        if call.returncode == 0:
            return call.stdout
        output = f"{call.stdout}\n{call.stderr}"
        full = next((message for message in STORAGE_FULL_MESSAGES if message in output), None)
        if full is not None:
            raise self.error(f"its storage is full ({full})", "free some space there")
        reason = one_line(ProcessEnd(call.returncode, output).last_line or f"exit code {call.returncode}")
        what = f"adb {arguments[0]} failed ({reason})"
        raise self.lost() or self.error(what, f"see whether `adb -s {self.serial} shell` works")

    def _devices(self) -> dict[str, str]:
        """Return the state of each device by serial number, as ``adb devices`` shows it."""
        lines = self.call("devices").stdout.splitlines()
        return {serial: state.strip() for serial, tab, state in (line.partition("\t") for line in lines) if tab}

    def _command(self) -> list[str]:
        return [os.environ.get("TOOLCHAIN_ADB", "adb"), "-s", self.serial]
