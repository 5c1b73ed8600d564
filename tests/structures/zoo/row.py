"""`row`: what one structure is, and what is expected of it."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from zoo.net import PROBES, Net
from zoo.oracle import Part, Piece
from zoo.samples import Feed, Input, draw_feeds

CALIBRATION = 32
"""Number of calibration samples."""
FRESH = 32
"""Number of samples that the oracle judges by."""
INDEX_MARGIN_DB = 3.0
"""Decibels by which one index of the channel axis may fall below a piece: its fidelity comes from few samples."""
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
        optimized_within: largest difference that a clean-up may make, relative to an output's largest value.
        min_db: the least that every output and piece must keep; an index of the channel axis may have 3 dB less.
        agree: the least share of equal integers, truth values and texts.
        refused: words of the sentence with which `quantize` refuses the file; empty where it must not.
        unreadable: words of the sentence with which every command refuses the file.
        fed_as: the type that floats are fed in; None for that of the inputs.
        calibration: samples for calibration instead of those drawn from the inputs.
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
    optimized_within: float = 1e-4  # sums of float32 in another order
    min_db: float = 8.0  # quantize demands 10 dB of its own samples; on others there may be a little less
    agree: float = 0.9
    refused: str = ""
    unreadable: str = ""
    fed_as: type | None = None
    calibration: Mapping[str, Input] | None = None
    fast: bool = False
    exported: bool = False

    def demands(self, part: Part) -> float:
        """The least value that is accepted for a part."""
        if not part.decibels:
            return self.agree
        return self.min_db - INDEX_MARGIN_DB if part.index else self.min_db

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    def model(self) -> onnx.ModelProto:
        """Build the file."""
        net = Net(dict(self.inputs), draw_feeds(dict(self.inputs), self.seed, PROBES), self.opset, self.seed)
        made = self.build(net, *self.inputs)
        model = net.finish(made if isinstance(made, dict) else {"y": made})
        return self.change(model) if self.change else model

    def save(self, folder: Path) -> Path:
        """Write the file, and return its path."""
        path = folder / f"{self.name}.onnx"
        onnx.save(self.model(), path)
        return path

    def fresh_feeds(self) -> list[Feed]:
        """Samples that calibration has not seen."""
        return self._feeds(self.inputs, 2, FRESH)

    def calibration_feeds(self) -> list[Feed]:
        return self._feeds(self.calibration or self.inputs, 1, CALIBRATION)

    def _feeds(self, inputs: Mapping[str, Input], number: int, count: int) -> list[Feed]:
        feeds = draw_feeds(dict(inputs), self.seed + number, count)
        if self.fed_as is None:
            return feeds
        return [
            {name: a.astype(self.fed_as) if a.dtype.kind == "f" else a for name, a in feed.items()} for feed in feeds
        ]


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
