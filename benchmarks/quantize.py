"""Static int8, ours beside onnxruntime's own and other quantizers, on the same float file and the same samples:

    python -m benchmarks.quantize [MODEL ...] [--peers NAME,...|none] [--samples 64] [--threads 1] [-o FOLDER]
    python -m benchmarks.quantize [MODEL ...] (--ablate | --without PART,...) [--peers none] [--seconds 3]
    python -m benchmarks.quantize mobilenet_v2 --peers quantize_static --emulate x86-avx2 --emulate cortex-a53:64

Each quantization is a fresh process, so that its memory is its own; the files of one model are then timed interleaved
and scored with the model's labelled metric. In FOLDER: ``quantize-CPU.md``, the table; ``quantize-CPU.json.gz``, raw
timings for `toolchain compare`; ``quantize-CPU.costs.json``, what quantizing took.

With `--emulate CPU[:SAMPLES]` nothing is timed: the int8 files are asked on an emulated processor instead, which tells
their metric there and whether the answers are this machine's. In FOLDER: ``emulated.md`` and ``emulated.json``.
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
HEAD = (
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
    "Δ: against fp32. dB: how far the outputs of the first 64 test samples lie from fp32's, energy over squared "
    "error, mean of the samples' decibels; it needs no labels and is far less a matter of chance than the metric. "
    "median ms: of one inference, with its 95 % interval, all variants of a model interleaved; speed-up: against "
    "fp32, round by round. Q/DQ left: QuantizeLinear and DequantizeLinear nodes in the graph that onnxruntime runs. "
    "s, peak MiB: of quantizing, calibration included, in a fresh process that took `imports` MiB before it began."
)
EMULATED = (
    "Answers only, no times. Here: on the host above. same top-1: answers whose largest entry stands where it stands "
    "here; bit-identical: answers equal in every bit. No metric there where not all samples were run; a processor "
    "with some of the samples is asked for ours alone."
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
    parts = ["# int8 beside others", tables.describe(host), f"{LEGEND} {contestants.legend(options.peers)}", *skipped]
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
    """Quantize, and ask the int8 files here and on emulated processors."""
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
    parser = argparse.ArgumentParser(description="Static int8 beside onnxruntime's and other quantizers.")
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", type=choices.model, help="of benchmarks.models; all by default"
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time that a file is timed, twice")
    parser.add_argument(
        "--peers", type=_others, default=OTHERS, metavar="NAME,...", help=f"{', '.join(OTHERS)}; or none"
    )
    parser.add_argument(
        "--ablate", action="store_const", const=tuple(ABLATIONS), default=(), help="ours without each part"
    )
    parser.add_argument("--without", type=_parts, dest="ablate", metavar="PART,...", help=f"of {', '.join(ABLATIONS)}")
    parser.add_argument("--emulate", action="append", default=[], type=elsewhere.parse, metavar="CPU[:SAMPLES]")
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    return parser.parse_args()


def _others(text: str) -> tuple[str, ...]:
    return choices.listed(text, OTHERS)


def _parts(text: str) -> tuple[str, ...]:
    return choices.listed(text, tuple(ABLATIONS))


def _quantize_all(model: Model, options: argparse.Namespace, scratch: Path) -> list[Made]:
    """The float model, then a file for every variant."""
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
    """Score and time the files; timed twice, the calmer run is kept. Returns the fidelity of each variant, too."""
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
    rows = timing.calmest(subjects, options.seconds, options.threads)
    fidelity = {
        name: float(np.mean([decibels(*pair) for pair in zip(answers["fp32"], found, strict=True)]))
        for name, found in answers.items()
    }
    return rows, fidelity


def _section(model: Model, made: Sequence[Made], rows: Sequence[Measurement], fidelity: Mapping[str, float]) -> str:
    measured = {row.variant: row for row in rows}
    lines, remarks = [], []
    for item in made:
        if item.file is None:
            lines.append((item.variant, "not installed" if item.missing else "failed", *[""] * (len(HEAD) - 2)))
            remarks.append(f"{item.variant}: {item.error}")
            continue
        remarks += [f"{item.variant}: {note}" for note in (item.cost.returned["notes"] if item.cost else ())]
        lines.append(line(item, measured[item.variant], measured["fp32"], fidelity[item.variant]))
    title = f"## {model.NAME}\n\n{model.KIND}; metric: {model.METRIC}."
    return "\n\n".join([title, tables.markdown(HEAD, lines), "\n".join(f"- {remark}." for remark in remarks)]).strip()


def line(item: Made, row: Measurement, base: Measurement, fidelity_db: float) -> tuple[str, ...]:
    assert row.latency
    assert row.score
    assert base.latency
    assert base.score
    p50, faster = stats.median(row.latency.samples_ms), stats.speedup(base.latency, row.latency)
    here, cost = item.variant == "fp32", item.cost
    return (
        item.variant,
        f"{row.score.value:.4f}",
        "" if here else f"{row.score.value - base.score.value:+.4f}",
        "" if here else f"{fidelity_db:.1f}",
        f"{p50.value:#.3g} [{p50.low:#.3g}, {p50.high:#.3g}]",
        "" if here else f"{faster.value:.2f} [{faster.low:.2f}, {faster.high:.2f}]",
        f"{row.latency.p90_ms:#.3g}",
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
