"""Tests how reliable comparisons are on a shared machine: the same file twice, and a file that is 5 % slower.

``python -m benchmarks.trust [MODEL ...]`` writes ``results/trust-CPU.md`` and ``.json``, and keeps the trials of other
models there. A trial is one run of `toolchain.benchmark.bench` on two files for a few seconds, and the result of
`stats.difference` for them. It should be *no significant difference* for the same file in 95 % of the trials, and
*slower* for the slower file in 90 %.

The slower file has one more product: a ``MatMul`` of the input with a constant, whose result is an additional output.
Its width is chosen so that it costs 5 %. Then the two files are compared in a run eight times as long as a trial, which
gives the true slowdown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import suite, tables
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.benchmark.host import describe_host
from toolchain.benchmark.stats import Estimate
from toolchain.core.errors import ToolchainError
from toolchain.core.files import write_text
from toolchain.formats.recipe import Bench

MODELS = ("svhn_cnn", "mnist_cnn")
SLOWER = 0.05
START = 128  # the first width tried
NEAR = 0.004
TRIAL = Bench(warmup_s=0.05, min_time_s=1.2, min_runs=40, rounds=40, processes=3)
MIDDLE = Bench(warmup_s=0.05, min_time_s=3.6, min_runs=120, rounds=120, processes=4)
LONG = Bench(warmup_s=0.05, min_time_s=9.6, min_runs=320, rounds=320, processes=8)


@dataclass(frozen=True)
class Trial:
    """One comparison.

    Attributes:
        slower: time of the second file over that of the first, minus 1.
        low, high: its 95 % interval.
        significant: the difference is significant.
        load: the kernel's load average before the trial.
        seconds: length of the trial.
    """

    slower: float
    low: float
    high: float
    significant: bool
    load: float
    seconds: float


@dataclass(frozen=True)
class Case:
    """All trials of one file.

    Attributes:
        name: of the file.
        ms: its median time.
        width: of the additional product in the slower file.
        true: slowdown measured in the long run.
        same: trials with the same file twice.
        slower: trials with the slower file.
    """

    name: str
    ms: float
    width: int
    true: Estimate
    same: list[Trial]
    slower: list[Trial]


def slowed(path: Path, width: int, into: Path) -> Path:
    """Write the model with one more product: its first input times a constant [last axis, width]."""
    model = onnx.load(path)
    source = model.graph.input[0]
    dims = [dim.dim_value or dim.dim_param for dim in source.type.tensor_type.shape.dim]
    weights = np.random.default_rng(0).standard_normal((dims[-1], width)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "more_weights"))
    model.graph.node.append(helper.make_node("MatMul", [source.name, "more_weights"], ["more"], name="more"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [*dims[:-1], width]))
    file = into / f"{path.stem}.slower-{width}.onnx"
    onnx.save(model, file)
    return file


def compare(first: Path, second: Path, settings: Bench) -> tuple[Estimate, float]:
    """The speed-up of the second file, with one thread, and the median of the first (ms)."""
    subjects = [Subject(first, "model", "first"), Subject(second, "model", "second")]
    a, b = (row.latency for row in bench(subjects, settings=settings, threads=1).measurements)
    assert a is not None
    assert b is not None
    return stats.speedup(a, b), a.p50_ms


def calibrated(path: Path, folder: Path) -> tuple[Path, int]:
    """Find the width that makes the file 5 % slower, to within 0.4 points, by false position.

    Returns:
        The slower file, and the width.
    """
    low, high, width = (0, 0.0), None, START
    while True:
        file = slowed(path, width, folder)
        longer = 1 / compare(path, file, MIDDLE)[0].value - 1
        if abs(longer - SLOWER) < NEAR:
            return file, width
        if longer < SLOWER:
            low = width, longer
        else:
            high = width, longer
        if high is None:
            width *= 2
        elif high[0] - low[0] <= 1:
            raise ToolchainError("no width is 5 % slower", where=path, hint="run it again, or another model")
        else:
            part = (SLOWER - low[1]) / (high[1] - low[1])
            width = min(high[0] - 1, max(low[0] + 1, low[0] + round(part * (high[0] - low[0]))))


def trial(first: Path, second: Path) -> Trial:
    load, start = os.getloadavg()[0], time.monotonic()
    speed, _ = compare(first, second, TRIAL)
    significant = not stats.difference(speed).startswith("no ")
    ends = (1 / speed.high - 1, 1 / speed.low - 1)
    return Trial(1 / speed.value - 1, *ends, significant, load, time.monotonic() - start)


def run(name: str, path: Path, trials: int, say: Callable[[str], None]) -> Case:
    with tempfile.TemporaryDirectory(prefix="toolchain-trust-") as text:
        slower, width = calibrated(path, Path(text))
        speed, ms = compare(path, slower, LONG)
        true = Estimate(1 / speed.value - 1, 1 / speed.high - 1, 1 / speed.low - 1)
        say(f"{name}: a width of {width} is {true.value:.1%} slower ({true.low:.1%} to {true.high:.1%})")
        same, other = [], []
        for number in range(trials):
            same.append(trial(path, path))
            other.append(trial(path, slower))
            seen = f"{same[-1].slower:+.1%} {same[-1].significant}, {other[-1].slower:+.1%} {other[-1].significant}"
            say(f"{name}: trial {number + 1} of {trials}: {seen}")
    return Case(name, ms, width, true, same, other)


def report(cases: list[Case]) -> str:
    """Write the page of results."""
    columns = [
        "file", "ms", "true slowdown", "same: no difference", "slower: detected", "median", "load", "s per trial"
    ]  # fmt: skip
    rows = []
    for case in cases:
        every = [*case.same, *case.slower]
        rows.append([
            case.name,
            f"{case.ms:.3f}",
            f"{case.true.value:.1%} [{case.true.low:.1%}, {case.true.high:.1%}]",
            f"{sum(not t.significant for t in case.same)} of {len(case.same)}",
            f"{sum(t.significant and t.slower > 0 for t in case.slower)} of {len(case.slower)}",
            f"{np.median([t.slower for t in case.slower]):.1%}",
            f"{min(t.load for t in every):.1f} to {max(t.load for t in every):.1f}",
            f"{np.median([t.seconds for t in every]):.1f}",
        ])  # fmt: skip
    same, slower = [t for case in cases for t in case.same], [t for case in cases for t in case.slower]
    equal, caught = sum(not t.significant for t in same), sum(t.significant and t.slower > 0 for t in slower)
    return f"""# The same file twice, and one 5 % slower

`python -m benchmarks.trust`, one thread. {tables.describe(describe_host())}
Other programs used the machine all the time; *load* is the kernel's load average before the trials.

- The same file twice: *no significant difference* in {equal} of {len(same)} trials ({equal / len(same):.1%}).
- A file that is 5 % slower: *slower* in {caught} of {len(slower)} trials ({caught / len(slower):.1%}).

{tables.markdown(columns, rows)}

The slower file has one more product, whose width makes it 5 % slower; *true slowdown* comes from one run eight times as
long as a trial, with its 95 % interval; *median* is the median of the trials. A trial is {TRIAL.rounds} rounds of \
{TRIAL.min_time_s / TRIAL.rounds * 1e3:.0f} ms
of each file, shared by {TRIAL.processes} processes.
"""


def stored(path: Path) -> list[Case]:
    """Read the cases of a file; none if there is no file."""
    if not path.exists():
        return []
    return [
        Case(
            **case | {"true": Estimate(**case["true"])} | {k: [Trial(**t) for t in case[k]] for k in ("same", "slower")}
        )
        for case in json.loads(path.read_text(encoding="utf-8"))
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument(
        "--trials", type=int, default=40, help="trials of each kind, over all four files (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    files = [
        (f"{name} {variant}", path)
        for name in options.models
        for variant, path in (("fp32", suite.fp32(name)), ("int8", suite.int8(name)))
    ]

    def say(line: str) -> None:
        print(line, flush=True)

    each = -(-options.trials // (2 * len(MODELS)))
    try:
        cases = [run(name, path, each, say) for name, path in files]
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    out = tables.RESULTS / f"trust-{tables.slug(describe_host())}"
    measured = {case.name for case in cases}
    cases = [case for case in stored(out.with_suffix(".json")) if case.name not in measured] + cases
    write_text(out.with_suffix(".md"), report(cases))
    write_text(out.with_suffix(".json"), json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    say(f"written: {out}.md and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
