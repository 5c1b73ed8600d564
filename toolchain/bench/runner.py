"""One model in one process of its own, driven line by line. The only file a device needs.

Runs with Python 3.9 or newer, numpy and onnxruntime; nothing of the toolchain is imported, so that a
transport can copy this one file. JSON lines come in on stdin and one JSON line answers each on stdout
(whatever else is printed goes to stderr). The process blocks on stdin between commands, so several
runners can be interleaved A B A B without disturbing each other.

    {"model": path, "threads": n, "session_options": {key: value}, "seed": n, "dims": {axis: size},
     "feed": {"path": npz, "names": [input, ...]} or null}
                                   -> {"onnxruntime": version, "baseline_bytes": n}
    {"do": "load"}                 -> {"load_ms": t, "peak_load_bytes": n, "peak_reset": bool}
    {"do": "warmup", "seconds": s} -> {"first_ms": t, "runs": n, "settled": bool}
    {"do": "round", "seconds": s, "runs": n} -> {"samples_ms": [t, ...]}
    {"do": "memory"}               -> {"peak_run_bytes": n}
    end of input                   -> the process ends

A failure ends the process with code 1 and one line on stderr that names it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import sys
import time
import traceback
from types import TracebackType
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in toolchain/__init__.py; read when imported
import onnxruntime as ort

AGREEMENT = 0.05  # Two warm-up windows whose medians lie this close are steady.
PATIENCE = 8  # Warm-up gives up after so many times the time asked for.

DTYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool", "string": "str"}
DTYPES.update({name: name for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")})


def main() -> None:
    """Answer the lines of stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # A stray print of a native library must not break the protocol.
    sys.excepthook = one_line

    def answer(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    gc.disable()
    answer({"onnxruntime": ort.__version__, "baseline_bytes": status_bytes("VmRSS")})
    session: Any = None
    reply: dict[str, Any]
    feed: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "load":
            reset = reset_peak()
            start = time.perf_counter()
            session = load(job)
            reply = {"load_ms": (time.perf_counter() - start) * 1e3, "peak_load_bytes": status_bytes("VmHWM")}
            reply["peak_reset"] = reset and reset_peak()
        elif command["do"] == "warmup":
            feed = read_feed(job["feed"]) if job["feed"] else make_feed(session, job["dims"], job["seed"])
            reply = {"first_ms": repeat(session, feed, 0, 1)[0], **warm_up(session, feed, command["seconds"])}
        elif command["do"] == "round":
            repeat(session, feed, 0.05, 1)  # Other processes have had the caches meanwhile.
            reply = {"samples_ms": repeat(session, feed, command["seconds"], command["runs"])}
        else:
            reply = {"peak_run_bytes": status_bytes("VmHWM")}
        gc.collect()
        rest()
        answer(reply)


def load(job: dict[str, Any]) -> Any:
    """A session on the CPU provider with exactly the threads and options asked for."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in job["session_options"].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])


def read_feed(feed: dict[str, Any]) -> dict[str, Any]:
    """The arrays of an ``.npz``, in order, under the inputs' names."""
    with np.load(feed["path"]) as arrays:
        return {name: arrays[f"arr_{i}"] for i, name in enumerate(feed["names"])}


def make_feed(session: Any, dims: dict[str, int], seed: int) -> dict[str, Any]:
    """Normal noise for float inputs, zeros for integers and strings, true for bool; unknown axes are 1 long."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        name = value.type.replace("tensor(", "").rstrip(")")
        if name not in DTYPES:
            raise TypeError(f"no feed can be made up for input {value.name!r} of type {value.type}")
        dtype = np.dtype(DTYPES[name])
        shape = [d if isinstance(d, int) else dims.get(d, 1) for d in value.shape]
        if dtype.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feed[value.name] = np.ones(shape, dtype) if dtype.kind == "b" else np.zeros(shape, dtype)
    return feed


def repeat(session: Any, feed: dict[str, Any], seconds: float, runs: int) -> list[float]:
    """Milliseconds of single inferences, for at least so many seconds and runs."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < runs or time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, feed)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


def warm_up(session: Any, feed: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run for so many seconds, then until the medians of two windows in a row agree."""
    start, runs, last = time.perf_counter(), 0, 0.0
    while seconds > 0:
        window = repeat(session, feed, seconds / 3, 1)
        runs += len(window)
        median = statistics.median(window)
        settled = abs(median - last) <= AGREEMENT * median
        elapsed, last = time.perf_counter() - start, median
        if elapsed >= seconds and (settled or elapsed >= PATIENCE * seconds):
            return {"runs": runs, "settled": settled}
    return {"runs": 0, "settled": True}


def rest() -> None:
    """Wait, two seconds at most, until the runtime's idle threads have stopped spinning for work.

    They spin some 40 ms after an inference, on cores that the next runner needs. Turning spinning off
    would disturb more: it changes the latency that users get (doubles it, for inferences of 30 us).
    """
    for _ in range(100):
        used = time.process_time()
        time.sleep(0.02)
        if time.process_time() - used < 0.002:
            return


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, resident memory now, or VmHWM, its peak. Elsewhere the peak, always."""
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Set VmHWM back to what is resident now (proc(5), ``clear_refs``); False where that is not permitted."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback, then the error again as the last line, whole."""
    traceback.print_exception(kind, error, trace)
    sys.stderr.write(" ".join(f"{kind.__name__}: {error}".split()) + "\n")


if __name__ == "__main__":
    main()
