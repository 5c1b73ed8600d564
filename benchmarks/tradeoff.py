"""Plots and tabulates accuracy against latency while more and more operators stay float, the noisiest first:

    python -m benchmarks.tradeoff [--model mobilenet_v2] [--points 8] [--samples 64] [-o FOLDER]

Two curves: one starts from plain int8 (min-max ranges, weights rounded to nearest), the other from the default recipe's
model. Files written: ``tradeoff-MODEL-CPU.md`` in FOLDER, and ``tradeoff.svg`` in ``docs``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import tables
from benchmarks.contestants import ABLATIONS
from benchmarks.models import MODELS, NAMES, Model
from toolchain.api.prepare import prepare
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import ToolchainError
from toolchain.core.files import write_text
from toolchain.data.calibration import open_data
from toolchain.formats.manifest import TradeOff
from toolchain.formats.recipe import Recipe
from toolchain.graph import io, run
from toolchain.quantization.accuracy.float_orders import by_noise
from toolchain.quantization.accuracy.mixed_precision import Rating, trade_off_curve
from toolchain.quantization.loop import quantize_model

STARTS = {"plain int8": ABLATIONS["all of these"], "default recipe": {}}
COLUMNS = ("from", "operators left float", "metric", "speed-up")
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot accuracy against latency while operators stay float.")
    parser.add_argument("--model", choices=NAMES, default="mobilenet_v2")
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    options = parser.parse_args()
    model, host = MODELS[options.model], describe_host()
    curves = {name: _curve(model, dict(change), options) for name, change in STARTS.items()}
    base = score(model, model.onnx_path())
    rows = [
        (name, str(p.float_nodes), f"{p.score:.4f}", f"{p.speedup:.2f}")
        for name, curve in curves.items()
        for p in curve
    ]
    legend = f"{model.KIND}; metric: {model.METRIC}, fp32 {base:.4f}. Speed-up over fp32, raced here, one thread."
    parts = [f"# Trade-off of {model.NAME}", tables.describe(host), legend, tables.markdown(COLUMNS, rows)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    write_text(options.output / f"tradeoff-{model.NAME}-{tables.slug(host)}.md", text)
    _plot(model, curves, base)


def _curve(model: Model, change: dict[str, object], options: argparse.Namespace) -> tuple[TradeOff, ...]:
    float_model = prepare(model.onnx_path()).model
    feeds = list(islice(model.calibration(options.samples), options.samples))
    data = open_data(feeds, io.inputs(float_model))
    quantized = quantize_model(float_model, data, Recipe.parse({"quantize": change}))
    rate = lambda written: Rating(score(model, written), accepted=False)  # noqa: E731
    order = by_noise(quantized, quantized.noise_sources())
    return trade_off_curve(quantized, order, rate, feeds[0], lambda *_: None, options.points)


def score(model: Model, what: object) -> float:
    """Compute the labelled metric of a file or model."""
    engine = run.session(what)  # type: ignore[arg-type]
    return float(model.evaluate(lambda feed: list(engine.run(None, feed))))


def _plot(model: Model, curves: Mapping[str, Sequence[TradeOff]], base: float) -> None:
    mpl.rcParams.update({"svg.hashsalt": "tradeoff", "font.size": 10})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), marker in zip(curves.items(), ("o", "s"), strict=True):
        axes.plot([p.speedup for p in curve], [100 * p.score for p in curve], marker=marker, label=name)
        for point in curve:
            place = (point.speedup, 100 * point.score)
            axes.annotate(str(point.float_nodes), place, xytext=(0, 6), textcoords="offset points", ha="center", size=8)
    axes.axhline(100 * base, linestyle="--", color="grey", label="fp32")
    axes.set(xlabel="speed-up over fp32 (1 thread)", ylabel=f"{model.METRIC.split(' (')[0]}, %")
    axes.set_title(f"{model.NAME}: numbers are operators left float")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(DOCS / "tradeoff.svg", metadata={"Date": None})


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
