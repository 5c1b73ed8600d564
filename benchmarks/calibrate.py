"""Compares our calibration with onnxruntime's calibrators, on the same ONNX file and samples:

    python -m benchmarks.calibrate [--model mobilenet_v2] [--samples 64 256] [--rounds 3] [-o FOLDER]

Every run is a fresh process; in each round every contestant runs once. The table holds the median seconds (without
imports; for ours everything from reading the file on counts) and the median peak of resident memory (VmHWM).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks import feeds, fresh, ours, stock, tables
from benchmarks.models import MODELS, NAMES, Model
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import ToolchainError
from toolchain.core.files import write_text

CONTESTANTS: dict[str, tuple[Callable[..., object], str]] = {
    "ours": (ours.calibrate, "selected"),
    "ours, all tensors": (ours.calibrate, "all"),
    **{f"onnxruntime {name}": (stock.calibrate, name) for name in stock.CALIBRATORS},
}
BOUNDED = tuple(name for name in CONTESTANTS if name.startswith("ours") or name.endswith("MinMax"))
"""Contestants that do not keep every activation of every sample; the others would need 16 GiB for 256 photographs."""

COLUMNS = ("contestant", "tensors", "s", "min … max", "MiB", "min … max", "MiB of it imports", "time ×", "memory ×")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare our calibration with onnxruntime's calibrators.")
    parser.add_argument("--model", choices=NAMES, default="mobilenet_v2")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    options = parser.parse_args()
    model, host = MODELS[options.model], describe_host()
    fewest = min(options.samples)
    costs = {n: _race(model, n, options.rounds, CONTESTANTS if n == fewest else BOUNDED) for n in options.samples}
    parts = [f"# Calibration of {model.NAME}", tables.describe(host), _LEGEND.format(rounds=options.rounds)]
    parts += [f"## {n} samples\n\n{tables.markdown(COLUMNS, _rows(own))}" for n, own in costs.items()]
    text = "\n\n".join([*parts, _growth(costs)]) + "\n"
    print(text)
    write_text(options.output / f"calibrate-{tables.slug(host)}.md", text)


_LEGEND = (
    "Medians of {rounds} rounds; every run is a fresh process, and contestants take turns. s: from the ONNX file to "
    "the ranges or histograms, without imports. MiB: peak of resident memory, with imports. ×: multiple of ours. "
    "Ours takes 2048-bin histograms of the tensors that need a scale; `all tensors` takes them of every activation of "
    "the cleaned-up graph. MinMax takes no histograms; Entropy's default is 128 bins, Percentile's 2048; "
    "both keep every activation of every sample, and are only run with the smallest number of samples."
)


def _race(model: Model, samples: int, rounds: int, names: Iterable[str]) -> dict[str, list[fresh.Cost]]:
    costs: dict[str, list[fresh.Cost]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="toolchain-calibrate-") as scratch:
        folder = Path(scratch, "samples")
        feeds.write(islice(model.calibration(samples), samples), folder)
        for number in range(rounds):
            for name, own in costs.items():
                function, how = CONTESTANTS[name]
                print(f"{samples} samples, round {number + 1} of {rounds}: {name}", flush=True)
                own.append(fresh.call(function, str(model.onnx_path()), str(folder), how))
    return costs


def _rows(costs: dict[str, list[fresh.Cost]]) -> list[tuple[str, ...]]:
    def seconds(name: str) -> list[float]:
        return [cost.seconds for cost in costs[name]]

    def peaks(name: str) -> list[float]:
        return [cost.peak_bytes / 2**20 for cost in costs[name]]

    return [
        (
            name,
            str(own[0].returned),
            f"{median(seconds(name)):.1f}",
            f"{min(seconds(name)):.1f} … {max(seconds(name)):.1f}",
            f"{median(peaks(name)):.0f}",
            f"{min(peaks(name)):.0f} … {max(peaks(name)):.0f}",
            tables.mib(own[0].baseline_bytes),
            f"{median(seconds(name)) / median(seconds('ours')):.1f}",
            f"{median(peaks(name)) / median(peaks('ours')):.1f}",
        )
        for name, own in costs.items()
    ]


def _growth(costs: dict[int, dict[str, list[fresh.Cost]]]) -> str:
    """Say how the peak of memory depends on the number of samples."""
    peaks = {n: {name: median(c.peak_bytes for c in of) for name, of in own.items()} for n, own in costs.items()}
    fewest, most = min(peaks), max(peaks)
    changes = ", ".join(f"{name} {peaks[most][name] / peaks[fewest][name] - 1:+.0%}" for name in peaks[most])
    return f"Peak of memory from {fewest} to {most} samples: {changes}."


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
