"""`row`: what one structure is, and what is expected of it."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from zoo.net import PROBES, Net
from zoo.oracle import Piece
from zoo.samples import Feed, Input, draw_feeds

CALIBRATION = 24
"""Number of calibration samples."""
FRESH = 32
"""Number of samples that the oracle judges by."""
Change = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True)
class Row:
    """One structure.

    Attributes:
        name: of the function that builds it.
        build: takes a `Net` and the names of the inputs; returns one value, or values by the names of the outputs.
        inputs: the inputs by name.
        opset: version of the standard operators.
        change: turns the finished file into another form of it (float16, unsorted nodes ...).
        parts: by output, pieces (axis, start, stop) that are judged on their own.
        channels: by output, its channel axis; 1 where nothing is said.
        sets: outputs whose rows are chosen by the data, such as boxes behind TopK; they are compared as sets.
        int8_at_least: number of products that must be int8.
        float_because: words that the reasons of nodes left float contain.
        min_db: the least that every part must keep.
        agree: the least share of equal integers, truth values and texts.
        refused: words of the sentence with which `quantize` refuses the file; empty where it must not.
        unreadable: words of the sentence with which every command refuses the file.
        calibration: samples for calibration instead of those drawn from the inputs.
        may_fail_its_gate: `quantize` may give up with exit code 1.
        random: the source gives other numbers at every run, so that nothing can be compared.
        fast: part of the fast tier.
        exported: also goes through export and verify.
    """

    name: str
    build: Callable
    inputs: Mapping[str, Input]
    opset: int = 17
    change: Change | None = None
    parts: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    int8_at_least: int = 1
    float_because: tuple[str, ...] = ()
    min_db: float = 10.0
    agree: float = 0.9
    refused: str = ""
    unreadable: str = ""
    calibration: Mapping[str, Input] | None = None
    may_fail_its_gate: bool = False
    random: bool = False
    fast: bool = False
    exported: bool = False

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    def model(self) -> onnx.ModelProto:
        """Build the file."""
        net = Net(dict(self.inputs), self.feeds(0, PROBES), self.opset, self.seed)
        made = self.build(net, *self.inputs)
        model = net.finish(made if isinstance(made, dict) else {"y": made})
        return self.change(model) if self.change else model

    def save(self, folder: Path) -> Path:
        """Write the file, and return its path."""
        path = folder / f"{self.name}.onnx"
        onnx.save(self.model(), path)
        return path

    def feeds(self, seed: int, count: int) -> list[Feed]:
        """Samples of the inputs."""
        return draw_feeds(dict(self.inputs), self.seed + seed, count)

    def calibration_feeds(self) -> list[Feed]:
        return draw_feeds(dict(self.calibration or self.inputs), self.seed + 1, CALIBRATION)

    def fresh_feeds(self) -> list[Feed]:
        return self.feeds(2, FRESH)


ROWS: dict[str, Row] = {}
"""All rows by name, in the order of the table."""


def row(*inputs: Input, **expected) -> Callable[[Callable], Callable]:
    """Enter a function into the table.

    Args:
        inputs: of the model, in the order of the function's parameters after the first, which name them.
        expected: the other attributes of `Row`.
    """

    def enter(build: Callable) -> Callable:
        names = list(inspect.signature(build).parameters)[1:]
        assert build.__name__ not in ROWS, build.__name__
        ROWS[build.__name__] = Row(build.__name__, build, dict(zip(names, inputs, strict=True)), **expected)
        return build

    return enter
