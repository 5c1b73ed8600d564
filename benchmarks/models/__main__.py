"""Prints the score of every model in float as a Markdown table: ``python -m benchmarks.models [NAME ...]``."""

from __future__ import annotations

import statistics
import sys
import time

import onnxruntime

from benchmarks.models import MODELS, NAMES, Model, missing
from toolchain.core.errors import InputError, ToolchainError, did_you_mean
from toolchain.data.tensors import Array, Feed
from toolchain.graph import io
from toolchain.graph.run import session
from toolchain.ops import cost


def row(model: Model) -> str:
    """The table's line for a model; ms: the median over the inferences of the evaluation, one thread."""
    engine, times_ms = session(model.onnx_path(), threads=1), []

    def run(feed: Feed) -> list[Array]:
        start = time.perf_counter()
        outputs: list[Array] = engine.run(None, feed)
        times_ms.append(1000 * (time.perf_counter() - start))
        return outputs

    value = model.evaluate(run)
    size = model.onnx_path().stat().st_size / 1e6
    parameters = cost.count(io.load(model.onnx_path())).parameters / 1e6
    numbers = f"{100 * value:.1f} | {size:.1f} | {parameters:.2f} | {statistics.median(times_ms):.2f}"
    return f"| {model.NAME} | {model.METRIC} | {numbers} |"


def main(names: list[str]) -> int:
    try:
        for name in names:
            if name not in NAMES:
                raise InputError(f"no model {name!r}", hint=did_you_mean(name, NAMES))
        print(f"onnxruntime {onnxruntime.__version__}, one thread\n")
        print("| model | metric | fp32 | MB | M parameters | ms |\n|---|---|---:|---:|---:|---:|")
        for name in names or NAMES:
            print(f"| {name} | {reason} |||||" if (reason := missing(name)) else row(MODELS[name]), flush=True)
    except ToolchainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
