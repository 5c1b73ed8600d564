"""Runs one function in a process of its own and says what it took: seconds, and the peak of resident memory.

Memory is Linux's VmHWM, which never goes down, hence the fresh process. It is read after the function's module (and
what that imports) is loaded, and again at the end; the seconds are of the call alone.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import ToolchainError

ROOT = Path(__file__).parent.parent


class FreshError(ToolchainError):
    """The function raised, or its process was killed."""


@dataclass(frozen=True)
class Cost:
    """What a call took. baseline_bytes: after imports. returned: what the function gave back, through JSON."""

    seconds: float
    baseline_bytes: int
    peak_bytes: int
    returned: Any


def call(function: Callable[..., object], *arguments: object) -> Cost:
    """Call a module's function with JSON-able arguments in a fresh process.

    Raises:
        FreshError: with the last line the process wrote to stderr.
    """
    command = [sys.executable, "-W", "ignore", "-m", __name__, function.__module__, function.__name__]
    command.append(json.dumps(arguments))
    with tempfile.TemporaryDirectory(prefix="toolchain-fresh-") as folder:
        # Nothing computed before is found again, and what a peer leaves lying about goes with the folder.
        environment = {**os.environ, "TOOLCHAIN_CACHE": folder, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise FreshError(said[:240], where=function.__name__)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _peak_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _main(module: str, name: str, arguments: str) -> None:
    function = getattr(importlib.import_module(module), name)
    baseline = _peak_bytes()
    started = time.perf_counter()
    returned = function(*json.loads(arguments))
    seconds = time.perf_counter() - started
    print(json.dumps(vars(Cost(seconds, baseline, _peak_bytes(), returned))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
