"""Outputs of a model's int8 files on an emulated processor: the metric there, and the share of equal outputs.

A metric runs the model on one sample after the other, so it is evaluated twice: on this machine, where every feed and
output is recorded, and again with the emulated processor's outputs for the same feeds. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.models import Model
from toolchain.benchmark import emulator
from toolchain.core.errors import DeviceError
from toolchain.core.files import sha256
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Host, Measurement, Score
from toolchain.graph import run

WORKERS = 2
CHUNK = 40  # feeds of one emulator process
COLUMNS = ("variant", "processor", "samples", "metric here", "metric there", "same top-1", "bit-identical")


@dataclass(frozen=True)
class Place:
    """An emulated processor, and the number of samples it runs; None for all."""

    cpu: str
    samples: int | None = None


def parse(text: str) -> Place:
    """Read ``CPU`` or ``CPU:SAMPLES`` from the command line."""
    cpu, _, samples = text.partition(":")
    try:
        emulator.find_cpu(cpu)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if samples and not samples.isdigit():
        raise argparse.ArgumentTypeError(f"{samples!r} is not a number of samples")
    return Place(cpu, int(samples) if samples else None)


@dataclass(frozen=True)
class Answers:
    """Outputs of one file on one processor, compared with this machine's.

    Attributes:
        model, variant, file, place: the file, and where it ran.
        samples: number of samples.
        here: the metric on this machine.
        there: the metric on the processor; None if not all samples were run.
        same: share of outputs whose largest entry is at the same position.
        identical: share of outputs that are equal in every bit.
    """

    model: str
    variant: str
    file: Path
    place: Place
    samples: int
    here: float
    there: float | None
    same: float
    identical: float

    def measurement(self, host: Host, when: str) -> Measurement:
        """The row of a results file."""
        score = Score(kind="agreement", value=self.same, samples=self.samples)
        if self.there is not None:
            score = Score(kind="evaluate", value=self.there)
        return Measurement(
            model=self.model,
            variant=self.variant,
            sha256=sha256(self.file),
            size_bytes=self.file.stat().st_size,
            target=f"emulator:{self.place.cpu}",
            evidence="emulated",
            host=host,
            score=score,
            note=f"of {self.samples} answers {self.same:.1%} have the host's top-1 and {self.identical:.1%} its bits",
            when=when,
        )


def table(answers: Sequence[Answers]) -> str:
    """The Markdown table of one model."""
    return tables.markdown(
        COLUMNS,
        [
            (
                a.variant,
                a.place.cpu,
                str(a.samples),
                f"{a.here:.4f}",
                "" if a.there is None else f"{a.there:.4f}",
                f"{a.same:.1%}",
                f"{a.identical:.1%}",
            )
            for a in answers
        ],
    )


def answer(model: Model, variant: str, file: Path, place: Place) -> Answers:
    """Run a model file here and on an emulated processor.

    Raises:
        DeviceError: the emulator is not set up, or failed.
    """
    asked: list[Feed] = []
    here: list[list[Array]] = []
    engine = run.session(file)

    def record(feed: Feed) -> list[Array]:
        asked.append(feed)
        here.append(list(engine.run(None, feed)))
        return here[-1]

    metric = model.evaluate(record)
    step = 1 if place.samples is None else max(1, len(asked) // place.samples)
    chosen = range(0, len(asked), step)[: place.samples]
    there = _answers(place.cpu, file, [asked[i] for i in chosen])
    replay: Iterator[list[Array]] = iter(there)
    pairs = list(zip((here[i] for i in chosen), there, strict=True))
    identical = [all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)) for a, b in pairs]
    return Answers(
        model=model.NAME,
        variant=variant,
        file=file,
        place=place,
        samples=len(chosen),
        here=metric,
        there=model.evaluate(lambda feed: next(replay)) if len(chosen) == len(asked) else None,
        same=float(np.mean([np.array_equal(a[0].argmax(-1), b[0].argmax(-1)) for a, b in pairs])),
        identical=float(np.mean(identical)),
    )


def _answers(cpu: str, file: Path, asked: Sequence[Feed]) -> list[list[Array]]:
    """Outputs for all feeds, from a few processes that run at the same time."""
    chunks = [asked[i : i + CHUNK] for i in range(0, len(asked), CHUNK)]
    with ThreadPoolExecutor(WORKERS) as pool:
        chunked = list(pool.map(lambda chunk: emulator.run(cpu, file, chunk, timeout_s=60.0 * CHUNK), chunks))
    return [list(answer.values()) for chunk in chunked for answer in chunk]
