"""What label-free distillation wins back of what pruning in one go, without training, has lost:

    python -m benchmarks.train.recover [mobilenet_v2|digits ...] [--speedup 1.4] [--minutes 55] [-o FOLDER]

Files of each model: the float one; the same cut by `toolchain prune` until it is so much faster, repaired in closed
form; and what training makes of that in so many minutes, from unlabelled samples and the float model's answers. Where
there are more samples to learn from than to calibrate by, also what `toolchain prune` makes with as many of those.
Scores are labelled, of data that nothing has seen. All files are timed interleaved, one thread. In FOLDER:
``train-recover-MODEL-CPU.md``. Photographs: ``benchmarks/fetch.sh train``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.models import MODELS, store
from benchmarks.train import digits, photographs, study
from toolchain.bench import Subject, bench, stats
from toolchain.chain import run_chain
from toolchain.data import open_data
from toolchain.detect import detect_host
from toolchain.files import write_text
from toolchain.graph import io, run
from toolchain.preparation import prepare
from toolchain.pruning import prune_model
from toolchain.recipe import Bench, Prune
from toolchain.tensors import Feed
from toolchain.training import Training


@dataclass(frozen=True)
class Case:
    """A model, its unlabelled samples and its labelled score.

    model: makes an optimized file. samples: to learn from. calibration: what the cut is chosen and repaired by; None:
    the same. learn: settings of the step.
    """

    model: Callable[[], Path]
    samples: Callable[[], Iterable[Feed]]
    calibration: Callable[[], Iterable[Feed]] | None
    score: Callable[[store.Run], float]
    metric: str
    about: str
    learn: Mapping[str, object]


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
        _mobilenet,
        photographs.feeds,
        lambda: MODELS["mobilenet_v2"].calibration(SAMPLES),
        MODELS["mobilenet_v2"].evaluate,
        MODELS["mobilenet_v2"].METRIC,
        f"{photographs.COUNT} unlabelled photographs; mirrored, enlarged and mixed",
        {"rate": 2e-3, "batch": 16},
    ),
    "digits": Case(
        lambda: study.dense(0),
        _digits,
        None,
        digits.evaluate,
        "top-1 (2,000 digits)",
        "4,000 digits, labels left out",
        {},
    ),
}


SAMPLES = 400
"""That the cut is chosen and repaired by."""
OTHER = "pruned with samples of what is learnt from"
HEAD = ("file", "score %", "Δ points", "won back", "speed-up", "MB", "s")
LEGEND = (
    "pruned: by `toolchain prune --speedup`, repaired in closed form, without gradients; taught: that, trained to give "
    "the float model's answers. won back: of the points that pruning has lost. s: of the step."
)


def main() -> None:
    parser = argparse.ArgumentParser(description="What distillation wins back.")
    parser.add_argument("models", nargs="*", default=list(CASES), metavar="MODEL", choices=list(CASES))
    parser.add_argument("--speedup", type=float, default=1.4)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    options = parser.parse_args()
    for name in options.models:
        _recover(name, CASES[name], options)


def _recover(name: str, case: Case, options: argparse.Namespace) -> None:
    folder = store.cache() / f"recover/{name}-{options.speedup:g}"
    folder.mkdir(parents=True, exist_ok=True)
    taught = f"taught for {options.minutes:g} min"
    files = {
        "fp32": case.model(),
        "pruned": folder / "pruned.onnx",
        taught: folder / f"taught-{options.minutes:g}.onnx",
    }
    settings = Prune(speedup=options.speedup)
    seconds = {
        "fp32": 0.0,
        "pruned": _kept(files["pruned"], lambda file: _prune(case, case.calibration or case.samples, file, settings)),
        taught: _kept(files[taught], lambda file: _teach(case, files["pruned"], file, options.minutes)),
    }
    if case.calibration is not None:
        files[OTHER] = folder / "pruned-by-samples.onnx"
        seconds[OTHER] = _kept(files[OTHER], lambda file: _prune(case, case.samples, file, settings))
    feed = next(iter(case.samples()))
    subjects = [Subject(file, name, row, target="host", feeds=feed) for row, file in files.items()]
    timed = bench(subjects, settings=Bench(min_time_s=2.0, rounds=20), threads=1).measurements
    scores = {row: _score(case, file) for row, file in files.items()}
    lost = scores["fp32"] - scores["pruned"]
    lines = []
    for row, measured in zip(files, timed, strict=True):
        assert timed[0].latency is not None
        assert measured.latency is not None
        faster = stats.speedup(timed[0].latency, measured.latency).value
        back = f"{(scores[row] - scores['pruned']) / lost:.0%}" if row == taught and lost > 0 else ""
        points = f"{100 * (scores[row] - scores['fp32']):+.2f}"
        size = f"{measured.size_bytes / 1e6:.2f}"
        lines.append([row, f"{100 * scores[row]:.2f}", points, back, f"{faster:.2f}", size, f"{seconds[row]:.0f}"])
    host = timed[0].host
    parts = [f"# {name} pruned, and what training wins back", tables.describe(host)]
    parts += [
        f"`python -m benchmarks.train.recover {name} --speedup {options.speedup:g} --minutes {options.minutes:g}`. "
        f"Metric: {case.metric}. To learn from: {case.about}.",
        LEGEND,
    ]
    text = "\n\n".join([*parts, tables.markdown(HEAD, lines)]) + "\n"
    write_text(options.output / f"train-recover-{name}-{tables.slug(host)}.md", text)
    print(text, flush=True)


def _kept(file: Path, make: Callable[[Path], None]) -> float:
    """Seconds that making it took, once."""
    note = file.with_suffix(".json")
    if not note.exists():
        began = time.monotonic()
        make(file)
        write_text(note, json.dumps(time.monotonic() - began))
        print(f"{file.stem}: {time.monotonic() - began:.0f} s", flush=True)
    return float(json.loads(note.read_text(encoding="utf-8")))


def _prune(case: Case, samples: Callable[[], Iterable[Feed]], file: Path, settings: Prune) -> None:
    model = io.load(case.model())
    data = open_data(samples, io.inputs(model)).take(SAMPLES)
    io.save(prune_model(model, data, settings, multiple=detect_host().channel_multiple).model, file)


def _teach(case: Case, pruned: Path, file: Path, minutes: float) -> None:
    model = io.load(case.model())
    step = {"technique": "distil", "student": str(pruned), "minutes": minutes, **case.learn}
    recipe = Training.parse({"schema_version": 1, "steps": [step]})
    learnt, held = open_data(case.samples, io.inputs(model)).split(8, 128)
    with tempfile.TemporaryDirectory(prefix="toolchain-recover-") as work:
        (stage,) = run_chain(model, recipe, learnt, held, folder=Path(work))
    io.save(stage.model, file)


def _score(case: Case, file: Path) -> float:
    engine = run.session(file)
    return case.score(lambda feed: list(engine.run(None, feed)))


if __name__ == "__main__":
    main()
