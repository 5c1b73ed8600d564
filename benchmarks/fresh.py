"""Runs one function in a process of its own and measures its seconds and its peak of resident memory.

Memory is Linux's VmHWM, which never goes down; therefore the process is fresh (`benchmarks.child`). It is read after
the function's module (and its imports) is loaded, and again at the end. The seconds are those of the call alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.core.errors import ToolchainError

ROOT = Path(__file__).parent.parent
HERE = sys.executable
LIMIT_S = 1200.0
SILENT = {"OLIVE_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}
"""Switches off the usage reports that peers send to their makers, which would be measured as well."""


class FreshError(ToolchainError):
    """The function raised, took too long, or its process was killed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a call.

    Attributes:
        seconds: of the call.
        baseline_bytes: peak memory after imports.
        peak_bytes: peak memory at the end.
        returned: the function's result, through JSON.
    """

    seconds: float
    baseline_bytes: int
    peak_bytes: int
    returned: Any


def call(
    function: Callable[..., object] | str, *arguments: object, python: str = HERE, limit_s: float = LIMIT_S
) -> Cost:
    """Call a module's function with JSON-able arguments in a fresh process.

    Args:
        function: the function, or its name ``module:function`` if only another interpreter can import it.
        arguments: of the function.
        python: the interpreter.
        limit_s: longest time.

    Raises:
        FreshError: the function raised (its error in one clause), or took longer than `limit_s`.
    """
    where = function if isinstance(function, str) else f"{function.__module__}:{function.__name__}"
    module, _, name = where.partition(":")
    with tempfile.TemporaryDirectory(prefix="toolchain-fresh-") as folder:
        result = Path(folder) / "result.json"
        command = [python, "-W", "ignore", "-m", "benchmarks.child", module, name, json.dumps(arguments), str(result)]
        # The cache is empty, and files that a peer leaves behind are removed with the folder.
        environment = {**os.environ, **SILENT, "TOOLCHAIN_CACHE": folder, "TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            raise FreshError(f"given up after {limit_s / 60:.0f} minutes", where=name) from None
        written = json.loads(result.read_text()) if result.exists() else {"error": _last_words(done)}
    if "error" in written:
        raise FreshError(written["error"][:240], where=name)
    return Cost(**written)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a process that wrote no result: it was killed, or never started."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
