"""Measures the accuracy that label-free distillation recovers after pruning in one step:

    python -m benchmarks.train.recover [mobilenet_v2|digits ...] [--speedup 1.4] [--minutes 52] [-o FOLDER]

Files of each network:

1. the float model;
2. that model pruned to the speed-up by `toolchain prune`, and repaired in closed form;
3. where training has other samples than calibration: pruned and repaired with the same number of training samples;
4. the last of these, trained for the given minutes on unlabelled samples and the float model's outputs.

Scores are labelled, on data that no step has read. All files are timed interleaved, one thread. The table is
``train-recover-MODEL-CPU.md`` in FOLDER. ``benchmarks/fetch.sh train`` fetches the photographs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import tables
from benchmarks.models import MODELS, store
from benchmarks.train import digits, photographs, study
from toolchain.api.prepare import prepare
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.core.files import write_text
from toolchain.data.calibration import open_data
from toolchain.data.tensors import Feed
from toolchain.devices.detect import detect_host
from toolchain.formats.recipe import Bench, Prune
from toolchain.formats.results import Measurement
from toolchain.formats.training_recipe import TrainingRecipe
from toolchain.graph import io, run
from toolchain.pruning.goal import prune_model
from toolchain.training.runner import run_training


@dataclass(frozen=True)
class Case:
    """Networks of one kind, their unlabelled samples and their labelled score.

    Attributes:
        networks: functions that each make an optimized file.
        samples: training samples.
        calibration: samples for the first pruning and its repair; None for the training samples.
        score: labelled score, 0 to 1.
        metric: name of the score.
        about: description of the training samples.
        learn: settings of the training step.
    """

    networks: Sequence[Callable[[], Path]]
    samples: Callable[[], Iterable[Feed]]
    calibration: Callable[[], Iterable[Feed]] | None
    score: Callable[[store.Run], float]
    metric: str
    about: str
    learn: Mapping[str, object]


class TimedFile(NamedTuple):
    """A file, and the seconds that making it took."""

    file: Path
    seconds: float


def _mobilenet() -> Path:
    file = store.cache() / "recover-mobilenet_v2.onnx"
    if not file.exists():
        io.save(prepare(MODELS["mobilenet_v2"].onnx_path()).model, file)
    return file


def _digits() -> Iterable[Feed]:
    with np.load(digits.data()) as arrays:
        return [{"x": one[None]} for one in arrays["x"]]


CASES = {
    "mobilenet_v2": Case(
        [_mobilenet],
        photographs.feeds,
        lambda: MODELS["mobilenet_v2"].calibration(SAMPLES),
        MODELS["mobilenet_v2"].evaluate,
        MODELS["mobilenet_v2"].METRIC,
        f"{photographs.COUNT} unlabelled photographs; mirrored, enlarged and mixed",
        {"rate": 1e-3, "batch": 16},
    ),
    "digits": Case(
        [partial(study.dense, seed) for seed in range(3)],
        _digits,
        None,
        digits.evaluate,
        "top-1 (2,000 digits)",
        "4,000 digits without labels",
        {},
    ),
}


SAMPLES = 400
"""Number of samples for pruning and repair."""
ROUNDS = Bench(min_time_s=2.0, rounds=20)
FLOAT, CUT, OTHER = "fp32", "pruned", "pruned with training samples"
COLUMNS = ("file", "score %", "Δ points", "recovered", "speed-up", "MB", "s")
LEGEND = (
    "pruned: by `toolchain prune --speedup`, repaired in closed form, without gradients; trained: the row above, "
    "trained to give the float model's outputs. recovered: share of the points that the row `pruned` lost. s: seconds "
    "of the step."
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the accuracy that distillation recovers after pruning.")
    parser.add_argument("models", nargs="*", default=list(CASES), metavar="MODEL", choices=list(CASES))
    parser.add_argument("--speedup", type=float, default=1.4)
    parser.add_argument("--minutes", type=float, default=52.0)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    options = parser.parse_args()
    for name in options.models:
        _recover(name, CASES[name], options)


def _recover(name: str, case: Case, options: argparse.Namespace) -> None:
    """Make all files of every network, and write a table of their means."""
    networks = [_files(f"{name}-{number}", case, make, options) for number, make in enumerate(case.networks)]
    feed = next(iter(case.samples()))
    subjects = [
        Subject(made.file, f"{name}-{number}", row, target="host", feeds=feed)
        for number, network in enumerate(networks)
        for row, made in network.items()
    ]
    timed = bench(subjects, settings=ROUNDS, threads=1).measurements
    rows = list(networks[0])
    # Rows of the table by networks.
    faster = np.reshape(_speedups(timed, len(rows)), (len(networks), len(rows))).T
    scores = np.array([[_score(case, network[row].file) for network in networks] for row in rows])
    means = dict(zip(rows, scores.mean(1), strict=True))
    lost = means[FLOAT] - means[CUT]
    lines = []
    for row, own, speed in zip(rows, scores, faster, strict=True):
        made = [network[row] for network in networks]
        spread = f" ({100 * own.min():.2f}-{100 * own.max():.2f})" if len(networks) > 1 else ""
        back = f"{(means[row] - means[CUT]) / lost:.0%}" if row not in (FLOAT, CUT) and lost > 0 else ""
        size, seconds = np.mean([[one.file.stat().st_size / 1e6, one.seconds] for one in made], 0)
        points = f"{100 * (means[row] - means[FLOAT]):+.2f}"
        score = f"{100 * means[row]:.2f}{spread}"
        lines.append([row, score, points, back, f"{speed.mean():.2f}", f"{size:.2f}", f"{seconds:.0f}"])
    host = timed[0].host
    several = f" Means of {len(networks)} networks." if len(networks) > 1 else ""
    parts = [
        f"# {name}: accuracy recovered by training after pruning",
        tables.describe(host),
        f"`python -m benchmarks.train.recover {name} --speedup {options.speedup:g} --minutes {options.minutes:g}`. "
        f"Metric: {case.metric}. Training samples: {case.about}.{several}",
        LEGEND,
        tables.markdown(COLUMNS, lines),
    ]
    text = "\n\n".join(parts) + "\n"
    write_text(options.output / f"train-recover-{name}-{tables.slug(host)}.md", text)
    print(text, flush=True)


def _speedups(timed: Sequence[Measurement], each: int) -> list[float]:
    """Speed-ups over the first file of each network; `each` is the number of files of a network."""
    latencies = [measured.latency for measured in timed if measured.latency is not None]
    return [stats.speedup(latencies[i - i % each], latency).value for i, latency in enumerate(latencies)]


def _files(label: str, case: Case, make: Callable[[], Path], options: argparse.Namespace) -> dict[str, TimedFile]:
    """Make the files of a network, by row of the table."""
    folder = store.cache() / f"recover/{label}-{options.speedup:g}"
    folder.mkdir(parents=True, exist_ok=True)
    model, settings = make(), Prune(speedup=options.speedup)
    cuts = {CUT: ("pruned.onnx", case.calibration or case.samples)}
    if case.calibration is not None:
        cuts[OTHER] = ("pruned-by-samples.onnx", case.samples)
    files = {FLOAT: TimedFile(model, 0.0)}
    for row, (name, samples) in cuts.items():
        files[row] = _kept(folder / name, partial(_prune, model, samples, settings))
    trained = folder / f"trained-{options.minutes:g}.onnx"
    student = list(files.values())[-1].file
    files[f"trained for {options.minutes:g} min"] = _kept(
        trained, partial(_teach, case, model, student, options.minutes)
    )
    return files


def _kept(file: Path, make: Callable[[Path], None]) -> TimedFile:
    """Call `make` once, and note its seconds beside the file."""
    note = file.with_suffix(".json")
    if not note.exists():
        began = time.monotonic()
        make(file)
        write_text(note, json.dumps(time.monotonic() - began))
        print(f"{file.stem}: {time.monotonic() - began:.0f} s", flush=True)
    return TimedFile(file, float(json.loads(note.read_text(encoding="utf-8"))))


def _prune(file: Path, samples: Callable[[], Iterable[Feed]], settings: Prune, output: Path) -> None:
    model = io.load(file)
    data = open_data(samples, io.inputs(model)).take(SAMPLES)
    io.save(prune_model(model, data, settings, multiple=detect_host().channel_multiple).model, output)


def _teach(case: Case, file: Path, student: Path, minutes: float, output: Path) -> None:
    model = io.load(file)
    step = {"technique": "distil", "student": str(student), "minutes": minutes, **case.learn}
    recipe = TrainingRecipe.parse({"schema_version": 1, "steps": [step]})
    learnt, held = open_data(case.samples, io.inputs(model)).split(8, 128)
    with tempfile.TemporaryDirectory(prefix="toolchain-recover-") as work:
        (stage,) = run_training(model, recipe, learnt, held, folder=Path(work))
    io.save(stage.model, output)


def _score(case: Case, file: Path) -> float:
    engine = run.session(file)
    return case.score(lambda feed: list(engine.run(None, feed)))


if __name__ == "__main__":
    main()
