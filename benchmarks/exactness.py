"""Checks on every emulated processor that the int8 models compute the same bits:

    python -m benchmarks.exactness [MODEL ...] [--processors NAME ...] [--samples 1] [-o FOLDER]

Each model is written once as u8 (x86) and once as s8 (ARM). Both files run on each processor, and every output is
compared with the output of this machine's kernels. If outputs differ and the certificate names float operators, the
int8 part is cut out of the model, gets the same inputs on both sides and is compared alone: if it is identical, the
float operators are the only cause.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.models import MODELS, NAMES, Model, missing
from toolchain.api.prepare import prepare as prepare_model
from toolchain.benchmark import emulator
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import ToolchainError
from toolchain.core.files import write_text
from toolchain.data.calibration import open_data
from toolchain.data.tensors import Array, Feed
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.formats.target import Encoding
from toolchain.graph import io, run, tap
from toolchain.quantization.exactness.certificate import NodeCertificate, certify, clauses
from toolchain.quantization.loop import quantize_model
from toolchain.quantization.qdq.fragments import int8_part
from toolchain.quantization.quantized import Quantized

PROCESSORS = ("x86-avx2", "cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a710", "max")
ENCODINGS: tuple[Encoding, ...] = ("u8", "s8")
CALIBRATION = 12
COLUMNS = ("model", "written as", "processor", "outputs", "largest difference", "int8 part")
Answers = list[dict[str, Array]]


@dataclass(frozen=True)
class Part:
    """A model in both encodings, inputs for it, and the outputs of this machine's kernels."""

    files: dict[Encoding, Path]
    feeds: list[Feed]
    expected: Answers


@dataclass(frozen=True)
class Subject:
    """A quantized model, and its int8 nodes alone.

    Attributes:
        name: of the model.
        whole: the model.
        int8: its int8 nodes cut out.
        verdicts: the certificate of each node.
    """

    name: str
    whole: Part
    int8: Part
    verdicts: tuple[NodeCertificate, ...]

    @property
    def exceptions(self) -> tuple[str, ...]:
        """The exceptions that the manifest names."""
        return clauses(self.verdicts)

    @property
    def proven(self) -> bool:
        """True if every int8 operator has its proof."""
        return not any(verdict.fault and verdict.kernel for verdict in self.verdicts)


@dataclass(frozen=True)
class Difference:
    """Difference of the outputs on two processors.

    Attributes:
        differing: number of elements that are not equal.
        size: number of all elements.
        largest: largest difference, relative to the largest magnitude of its output.
    """

    differing: int
    size: int
    largest: float

    def __str__(self) -> str:
        return f"{self.differing / self.size:.2%} differ" if self.differing else "identical"


def prepare(model: Model, folder: Path, samples: int) -> Subject:
    """Quantize everything that can be int8, and write the model and its int8 part in both encodings into `folder`."""
    float_model = prepare_model(model.onnx_path()).model
    feeds = list(islice(model.calibration(CALIBRATION), CALIBRATION))
    recipe = Recipe(quantize=Quantize(measure=False))
    quantized = quantize_model(float_model, open_data(feeds, io.inputs(float_model)), recipe)
    whole = {encoding: folder / f"{model.NAME}-{encoding}.onnx" for encoding in ENCODINGS}
    cut = {encoding: folder / f"{model.NAME}-int8-{encoding}.onnx" for encoding in ENCODINGS}
    for encoding in ENCODINGS:
        io.save_in_place(quantized.write(encoding), whole[encoding])
        io.save_in_place(int8_part(quantized.model, quantized.plan, encoding).int8_model, cut[encoding])
    feeds = feeds[:samples]
    inside = _inside(quantized, feeds)
    return Subject(
        model.NAME,
        Part(whole, feeds, _here(whole[quantized.encoding], feeds)),
        Part(cut, inside, _here(cut[quantized.encoding], inside)),
        certify(quantized.model, quantized.plan),
    )


def _inside(quantized: Quantized, feeds: list[Feed]) -> list[Feed]:
    """The inputs of the int8 part, as the float model computes them here."""
    part = int8_part(quantized.model, quantized.plan, quantized.encoding)
    return tap.capture(quantized.model, [str(value.name) for value in part.float_model.graph.inputs], feeds, threads=1)


def _here(file: Path, feeds: list[Feed]) -> Answers:
    engine = run.session(file, threads=1)
    names = [output.name for output in engine.get_outputs()]
    return [dict(zip(names, engine.run(None, feed), strict=True)) for feed in feeds]


def compare(part: Part, encoding: Encoding, cpu: str) -> Difference:
    """Run the file of one encoding on an emulated processor and compare every element of every output.

    Raises:
        DeviceError: the emulator is not set up, or failed.
    """
    options = {"session.qdqisint8allowed": "1"} if encoding == "s8" else {}
    there = emulator.run(cpu, part.files[encoding], part.feeds, options=options, timeout_s=1800)
    differing = size = 0
    largest = 0.0
    for expected, outputs in zip(part.expected, there, strict=True):
        for name, want in expected.items():
            got = outputs[name]
            size += want.size
            unequal = int(np.count_nonzero(~((got == want) | (np.isnan(got) & np.isnan(want)))))
            if unequal:
                differing += unequal
                top = float(np.max(np.abs(want.astype(np.float64)), initial=0)) or 1.0
                largest = max(largest, float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)))) / top)
    return Difference(differing, size, largest)


def rows(subject: Subject, processors: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each encoding and processor; x86 has kernels for u8 only."""
    lines: list[tuple[str, ...]] = []
    for cpu in processors:
        for encoding in ENCODINGS[:1] if cpu.startswith("x86") else ENCODINGS:
            whole = compare(subject.whole, encoding, cpu)
            part = str(compare(subject.int8, encoding, cpu)) if whole.differing else ""
            largest = f"{whole.largest:.1e}" if whole.differing else ""
            lines.append((subject.name, encoding, cpu, str(whole), largest, part))
            print(" | ".join(lines[-1]), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Check on every emulated processor that int8 models compute the same bits."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(NAMES))
    parser.add_argument("--processors", nargs="+", choices=tuple(emulator.CPUS), default=PROCESSORS)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS)
    options = parser.parse_args()
    names = options.models or NAMES
    for name in names:
        if name not in NAMES:
            parser.error(f"unknown model {name!r}; there are {', '.join(NAMES)}")
    host = describe_host()
    lines: list[tuple[str, ...]] = []
    causes: list[str] = []
    for name in names:
        if reason := missing(name):
            print(f"{name}: {reason}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="toolchain-exactness-") as scratch:
            subject = prepare(MODELS[name], Path(scratch), options.samples)
            causes.append(f"- {name}: {'; '.join(subject.exceptions) or 'nothing'}")
            lines += rows(subject, options.processors)
        legend = _LEGEND.format(samples=options.samples)
        parts = ["# The same bits on other processors", tables.describe(host), legend, tables.markdown(COLUMNS, lines)]
        text = "\n\n".join([*parts, "What the certificates name:", "\n".join(causes)]) + "\n"
        write_text(options.output / f"exactness-{tables.slug(host)}.md", text)


_LEGEND = (
    "All outputs on emulated processors, {samples} sample for each model, compared with the u8 file on the host above; "
    "everything that can be int8 is int8. largest difference: relative to the output's largest magnitude. int8 part: "
    "if the whole model differs, all int8 nodes are cut out, get the same inputs on both sides and are compared alone."
)


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        raise SystemExit(str(error)) from None
