"""Run one model in a process of its own, controlled line by line. A device needs no other file of the toolchain.

It needs Python 3.9 or newer, numpy and onnxruntime, and imports nothing of the toolchain, so this one file can be
copied to a device. It reads JSON lines from stdin and answers each with one JSON line on stdout; everything else that
is printed goes to stderr. The process blocks on stdin between commands, so several runners can take turns (A B A B)
without disturbing each other. Modules that only some commands need are imported by those commands, because the memory
that is reported should be that of a program that only runs the model.

    {"model": path, "threads": n, "session_options": {key: value}, "seed": n, "dims": {axis: size},
     "feed": {"path": npz, "names": [input, ...]} or null,
     "arena": bool (true), "cpus": "0-3,6", "big", "little" or null (all)}
                                   -> {"onnxruntime": version, "baseline_bytes": n, "cpus": [n, ...]}
                                   or {"refused": reason} and the process ends, where there are no such cpus
    {"do": "load"}                 -> {"load_ms": t, "peak_load_bytes": n, "peak_reset": bool}
    {"do": "warmup", "seconds": s} -> {"first_ms": t, "runs": n, "settled": bool}
    {"do": "round", "seconds": s, "runs": n} -> {"samples_ms": [t, ...], "cpu_ms": [t, ...]}
                                      cpu_ms: processor time of this thread; empty where the model uses other threads
    {"do": "memory"}               -> {"peak_run_bytes": n, "pss_run_bytes": n or null}
    {"do": "profile", "runs": n}   -> {"operators": [{"node": name, "op": type, "median_us": t}, ...]}
    end of input                   -> the process ends

A failure ends the process with exit code 1 and a line on stderr that names it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

WARMUP_TOLERANCE = 0.05  # Warm-up is complete when the medians of two windows differ by at most this share.
MAX_WARMUP_FACTOR = 8  # Warm-up ends after this many times the requested time, even if it is not steady.

DTYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool", "string": "str"}
DTYPES.update({name: name for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")})


def main() -> None:
    """Answer the lines of stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Text that a native library prints must not break the protocol.
    sys.excepthook = one_line

    def answer(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    cpus: list[int] = []
    if job.get("cpus"):
        try:
            cpus = find_cpus(job["cpus"])
        except ValueError as error:
            answer({"refused": str(error)})
            return
        os.sched_setaffinity(0, cpus)  # before the runtime counts the processors
    runtime = import_runtime()
    gc.freeze()  # the collections between rounds then skip the objects that imports created
    gc.disable()
    answer({"onnxruntime": runtime.__version__, "baseline_bytes": status_bytes("VmRSS"), "cpus": cpus})
    session: Any = None
    reply: dict[str, Any]
    feed: dict[str, Any] = {}
    infer: Callable[[], object] = list
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
            infer = bind(session, feed)
            reply = {"first_ms": repeat(infer, 0, 1)[0][0], **warm_up(infer, command["seconds"])}
        elif command["do"] == "round":
            repeat(infer, min(0.05, command["seconds"] / 5), 1)  # Other processes have used the caches meanwhile.
            samples, computed = repeat(infer, command["seconds"], command["runs"])
            known = job["threads"] == 1 and min(computed) > 0  # 0: the clock is too coarse
            reply = {"samples_ms": samples, "cpu_ms": computed if known else []}
        elif command["do"] == "profile":
            reply = {"operators": profile(job, feed, command["runs"])}
        else:
            reply = {"peak_run_bytes": status_bytes("VmHWM"), "pss_run_bytes": pss_bytes()}
        gc.collect()
        if job["threads"] > 1:  # with one thread there are no idle ones
            wait_for_idle_threads()
        answer(reply)


def import_runtime() -> Any:
    """Import onnxruntime, which then reads its environment variables and the processors it may use."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in toolchain/__init__.py
    import onnxruntime

    return onnxruntime


def find_cpus(text: str, root: Path = Path("/")) -> list[int]:
    """Return the processors of a list like ``0-3,6``, or all of the fastest (``big``) or slowest (``little``) kind.

    Args:
        text: the list, ``big`` or ``little``.
        root: the folder that holds ``sys``.

    Raises:
        ValueError: some are not this machine's, or it has one kind only; the message is a sentence.
    """
    allowed = sorted(os.sched_getaffinity(0)) if root == Path("/") else None
    if text in ("big", "little"):
        speeds = {}
        for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
            for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
                if (folder / name).is_file():
                    speeds[int(folder.name[3:])] = int((folder / name).read_text())
                    break
        if len(set(speeds.values())) < 2:
            raise ValueError("this machine has one kind of core only")
        chosen = max(speeds.values()) if text == "big" else min(speeds.values())
        cpus = sorted(cpu for cpu, speed in speeds.items() if speed == chosen)
    else:
        ends = [part.partition("-") for part in text.split(",")]
        if not all(first.isdecimal() and (last.isdecimal() or not dash) for first, dash, last in ends):
            raise ValueError(f"{text!r} names no processors")
        cpus = sorted({cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1)})
    if not cpus or (allowed is not None and not set(cpus) <= set(allowed)):
        raise ValueError(f"{text!r} are not all among this machine's processors {allowed}")
    return cpus


def load(job: dict[str, Any], profile_to: str = "") -> Any:
    """Create a session on the CPU provider with exactly the requested threads and options.

    Args:
        job: the first line.
        profile_to: prefix of the file for the runtime's profile; empty makes no profile.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = job.get("arena", True)
    options.enable_profiling = bool(profile_to)
    options.profile_file_prefix = profile_to
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in job["session_options"].items():
        options.add_session_config_entry(key, value)
    return runtime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])


def read_feed(feed: dict[str, Any]) -> dict[str, Any]:
    """Read the arrays of an ``.npz`` file, in order, under the inputs' names."""
    with np.load(feed["path"]) as arrays:
        return {name: arrays[f"arr_{i}"] for i, name in enumerate(feed["names"])}


def make_feed(session: Any, dims: dict[str, int], seed: int) -> dict[str, Any]:
    """Generate inputs: normal noise for floats, zeros for integers and strings, true for bools.

    Args:
        session: the session whose inputs are generated.
        dims: sizes of named axes; every other unknown axis has size 1.
        seed: seed of the noise.

    Raises:
        TypeError: an input is not a tensor of a known type.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        name = value.type.replace("tensor(", "").rstrip(")")
        if name not in DTYPES:
            raise TypeError(f"no values can be generated for input {value.name!r} of type {value.type}")
        dtype = np.dtype(DTYPES[name])
        shape = [d if isinstance(d, int) else dims.get(d, 1) for d in value.shape]
        if dtype.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feed[value.name] = np.ones(shape, dtype) if dtype.kind == "b" else np.zeros(shape, dtype)
    return feed


def bind(session: Any, feed: dict[str, Any]) -> Callable[[], object]:
    """Return a call without arguments that runs one inference; inputs and outputs are bound once.

    ``session.run`` converts arrays to tensors and back at each call, which takes 3 to 10 us in Python and not in the
    model. Strings, sequences and maps cannot be bound.
    """
    values = session.get_inputs() + session.get_outputs()
    if not all(value.type.startswith("tensor(") and "string" not in value.type for value in values):
        return lambda: session.run(None, feed)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for value in session.get_outputs():
        binding.bind_output(value.name)
    return lambda: session.run_with_iobinding(binding)


def repeat(infer: Callable[[], object], seconds: float, runs: int) -> tuple[list[float], list[float]]:
    """Time single inferences until both `seconds` and `runs` are reached.

    Returns:
        Milliseconds of each inference: elapsed, and processor time of this thread.
    """
    samples: list[float] = []
    computed: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < runs or time.perf_counter() < end:
        before = time.thread_time_ns()
        start = time.perf_counter_ns()
        infer()
        samples.append((time.perf_counter_ns() - start) / 1e6)
        computed.append((time.thread_time_ns() - before) / 1e6)
    return samples, computed


def warm_up(infer: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Run for `seconds`, then until the medians of two consecutive windows agree."""
    start, runs, last = time.perf_counter(), 0, 0.0
    while seconds > 0:
        window, _ = repeat(infer, seconds / 3, 1)
        runs += len(window)
        median = middle(window)
        settled = abs(median - last) <= WARMUP_TOLERANCE * median
        elapsed, last = time.perf_counter() - start, median
        if elapsed >= seconds and (settled or elapsed >= MAX_WARMUP_FACTOR * seconds):
            return {"runs": runs, "settled": settled}
    return {"runs": 0, "settled": True}


def profile(job: dict[str, Any], feed: dict[str, Any], runs: int) -> list[dict[str, Any]]:
    """Time each operator with the runtime's own profiler, and return them in the order in which they first run.

    The time is the median over the runs. The profiler rounds every execution down to a whole microsecond and takes a
    few microseconds itself. Executions of an operator in a loop are added up.
    """
    import tempfile
    from bisect import bisect_right

    with tempfile.TemporaryDirectory(prefix="toolchain-profile-") as folder:
        session = load(job, str(Path(folder) / "profile"))
        for _ in range(3 + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[3:]
    times: dict[tuple[str, str], list[float]] = {}
    for event in sorted(events, key=lambda e: int(e["ts"])):
        run = bisect_right(starts, event["ts"]) - 1
        if run >= 0 and event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"][: -len("_kernel_time")], event["args"]["op_name"]
            times.setdefault(key, [0.0] * len(starts))[run] += event["dur"]
    return [{"node": node, "op": op, "median_us": middle(us)} for (node, op), us in times.items()]


def middle(values: list[float]) -> float:
    """Return the median."""
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def wait_for_idle_threads() -> None:
    """Wait, two seconds at most, until the runtime's idle threads have stopped spinning for work.

    They spin for about 40 ms after an inference, on cores that the next runner needs. Turning spinning off would change
    the latency that users get (for inferences of 30 us it doubles).
    """
    for _ in range(100):
        used = time.process_time()
        time.sleep(0.02)
        if time.process_time() - used < 0.002:
            return


def status_bytes(field: str) -> int:
    """Read a field of /proc/self/status: VmRSS, the resident memory now, or VmHWM, its peak.

    Without that file, both are the peak that the system reports.
    """
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def pss_bytes() -> int | None:
    """Read the resident memory, with shared pages divided among the processes that share them; None if not on Linux."""
    try:
        with open("/proc/self/smaps_rollup") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
    except OSError:
        return None


def reset_peak() -> bool:
    """Set VmHWM to the present resident memory (proc(5), ``clear_refs``); False if that is not permitted."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback, then the whole error again as one last line."""
    import traceback

    traceback.print_exception(kind, error, trace)
    sys.stderr.write(" ".join(f"{kind.__name__}: {error}".split()) + "\n")


if __name__ == "__main__":
    main()
