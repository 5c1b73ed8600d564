"""Golden hashes of the int8 files of every benchmark model: a change of the code must not change the integers.

    python -m benchmarks.integers [MODEL ...] [-o FOLDER]            # quantize, and write FOLDER/integers-CPU.json
    python -m benchmarks.integers [MODEL ...] --check [-o FOLDER]    # quantize, and compare with that file

Everything that can be int8 is int8 (`Quantize(measure=False)`): no race decides, so the files are the same at every run
on one processor, with one version of each library. Float operators compute the ranges, so another processor or version
may give other files: the record names those it was made with. With ``--check`` the exit code is 1 if a model changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks import choices, tables
from benchmarks.models import MODELS, NAMES, Model, missing
from toolchain.api.prepare import prepare
from toolchain.benchmark.host import describe_host
from toolchain.core.errors import DataError, ToolchainError
from toolchain.core.files import write_text
from toolchain.data.calibration import open_data
from toolchain.formats.recipe import Quantize, Recipe
from toolchain.formats.results import Host
from toolchain.formats.target import Encoding
from toolchain.graph import io
from toolchain.quantization.loop import quantize_model

SAMPLES = 64
ENCODINGS: tuple[Encoding, ...] = ("u8", "s8")
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class ModelFile:
    """Hashes of one written model.

    Attributes:
        sha256: of the whole file.
        tensors: of its initializers alone (dtype, shape and bytes), whatever they and the nodes are called.
    """

    sha256: str
    tensors: str


@dataclass(frozen=True)
class Integers:
    """Result of quantizing one benchmark model.

    Attributes:
        source: the float model that was quantized.
        u8, s8: the int8 file in either encoding.
        int8_nodes, nodes: number of nodes that are int8, and of all.
        steps: for each accuracy step its name, the fidelity without and with it (dB), and whether it was kept.
    """

    source: ModelFile
    u8: ModelFile
    s8: ModelFile
    int8_nodes: int
    nodes: int
    steps: list[list[str | float | bool]]


def measure(model: Model) -> Integers:
    """Quantize a benchmark model without races, and take the hashes."""
    float_model = prepare(model.onnx_path()).model
    data = open_data(lambda: islice(model.calibration(SAMPLES), SAMPLES), io.inputs(float_model))
    quantized = quantize_model(float_model, data, Recipe(quantize=Quantize(measure=False)))
    u8, s8 = (describe(quantized.write(encoding)) for encoding in ENCODINGS)
    selected = quantized.plan.choices
    steps: list[list[str | float | bool]] = [
        [step.name, step.without_db, step.with_db, step.used] for step in quantized.steps
    ]
    return Integers(describe(float_model), u8, s8, sum(choice.int8 for choice in selected), len(selected), steps)


def describe(model: ir.Model) -> ModelFile:
    """The hashes of a model as it would be written."""
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    contents = [f"{t.dtype} {tuple(t.shape.numpy())} {_sha256(t.tobytes())}" for t in tensors]
    return ModelFile(_sha256(io.to_bytes(model)), _sha256("\n".join(sorted(contents)).encode()))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differences(stored: Record, measured: Record) -> list[str]:
    """The parts of a model's record that changed, each as a clause; empty if none did."""
    clauses = []
    for part in ("source", *ENCODINGS):
        if stored[part]["tensors"] != measured[part]["tensors"]:
            clauses.append(f"{part}: other tensors")
        elif stored[part]["sha256"] != measured[part]["sha256"]:
            clauses.append(f"{part}: the same tensors in another graph")
    if stored["int8_nodes"] != measured["int8_nodes"] or stored["nodes"] != measured["nodes"]:
        now, before = (f"{record['int8_nodes']} of {record['nodes']}" for record in (measured, stored))
        clauses.append(f"{now} nodes int8 instead of {before}")
    if stored["steps"] != measured["steps"]:
        clauses.append("other accuracy steps or fidelities")
    return clauses


def made_with(host: Host) -> dict[str, str]:
    """Everything that float results depend on: the processor and the versions of the libraries."""
    processor = f"{host.cpu} ({', '.join(host.features)})"
    return {"processor": processor, "python": host.python, **{name: version(name) for name in LIBRARIES}}


def load(path: Path) -> dict[str, Any]:
    """Read a file of hashes: `made_with`, and ``models``, a record for each name.

    Raises:
        DataError: there is no such file.
    """
    if not path.exists():
        raise DataError("no such file of hashes", where=path, hint="make it by running without --check")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def check(names: Iterable[str], stored: Mapping[str, Record]) -> bool:
    """Quantize the models and print what changed.

    Returns:
        Whether every model is as it was stored.
    """
    changed = []
    for name in names:
        if name not in stored:
            clauses = ["not in the file"]
        else:
            clauses = differences(stored[name], as_record(measure(MODELS[name])))
        print(f"{name}: {'; '.join(clauses) or 'unchanged'}", flush=True)
        changed += [name] if clauses else []
    return not changed


def as_record(integers: Integers) -> dict[str, Any]:
    """The record as JSON gives it back."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(integers)))
    return record


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integers", description="Golden hashes of int8 files.")
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", type=choices.model, help="from benchmarks.models; all by default"
    )
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    parser.add_argument("-o", "--output", type=Path, default=tables.RESULTS, help="folder of the file")
    options = parser.parse_args(arguments)
    host = describe_host()
    file = options.output / f"integers-{tables.slug(host)}.json"
    names = [name for name in options.models or NAMES if not _left_out(name)]
    here = made_with(host)
    if options.check:
        stored = load(file)
        for key in here:
            if here[key] != stored["made_with"][key]:
                print(f"{key}: {here[key]} instead of {stored['made_with'][key]}", file=sys.stderr)
        return 0 if check(names, stored["models"]) else 1
    records = load(file)["models"] if file.exists() else {}
    for name in names:
        records[name] = as_record(measure(MODELS[name]))
        print(f"{name}: u8 {records[name]['u8']['sha256'][:12]}, s8 {records[name]['s8']['sha256'][:12]}", flush=True)
        ordered = {known: records[known] for known in NAMES if known in records}
        write_text(file, json.dumps({"made_with": here, "models": ordered}, indent=1) + "\n")
    return 0


def _left_out(name: str) -> bool:
    reason = missing(name)
    if reason:
        print(f"{name}: left out, {reason}", file=sys.stderr)
    return reason is not None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ToolchainError as error:
        sys.exit(str(error))
