"""Compares our static int8 with onnxruntime's and other quantizers, on the same float file and the same samples:

    python -m benchmarks.quantize [MODEL ...] [--peers NAME,...|none] [--samples 64] [--threads 1] [-o FOLDER]
    python -m benchmarks.quantize [MODEL ...] (--ablate | --without PART,...) [--peers none] [--seconds 3]
    python -m benchmarks.quantize mobilenet_v2 --peers quantize_static --emulate x86-avx2 --emulate cortex-a53:64

Each quantization runs in a fresh process, so that its memory can be measured; the files of one model are then timed
interleaved and scored with the model's labelled metric. Files in FOLDER: ``quantize-CPU.md``, the table;
``quantize-CPU.json.gz``, the raw times for `toolchain compare`; ``quantize-CPU.costs.json``, time and memory of
quantizing.

With `--emulate CPU[:SAMPLES]` nothing is timed: the int8 files run on an emulated processor, which gives their metric
there and the share of outputs that are equal to this machine's. Files in FOLDER: ``emulated.md`` and ``emulated.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from benchmarks import choices, contestants, elsewhere, feeds, tables, timing
from benchmarks.contestants import ABLATIONS, OTHERS, Made
from benchmarks.models import MODELS, NAMES, Model, missing
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import ToolchainError
from toolchain.core.files import write_text
from toolchain.data.tensors import Array, Feed
from toolchain.evaluation.fidelity import decibels
from toolchain.formats.results import Measurement, Results, Score
from toolchain.graph import run

FIDELITY_SAMPLES = 64
COLUMNS = (
    "variant",
    "metric",
    "Δ",
    "dB",
    "median ms",
    "speed-up",
    "p90 ms",
    "MB",
    "Q/DQ left",
    "s",
    "peak MiB",
    "of it imports",
)
LEGEND = (
    "Δ: difference to fp32. dB: fidelity of the outputs to fp32's on the first 64 test samples, energy over squared "
    "error, mean of the samples' decibels; it needs no labels and depends far less on chance than the metric. "
    "median ms: time of one inference with its 95 % interval, all variants of a model interleaved; speed-up: over "
    "fp32, round by round. Q/DQ left: QuantizeLinear and DequantizeLinear nodes in the graph that onnxruntime runs. "
    "s, peak MiB: time and memory of quantizing, calibration included, in a fresh process; the peak includes imports."
)
EMULATED = (
    "Outputs only, no times. here: on the host above; there: on the emulated processor. same top-1: outputs whose "
    "largest entry is at the same position as here; bit-identical: outputs equal in every bit. Where only some of the "
    "samples were run there is no metric, and only our variants were run."
)


def main() -> None:
    options = _arguments()
    names = options.models or NAMES
    absent = {name: reason for name in names if (reason := missing(name))}
    models = [MODELS[name] for name in names if name not in absent]
    if options.emulate:
        _emulate(models, options)
    else:
        _compare(models, options, [f"Skipped: {name} ({reason})." for name, reason in absent.items()])


def _compare(models: Sequence[Model], options: argparse.Namespace, skipped: Sequence[str]) -> None:
    """Quantize, score and time."""
    host = describe_host()
    rows: list[Measurement] = []
    costs: list[dict[str, object]] = []
    parts = [
        "# int8 compared with other quantizers",
        tables.describe(host),
        f"{LEGEND} {contestants.legend(options.peers)}",
        *skipped,
    ]
    for model in models:
        with tempfile.TemporaryDirectory(prefix="toolchain-quantize-") as scratch:
            made = _quantize_all(model, options, Path(scratch))
            measured, fidelity = _measure(model, made, options)
        rows += measured
        costs += [_cost(model.NAME, item, fidelity.get(item.variant)) for item in made[1:]]
        parts.append(_section(model, made, measured, fidelity))
        print(f"\n{parts[-1]}\n", flush=True)
    stem = f"quantize-{tables.slug(host)}"
    Results(measurements=tuple(rows)).save(options.output / f"{stem}.json.gz")
    write_text(options.output / f"{stem}.costs.json", json.dumps(costs, indent=1) + "\n")
    write_text(options.output / f"{stem}.md", "\n\n".join(parts) + "\n")


def _emulate(models: Sequence[Model], options: argparse.Namespace) -> None:
    """Quantize, and run the int8 files here and on emulated processors."""
    host, when = describe_host(), datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[Measurement] = []
    parts = ["# int8 on emulated processors", tables.describe(host), EMULATED]
    for model in models:
        with tempfile.TemporaryDirectory(prefix="toolchain-quantize-") as scratch:
            made = _quantize_all(model, options, Path(scratch))
            answers = []
            for place, item in product(options.emulate, made[1:]):
                if item.file and (place.samples is None or item.variant.startswith("ours")):
                    print(f"{model.NAME}: emulating {place.cpu}, {item.variant}", flush=True)
                    answers.append(elsewhere.answer(model, item.variant, item.file, place))
            rows += [answer.measurement(host, when) for answer in answers]
        parts.append(f"## {model.NAME}\n\n{model.KIND}; metric: {model.METRIC}.\n\n{elsewhere.table(answers)}")
        print(f"\n{parts[-1]}\n", flush=True)
    Results(measurements=tuple(rows)).save(options.output / "emulated.json")
    write_text(options.output / "emulated.md", "\n\n".join(parts) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare our static int8 with onnxruntime's and other quantizers.")
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", type=choices.model, help="from benchmarks.models; all by default"
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds",
        dest="bench",
        type=timing.settings,
        default=timing.settings(3.0),
        metavar="SECONDS",
        help="least time that each file is timed, twice (default: 3)",
    )
    parser.add_argument(
        "--peers", type=_others, default=OTHERS, metavar="NAME,...", help=f"{', '.join(OTHERS)}; or none"
    )
    parser.add_argument(
        "--ablate",
        action="store_const",
        const=tuple(ABLATIONS),
        default=(),
        help="also run ours without each of its parts",
    )
    parser.add_argument(
        "--without", type=_parts, dest="ablate", metavar="PART,...", help=f"parts to leave out: {', '.join(ABLATIONS)}"
    )
    parser.add_argument("--emulate", action="append", default=[], type=elsewhere.parse, metavar="CPU[:SAMPLES]")
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    return parser.parse_args()


def _others(text: str) -> tuple[str, ...]:
    return choices.listed(text, OTHERS)


def _parts(text: str) -> tuple[str, ...]:
    return choices.listed(text, tuple(ABLATIONS))


def _quantize_all(model: Model, options: argparse.Namespace, scratch: Path) -> list[Made]:
    """Make a file for every variant; the first entry is the float model."""
    folder = scratch / "samples"
    feeds.write(islice(model.calibration(options.samples), options.samples), folder)
    made = [Made("fp32", model.onnx_path())]
    for number, variant in enumerate(contestants.variants(model, options.ablate, options.peers)):
        print(f"{model.NAME}: quantizing, {variant.name}", flush=True)
        made.append(contestants.quantize(variant, model.onnx_path(), folder, scratch / f"{number}.onnx"))
    return made


def _measure(
    model: Model, made: Sequence[Made], options: argparse.Namespace
) -> tuple[Sequence[Measurement], dict[str, float]]:
    """Score and time the files.

    Returns:
        The rows of the calmer of two runs, and the fidelity (dB) of each variant.
    """
    feed: Feed = next(model.calibration(1))
    subjects = []
    answers: dict[str, list[list[Array]]] = {}
    for item in made:
        if item.file is None:
            continue
        print(f"{model.NAME}: scoring, {item.variant}", flush=True)
        engine = run.session(item.file)
        kept = answers.setdefault(item.variant, [])

        def answer(feed: Feed, engine: InferenceSession = engine, kept: list[list[Array]] = kept) -> list[Array]:
            outputs = list(engine.run(None, feed))
            if len(kept) < FIDELITY_SAMPLES:
                kept.append(outputs)
            return outputs

        value = model.evaluate(answer)
        score = Score(kind="evaluate", value=value)
        subjects.append(Subject(item.file, model.NAME, item.variant, target="host", feeds=feed, score=score))
    print(f"{model.NAME}: timing", flush=True)
    rows = timing.calmest(subjects, options.bench, options.threads)
    fidelity = {
        name: float(np.mean([decibels(*pair) for pair in zip(answers["fp32"], own, strict=True)]))
        for name, own in answers.items()
    }
    return rows, fidelity


def _section(model: Model, made: Sequence[Made], rows: Sequence[Measurement], fidelity: Mapping[str, float]) -> str:
    measured = {row.variant: row for row in rows}
    lines, remarks = [], []
    for item in made:
        if item.file is None:
            lines.append((item.variant, "not installed" if item.missing else "failed", *[""] * (len(COLUMNS) - 2)))
            remarks.append(f"{item.variant}: {item.error}")
            continue
        remarks += [f"{item.variant}: {note}" for note in (item.cost.returned["notes"] if item.cost else ())]
        lines.append(line(item, measured[item.variant], measured["fp32"], fidelity[item.variant]))
    title = f"## {model.NAME}\n\n{model.KIND}; metric: {model.METRIC}."
    return "\n\n".join(
        [title, tables.markdown(COLUMNS, lines), "\n".join(f"- {remark}." for remark in remarks)]
    ).strip()


def line(item: Made, row: Measurement, base: Measurement, fidelity_db: float) -> tuple[str, ...]:
    """The table's line for a file; base: the row of the float model."""
    assert row.score
    assert base.score
    latency = timing.latency(row)
    p50, faster = stats.median(latency.samples_ms), stats.speedup(timing.latency(base), latency)
    here, cost = item.variant == "fp32", item.cost
    return (
        item.variant,
        f"{row.score.value:.4f}",
        "" if here else f"{row.score.value - base.score.value:+.4f}",
        "" if here else f"{fidelity_db:.1f}",
        f"{p50.value:#.3g} [{p50.low:#.3g}, {p50.high:#.3g}]",
        "" if here else f"{faster.value:.2f} [{faster.low:.2f}, {faster.high:.2f}]",
        f"{latency.p90_ms:#.3g}",
        f"{row.size_bytes / 1e6:.2f}",
        "" if item.left is None else str(item.left),
        f"{cost.seconds:.1f}" if cost else "",
        tables.mib(cost.peak_bytes) if cost else "",
        tables.mib(cost.baseline_bytes) if cost else "",
    )


def _cost(model: str, item: Made, fidelity_db: float | None) -> dict[str, object]:
    spent = asdict(item.cost) if item.cost else {}
    row = {"model": model, "variant": item.variant, "qdq_left": item.left, "error": item.error}
    return row | {"fidelity_db": fidelity_db} | spent


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
