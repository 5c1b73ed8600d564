"""Can a comparison be believed on a machine that others use? Trials with the same file twice, and with one 5 % slower.

``python -m benchmarks.trust [--trials 40]`` writes ``results/trust-CPU.md`` and ``.json``. A trial is one run of
`toolchain.bench` on two files for a few seconds, and the question what `stats.difference` says of them. What must come
out: *no significant difference* for the same file in 95 % of the trials, *slower* for the slower one in 90 %.

The slower file computes the same and one product more: a ``MatMul`` of the input with a constant, whose result is an
output of its own. Its width is chosen so that it costs 5 %, then the two are held against each other in a run fifteen
times as long as a trial; what that finds is the true slowdown.
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
from toolchain.bench import Subject, bench, describe_host, stats
from toolchain.bench.stats import Estimate
from toolchain.errors import ToolchainError
from toolchain.files import write_text
from toolchain.recipe import Bench

MODELS = ("svhn_cnn", "mnist_cnn")
SLOWER = 0.05
TRIAL = Bench(warmup_s=0.05, min_time_s=1.2, min_runs=40, rounds=40, processes=3)
LONG = Bench(warmup_s=0.2, min_time_s=18.0, min_runs=600, rounds=240, processes=12)


@dataclass(frozen=True)
class Trial:
    """One comparison. slower: the second file's time over the first one's, less 1, with its 95 % interval."""

    slower: float
    low: float
    high: float
    significant: bool
    load: float
    seconds: float


@dataclass(frozen=True)
class Case:
    """All trials of one file. width: of the product that the slower one computes more; true: by how much it is slower
    in the long run.
    """

    name: str
    ms: float
    width: int
    true: Estimate
    same: list[Trial]
    slower: list[Trial]


def slowed(path: Path, width: int, into: Path) -> Path:
    """The model with one product more, of its first input's last axis with [that axis, width]."""
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
    """The speed-up of the second file, with one thread, and the first one's median (ms)."""
    subjects = [Subject(first, "model", "first"), Subject(second, "model", "second")]
    a, b = (row.latency for row in bench(subjects, settings=settings, threads=1).measurements)
    assert a is not None
    assert b is not None
    return stats.speedup(a, b), a.p50_ms


def calibrated(path: Path, folder: Path) -> tuple[Path, int]:
    """The file that takes 5 % longer: the width is found by halving, from one that takes more."""
    low, high = 0, 1
    while 1 / compare(path, slowed(path, high, folder), TRIAL)[0].value - 1 < SLOWER:
        low, high = high, 2 * high
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        longer = 1 / compare(path, slowed(path, middle, folder), TRIAL)[0].value - 1
        low, high = (middle, high) if longer < SLOWER else (low, middle)
    return slowed(path, high, folder), high


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
    """The checked-in page."""
    head = ["file", "ms", "true slowdown", "same: no difference", "slower: seen", "median found", "load", "s a trial"]
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
    same, slower = ([t for case in cases for t in trials(case)] for trials in (_same, _slower))
    equal, caught = sum(not t.significant for t in same), sum(t.significant and t.slower > 0 for t in slower)
    return f"""# The same file twice, and one 5 % slower

`python -m benchmarks.trust`, one thread. {tables.describe(describe_host())}
The machine was in use by others all the time; *load* is the kernel's, before the trials.

- The same file twice: *no significant difference* in {equal} of {len(same)} trials ({equal / len(same):.1%}).
- One that is 5 % slower: found to be slower in {caught} of {len(slower)} trials ({caught / len(slower):.1%}).

{tables.markdown(head, rows)}

The slower file computes one product more, so wide that it costs 5 %; *true slowdown* is from one run fifteen times as
long as a trial, with its 95 % interval. A trial is {TRIAL.rounds} rounds of {TRIAL.min_time_s / TRIAL.rounds * 1e3:.0f}
ms of each file in {TRIAL.processes} processes.
"""


def _same(case: Case) -> list[Trial]:
    return case.same


def _slower(case: Case) -> list[Trial]:
    return case.slower


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=40, help="of each kind, over all files (default %(default)s)")
    options = parser.parse_args(arguments)
    files = [
        (f"{name} {variant}", path)
        for name in MODELS
        for variant, path in (("fp32", suite.fp32(name)), ("int8", suite.int8(name)))
    ]

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        cases = [run(name, path, -(-options.trials // len(files)), say) for name, path in files]
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    out = tables.RESULTS / f"trust-{tables.slug(describe_host())}"
    write_text(out.with_suffix(".md"), report(cases))
    write_text(out.with_suffix(".json"), json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    say(f"written: {out}.md and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
