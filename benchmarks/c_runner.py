"""Compares the runner in C with the runner in Python, on this machine, with the same models and feeds:

    python -m benchmarks.c_runner [MODEL ...] [--starts 6] [-o FOLDER]

Each start makes fresh processes, Python, C and Python again, and interleaves their rounds. The second Python process
compared with the first shows the machine's noise. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks import tables, timing
from benchmarks.models import MODELS, missing
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.job import BenchJob, first_line
from toolchain.benchmark.local import Local, LocalRunner
from toolchain.benchmark.native.build import build, host_compiler
from toolchain.benchmark.native.runner import NativeRunner, store_feed_npy
from toolchain.benchmark.place import Runner
from toolchain.core.files import write_text
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Measurement

SUBJECTS = ("mnist_cnn", "svhn_cnn", "mobilenet_v2")
SETTINGS = Bench(warmup_s=0.5, rounds=60, min_time_s=6.0, min_runs=360)
LIBRARY = Path(onnxruntime.__file__).parent / f"capi/libonnxruntime.so.{onnxruntime.__version__}"
COLUMNS = (
    "model",
    "Python ms",
    "C ms",
    "C / Python",
    "difference µs",
    "Python / Python",
    "Python MiB",
    "C MiB",
    "Python load MiB",
    "C load MiB",
)


@dataclass(frozen=True)
class BothRunners(Local):
    """This machine with both runners: the one in C runs the models that lie in a folder named ``c``.

    scratch: a folder for the feed of the runner in C.
    """

    scratch: Path

    def open(self, job: BenchJob) -> Runner:
        if job.path.parent.name != "c" or job.feed is None:
            return LocalRunner(job)
        line = first_line(job, str(job.path), store_feed_npy(job.feed, self.scratch / "feed"))
        return NativeRunner([str(build(host_compiler())), str(LIBRARY)], job, line, library=LIBRARY)


def start(name: str) -> Sequence[Measurement]:
    """Time the model in Python, in C and in Python again."""
    model = MODELS[name].onnx_path()
    feed = next(iter(MODELS[name].calibration(1)))
    with tempfile.TemporaryDirectory(prefix="toolchain-c-runner-") as folder:
        subjects = []
        for variant in ("python", "c", "again"):
            place = Path(folder, variant)
            place.mkdir()
            (place / model.name).symlink_to(model)
            subjects.append(Subject(place / model.name, name, variant, feeds=feed))
        return bench(subjects, settings=SETTINGS, threads=1, place=BothRunners(Path(folder))).measurements


def row(name: str, starts: Sequence[Sequence[Measurement]]) -> list[str]:
    """The table's line for a model."""

    def milliseconds(i: int) -> float:
        return float(np.median([timing.latency(one[i]).p50_ms for one in starts]))

    def ratios(i: int) -> list[float]:
        return [stats.speedup(timing.latency(one[i]), timing.latency(one[0])).value for one in starts]

    def memory(i: int, field: str) -> str:
        return tables.mib(float(np.median([getattr(one[i].memory, field) for one in starts])))

    c, again = shares(ratios(1)), shares(ratios(2))
    times = [f"{milliseconds(0):.4f}", f"{milliseconds(1):.4f}"]
    compared = [shown(c), f"{(1 - c[0]) * milliseconds(0) * 1e3:.1f}", shown(again)]
    return [name, *times, *compared, *(memory(i, f"peak_{when}_bytes") for when in ("run", "load") for i in (0, 1))]


def shares(ratios: Sequence[float]) -> tuple[float, float]:
    """The geometric mean over the starts, and half of its 95 % interval (Student's t, for 3 to 12 starts)."""
    quantiles = (4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
    logs = np.log(ratios)
    half = quantiles[len(logs) - 3] * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean())), float(half)


def shown(share: tuple[float, float]) -> str:
    return f"{share[0]:.3f} ±{share[1]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SUBJECTS, metavar="MODEL")
    parser.add_argument("--starts", type=int, default=6, choices=range(3, 13))
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = []
    for name in options.models:
        reason = missing(name)
        if reason is not None:
            print(f"{name}: {reason}")
            continue
        starts = [start(name) for _ in range(options.starts)]
        host = starts[0][0].host
        rows.append(row(name, starts))
        print(" | ".join(rows[-1]), flush=True)
    if not rows:
        return
    about = (
        f"{options.starts} starts, in each of them {SETTINGS.rounds} interleaved rounds of "
        f"{SETTINGS.min_time_s / SETTINGS.rounds:g} s, one thread. Ratios by `stats.speedup`: the mean over "
        "the starts with its 95 % interval. Memory is the peak of a process while it runs, and while it loads."
    )
    table = tables.markdown(COLUMNS, rows)
    text = f"# The runner in C and the one in Python\n\n{tables.describe(host)}\n\n{about}\n\n{table}\n"
    write_text(options.output / f"c-runner-{tables.slug(host)}.md", text)


if __name__ == "__main__":
    main()
