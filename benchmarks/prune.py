"""Compares our pruning with random pruning, plain norms and other pruners, on the same float model and samples:

    python -m benchmarks.prune MODEL ... [--peers NAME,...|none] [--seeds 3] [--samples 64] [-o FOLDER]
    python -m benchmarks.prune MODEL ... [--points 1.1,1.2,1.4] [--ratios 0.05,0.1,0.2,0.3] [--without INGREDIENT,...]
    python -m benchmarks.prune mobilenet_v2 --data benchmarks.train.photographs:feeds [--label photographs]

Each contestant cuts the model to several sizes, each in a fresh process. Each seed has its own set of calibration
samples, and its own random numbers where a method draws some. All files of one model are then timed interleaved, in one
run, and scored with the model's labelled metric on data that no contestant has read. Files written: the table
``prune-MODEL-CPU.md`` and the raw times ``prune-MODEL-CPU.json.gz`` (for `toolchain compare`) in FOLDER, and the plot
``prune-MODEL.svg`` in ``docs``. A label is added after MODEL in every name.
"""

from __future__ import annotations

import argparse
import hashlib
import pkgutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks import choices, curves, peers, pruners, tables, timing
from benchmarks.curves import Point, Run, Spread
from benchmarks.models import MODELS, Model, missing
from benchmarks.pruners import INGREDIENTS, Cut
from benchmarks.tradeoff import DOCS, score
from toolchain.api.prepare import prepare
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import ToolchainError
from toolchain.core.files import sha256, write_text
from toolchain.formats.results import Host, Measurement, Results, Score
from toolchain.graph import io

UNPRUNED = "unpruned"
COLUMNS = (
    "contestant",
    "size",
    "metric",
    "worst … best",
    "Δ points",
    "speed-up",
    "least … most",
    "median ms",
    "MB",
    "s",
)
LEGEND = (
    "Means over the seeds, with the worst and the best seed; one seed where seeds change nothing. Δ points, speed-up: "
    "compared with the unpruned model; all files are cleaned up by `toolchain optimize` and timed interleaved, round "
    "by round; files that differ only in their weights are timed once. s: seconds of pruning, without the clean-up. "
    "Bold: neither another point nor the unpruned model is at least as fast and at least as accurate."
)


def main() -> None:
    options = _arguments()
    for name in options.models:
        if reason := missing(name):
            raise SystemExit(f"{name}: {reason}")
    for name in options.models:
        _compare(MODELS[name], options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare our pruning with random pruning, plain norms and other pruners."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", type=choices.model, help="a name from benchmarks.models")
    parser.add_argument("--peers", type=_others, default=tuple(peers.PRUNERS), metavar="NAME,...|none")
    parser.add_argument(
        "--without", type=_parts, default=(), metavar="PART,...", help=f"parts to leave out: {', '.join(INGREDIENTS)}"
    )
    parser.add_argument(
        "--points", type=choices.numbers, default=(1.1, 1.2, 1.4), help="target speed-ups of our pruning"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="minutes of label-free training, for one more row")
    parser.add_argument(
        "--ratios", type=choices.numbers, default=(0.05, 0.1, 0.2, 0.3), help="shares of channels that peers remove"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument(
        "--data",
        type=pkgutil.resolve_name,
        metavar="MODULE:CALLABLE",
        help="samples to use instead of the calibration samples",
    )
    parser.add_argument("--label", default="", help="added to file names, to keep other results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds",
        dest="bench",
        type=timing.settings,
        default=timing.settings(3.0),
        metavar="SECONDS",
        help="least time that each file is timed, twice (default: 3)",
    )
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    parser.add_argument("--plots", type=Path, default=DOCS, help="folder for the plot")
    return parser.parse_args()


def _others(text: str) -> tuple[str, ...]:
    return choices.listed(text, tuple(peers.PRUNERS))


def _parts(text: str) -> tuple[str, ...]:
    return choices.listed(text, tuple(INGREDIENTS))


def _compare(model: Model, options: argparse.Namespace) -> None:
    """Prune, score and time one model, and write the results."""
    host = describe_host()
    field = pruners.contestants(options.points, options.ratios, options.without, options.peers, options.minutes)
    with tempfile.TemporaryDirectory(prefix="toolchain-prune-") as scratch:
        source = Path(scratch) / "unpruned.onnx"
        io.save(prepare(model.onnx_path()).model, source)
        unlabelled = options.data() if options.data else model.calibration(options.samples * options.seeds)
        samples = pruners.sample_folders(unlabelled, options.samples, options.seeds, Path(scratch))
        cuts: list[Cut] = []
        for contestant in field:
            print(f"{model.NAME}: pruning, {contestant.name}", flush=True)
            cuts += pruners.cut_all(contestant, model, source, samples, Path(scratch))
        rows = measure(model, source, cuts, options)
    stem = f"prune-{_named(model, options)}-{tables.slug(host)}"
    Results(measurements=tuple(rows)).save(options.output / f"{stem}.json.gz")
    text = page(model, host, cuts, rows, options)
    write_text(options.output / f"{stem}.md", text)
    print(f"\n{text}", flush=True)


def measure(model: Model, source: Path, cuts: Sequence[Cut], options: argparse.Namespace) -> list[Measurement]:
    """Score every file, and time one file of each architecture; the unpruned model is the first row."""
    files = {UNPRUNED: source} | {_label(cut): cut.made.file for cut in cuts if cut.made.file}
    scores = {}
    for label, file in files.items():
        print(f"{model.NAME}: scoring, {label}", flush=True)
        scores[label] = Score(kind="evaluate", value=score(model, file))
    shapes = {label: architecture(file) for label, file in files.items()}
    first = {shape: label for label, shape in reversed(shapes.items())}
    feed = next(iter(model.calibration(1)))
    subjects = [Subject(files[label], model.NAME, label, target="host", feeds=feed) for label in first.values()]
    print(f"{model.NAME}: timing {len(subjects)} files", flush=True)
    timed = {row.variant: row for row in timing.calmest(subjects, options.bench, options.threads)}
    return [
        timed[first[shapes[label]]].model_copy(
            update={
                "variant": label,
                "sha256": sha256(file),
                "score": scores[label],
                "note": None if first[shapes[label]] == label else f"timed as {first[shapes[label]]}",
            }
        )
        for label, file in files.items()
    ]


def architecture(file: Path) -> str:
    """Hash everything that latency depends on: the graph, without the values of its float weights."""
    proto = onnx.load(file)
    proto.ClearField("metadata_props")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _label(cut: Cut) -> str:
    return f"{cut.contestant}, {cut.size:g}, seed {cut.seed}"


def page(
    model: Model, host: Host, cuts: Sequence[Cut], rows: Sequence[Measurement], options: argparse.Namespace
) -> str:
    """Write the table in Markdown, and draw the plot."""
    base, *others = rows
    measured = {row.variant: row for row in others}
    assert base.latency
    assert base.score
    runs = []
    for cut in cuts:
        row = measured.get(_label(cut))
        if row and row.latency and row.score:
            faster = stats.speedup(base.latency, row.latency).value
            runs.append(Run(cut.contestant, cut.size, faster, row.score.value))
    points = curves.points(runs)
    if points:
        label = f"{model.METRIC.split(' (')[0]}, %"
        curves.plot(points, base.score.value, model.NAME, label, options.plots / f"prune-{_named(model, options)}.svg")
    best = curves.unbeaten(points, base.score.value)
    table: list[tuple[str, ...]] = [
        (UNPRUNED, "", f"{base.score.value:.4f}", "", "", "", "", *_time_and_size(base), "")
    ]
    for point in points:
        same = [cut for cut in cuts if (cut.contestant, cut.size) == (point.contestant, point.size)]
        table.append(line(point, point in best, base.score.value, measured[_label(same[0])], same))
    remarks = {f"- {cut.contestant}, {cut.size:g}: {cut.made.error}." for cut in cuts if cut.made.error}
    settings = " ".join([pruners.LEGEND, *(peers.PRUNERS[name].settings for name in options.peers)])
    title = f"{model.KIND}; metric: {model.METRIC}. Seeds: {options.seeds}, of {options.samples} samples each"
    title += f", from {options.data.__module__}." if options.data else "."
    parts = [f"# {model.NAME} pruned, beside others", tables.describe(host), title, f"{LEGEND} {settings}"]
    return "\n\n".join([*parts, tables.markdown(COLUMNS, table), "\n".join(sorted(remarks))]).strip() + "\n"


def _named(model: Model, options: argparse.Namespace) -> str:
    return f"{model.NAME}-{options.label}" if options.label else model.NAME


def line(point: Point, best: bool, base: float, row: Measurement, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """The table's line for a point.

    Args:
        point: means over the seeds.
        best: no other point dominates it.
        base: metric of the unpruned model.
        row: the timed file of the first seed.
        cuts: the files of all seeds, whose seconds are averaged.
    """
    seconds = [cut.made.cost.seconds for cut in cuts if cut.made.cost]
    return (
        f"**{point.contestant}**" if best else point.contestant,
        f"{point.size:g}",
        f"{point.metric.mean:.4f}",
        _ends(point.metric, 4),
        f"{100 * (point.metric.mean - base):+.1f}",
        f"{point.speedup.mean:.2f}",
        _ends(point.speedup, 2),
        *_time_and_size(row),
        f"{sum(seconds) / len(seconds):.1f}",
    )


def _ends(spread: Spread, digits: int) -> str:
    return "" if spread.low == spread.high else f"{spread.low:.{digits}f} … {spread.high:.{digits}f}"


def _time_and_size(row: Measurement) -> tuple[str, str]:
    """Median (ms) and size (MB) of a row."""
    return f"{stats.median(timing.latency(row).samples_ms).value:#.3g}", f"{row.size_bytes / 1e6:.2f}"


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
