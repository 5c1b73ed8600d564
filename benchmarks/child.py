"""The process that `benchmarks.fresh` starts: calls one function and writes its result and cost to a file.

    python -m benchmarks.child MODULE FUNCTION ARGUMENTS RESULT     (JSON arguments; RESULT is a file)

Standard library only, because it also runs in the peers' environments, which have other packages. Memory is Linux's
VmHWM, which never goes down: it is read after the function's module (and its imports) is loaded, and at the end.
The result is a file because the function may print.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from types import TracebackType


def _peak_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _report(result: Path, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the error that ends the process in one clause: its first line that is not empty."""
    traceback.print_exception(kind, error, trace)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    result.write_text(json.dumps({"error": f"{kind.__name__}: {lines[0]}" if lines else kind.__name__}))


def _main(module: str, name: str, arguments: str, file: str) -> None:
    result = Path(file)
    sys.excepthook = partial(_report, result)
    function = getattr(importlib.import_module(module), name)
    baseline = _peak_bytes()
    started = time.perf_counter()
    returned = function(*json.loads(arguments))
    seconds = time.perf_counter() - started
    cost = {"seconds": seconds, "baseline_bytes": baseline, "peak_bytes": _peak_bytes(), "returned": returned}
    result.write_text(json.dumps(cost))


if __name__ == "__main__":
    _main(*sys.argv[1:])
