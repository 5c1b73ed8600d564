"""Compares all training techniques on one residual network for digits, in one table:

    python -m benchmarks.train.study [--seeds 3] [--rows NAME,...] [-o FOLDER]

Each seed has its own network, trained from other initial weights, and its own order of the data afterwards. Each row is
a recipe of `toolchain train`; scores are of 2,000 digits that no training has read. Files are kept in the cache and not
made again. The files of the first seed are timed interleaved, in one run, one thread. The table is
``train-digits-CPU.md`` in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import tables, timing
from benchmarks.models import store
from benchmarks.train import digits
from toolchain.api.prepare import prepare
from toolchain.benchmark import stats
from toolchain.benchmark.bench import Subject, bench
from toolchain.conversion.inputs import parse_input
from toolchain.core.files import replacing, write_text
from toolchain.data.calibration import open_data
from toolchain.formats.findings import TrainingStep
from toolchain.formats.recipe import Bench
from toolchain.formats.results import Host, Measurement
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.training_recipe import TrainingRecipe
from toolchain.graph import io, run
from toolchain.graph.sizes import sizes
from toolchain.training.runner import run_training

EPOCHS = 4
PRUNE = {"technique": "prune", "epochs": EPOCHS}
CRITERIA: dict[str, dict[str, object]] = {
    "magnitude": {"schedule": "once"},
    "random": {"schedule": "once", "criterion": "random"},
    "L1": {"schedule": "once", "criterion": "l1"},
    "L2": {"schedule": "once", "criterion": "l2"},
    "gradual": {"schedule": "gradual"},
    "iterative": {"schedule": "iterative", "max_drop": 0.5},
}
INT8 = {"technique": "int8", "epochs": 2}
STUDENT = "benchmarks.train.digits:student"


def rows() -> dict[str, list[dict[str, object]]]:
    """Name of each row → the steps of its recipe."""
    pruned = {
        f"{name}, {amount:.0%} of {structure}": [{**PRUNE, **how, "amount": amount, "structure": structure}]
        for structure in ("weights", "channels")
        for amount in (0.5, 0.8)
        for name, how in CRITERIA.items()
    }
    others: dict[str, list[dict[str, object]]] = {
        "2:4 of weights": [{**PRUNE, "structure": "2:4"}],
        "gradual, 80% of weights, revived": [{**PRUNE, "amount": 0.8, "structure": "weights", "revive": True}],
        "shared, 4 bits": [{"technique": "share", "bits": 4, "epochs": 1}],
        "shared, 2 bits": [{"technique": "share", "bits": 2, "epochs": EPOCHS}],
        "powers of two, 4 bits": [{"technique": "power-of-two", "bits": 4, "epochs": EPOCHS}],
        "binary": [{"technique": "binary", "epochs": 2 * EPOCHS, "rate": 0.03}],
        "int8, trained": [INT8],
        "distilled to a quarter": [{"technique": "distil", "student": STUDENT, "epochs": 20}],
        "distilled to a quarter, features": [
            {"technique": "distil", "student": STUDENT, "epochs": 20, "features": "stages"}
        ],
        "channels 50%, int8, trained": [{**PRUNE, "amount": 0.5}, INT8],
    }
    bare = (
        "magnitude, 80% of weights",
        "magnitude, 50% of channels",
        "shared, 2 bits",
        "powers of two, 4 bits",
        "binary",
    )
    trained = pruned | others
    untrained = {f"{name}, not trained": [{**trained[name][0], "epochs": 0}] for name in (*bare, "int8, trained")}
    return {n.replace("trained, not trained", "not trained"): steps for n, steps in (trained | untrained).items()}


def main() -> None:
    options = _arguments()
    chosen = {name: steps for name, steps in rows().items() if not options.rows or name in options.rows}
    made = {name: [_make(name, steps, seed) for seed in range(options.seeds)] for name, steps in chosen.items()}
    floats = [dense(seed) for seed in range(options.seeds)]
    timed = _timed({"fp32": floats[0], **{name: files[0] for name, files in made.items()}})
    host = timed[0].host
    text = _page(host, timed, floats, made, options.seeds)
    write_text(options.output / f"train-digits-{tables.slug(host)}.md", text)
    print(f"\n{text}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare all training techniques on one network.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=lambda text: tuple(text.split(";")), default=(), metavar="NAME;...")
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    return parser.parse_args()


def dense(seed: int) -> Path:
    """The trained float network of a seed as an optimized ONNX file, with its score beside it."""
    file = store.cache() / f"study/fp32-{seed}.onnx"
    if not file.with_suffix(".json").exists():
        file.parent.mkdir(exist_ok=True)
        io.save(prepare(digits.module(seed=seed), inputs=[parse_input("x:batch,1,28,28")]).model, file)
        _note(file, [])
    return file


def _make(name: str, steps: Sequence[dict[str, object]], seed: int) -> Path:
    """Apply a row's recipe to a seed's network; the score and the steps' records are stored beside the file."""
    float_model = dense(seed)
    recipe = TrainingRecipe.parse({"schema_version": 1, "seed": seed, "threads": 1, "steps": list(steps)})
    file = float_model.with_name(f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}.onnx")
    if file.with_suffix(".json").exists():
        return file
    model = io.load(float_model)
    labels = TensorSpec("labels", np.dtype(np.int64), ("batch",))
    learnt, held = open_data(digits.data(), [*io.inputs(model), labels]).split(16, 256)
    with tempfile.TemporaryDirectory(prefix="toolchain-study-") as folder:
        stages = run_training(model, recipe, learnt, held, folder=Path(folder))
        io.save(stages[-1].model, file)
    _note(file, [stage.record for stage in stages])
    print(f"{name}, seed {seed}: {_score(file):.4f}", flush=True)
    return file


def _note(file: Path, records: Sequence[TrainingStep]) -> None:
    engine = run.session(file, threads=1)
    score = digits.evaluate(lambda feed: list(engine.run(None, feed)))
    notes = {"score": score, "steps": [record.model_dump(mode="json") for record in records]}
    with replacing(file.with_suffix(".json")) as folder:
        (folder / f"{file.stem}.json").write_text(json.dumps(notes), encoding="utf-8")


def _notes(file: Path) -> tuple[float, list[TrainingStep]]:
    notes = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return notes["score"], [TrainingStep.model_validate_json(json.dumps(step)) for step in notes["steps"]]


def _score(file: Path) -> float:
    return _notes(file)[0]


def _timed(files: dict[str, Path]) -> Sequence[Measurement]:
    with np.load(digits.tests()) as arrays:
        feed = {"x": arrays["x"][:1]}
    subjects = [Subject(file, "digits", name, target="host", feeds=feed) for name, file in files.items()]
    return bench(subjects, settings=Bench(min_time_s=2.0, rounds=20), threads=1).measurements


COLUMNS = (
    "technique",
    "top-1 %",
    "worst … best",
    "Δ points",
    "MACs M",
    "zeros",
    "MB",
    "zip MB",
    "xz MB",
    "speed-up",
    "s",
)
LEGEND = (
    "Means over the seeds. Δ: difference to fp32, which is the teacher; half of the loss comes from labels. "
    "Speed-up: of the first seed's file, all timed interleaved, one thread; `~` if it is not significant. "
    "s: seconds of training, one thread. Zeros and codes make compressed files smaller, but no model faster: "
    "onnxruntime's CPU provider multiplies zeros like any other number, and unpacks codes when it loads a file."
)


def _page(
    host: Host, timed: Sequence[Measurement], floats: Sequence[Path], made: dict[str, list[Path]], seeds: int
) -> str:
    base = timed[0]
    reference = float(np.mean([_score(file) for file in floats]))
    lines = [_line("fp32", floats, reference, "1.00")]
    for row, (name, files) in zip(timed[1:], made.items(), strict=True):
        faster = stats.speedup(timing.latency(base), timing.latency(row))
        mark = "~" if faster.low <= 1 <= faster.high else ""
        lines.append(_line(name, files, reference, f"{mark}{faster.value:.2f}"))
    about = (
        f"A residual network of 175,000 parameters for noisy, shifted digits ({digits.TESTED * 10} for tests, "
        f"{digits.TRAINED * 10} to train on); {seeds} seeds; fp32 takes {timing.latency(base).p50_ms:.3f} ms."
    )
    command = "`python -m benchmarks.train.study`"
    parts = ["# Techniques of training", tables.describe(host), f"{command}. {about}", LEGEND]
    return "\n\n".join([*parts, tables.markdown(COLUMNS, lines)]) + "\n"


def _line(name: str, files: Sequence[Path], reference: float, faster: str) -> list[str]:
    scores = [100 * _score(file) for file in files]
    records = [_notes(file)[1] for file in files]
    size = sizes(files[0])
    last = records[0][-1] if records[0] else None
    seconds = np.mean([sum(step.seconds for step in steps) for steps in records])
    return [
        name,
        f"{np.mean(scores):.2f}",
        f"{min(scores):.2f} … {max(scores):.2f}",
        f"{np.mean(scores) - 100 * reference:+.2f}",
        f"{last.macs / 1e6:.2f}" if last else "",
        f"{last.zeros:.0%}" if last else "",
        *(f"{number / 1e6:.3f}" for number in (size.raw, size.zipped, size.wire)),
        faster,
        f"{seconds:.0f}" if last else "",
    ]


if __name__ == "__main__":
    main()
