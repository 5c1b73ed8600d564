"""`Manifest`: what an exported folder holds, what it was made from, and what it proved."""

from __future__ import annotations

from typing import ClassVar, Literal

from toolchain.formats.base import Document, Part
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Measurement, Score
from toolchain.formats.tensor_spec import TensorSpec


class FileEntry(Part):
    """A file of the folder."""

    name: str
    sha256: str
    size_bytes: int


class Source(Part):
    """What was converted."""

    name: str
    sha256: str
    kind: Literal["torch", "pt2", "onnx"]
    exporter: str


class CalibrationEntry(Part):
    """The data the ranges come from."""

    source: str
    samples: int
    fingerprint: str
    preprocessing: dict[str, object] | None = None


Precision = Literal["int8", "int8 dynamic", "int8 storage", "float"]
"""`int8`: static int8. `int8 dynamic`: int8 products of activations whose range is measured at run time.
`int8 storage`: the constant is int8 in the file, and the node computes in float."""


class NodePrecision(Part):
    """The precision in which one node computes. reason: why that is not static int8; None where it is."""

    node: str
    op: str
    precision: Precision
    reason: str | None = None

    @property
    def int8(self) -> bool:
        """True for static int8 only."""
        return self.precision == "int8"


class AccuracyStep(Part):
    """An accuracy step that was tried.

    without_db, with_db: fidelity of the outputs in dB without and with the step, after the decisions on all steps
    before it. used: the step was kept.
    """

    name: str
    without_db: float
    with_db: float
    used: bool


class TradeOff(Part):
    """A point of the trade-off curve: a plan that was tried for ``max_drop``.

    float_nodes: number of operators left float for accuracy. speedup: over the float model on the exporting machine,
    one thread.
    """

    float_nodes: int
    score: float
    speedup: float


class Proof(Part):
    """Why int8 nodes give the same integers on every processor: a clause, and the nodes it holds for.

    kernel: onnxruntime's name for what runs. used: the worst part of what the proof allows, below 1: of int32's range,
    or the kernels' error over the nearest tie's distance; None where nothing is used up.
    """

    kernel: str
    proof: str
    nodes: tuple[str, ...]
    used: float | None = None


class Doubt(Part):
    """Why nodes may give other numbers on other processors. kernel: None for a float operator."""

    op: str
    kernel: str | None
    reason: str
    nodes: tuple[str, ...]


class Exactness(Part):
    """Whether every target computes the same integers: the certificate.

    activations: how they are spelt. x86 has exact kernels for u8 only, ARM for both.
    overflow_free: no product can saturate on any processor. exceptions: what may differ, a clause for each cause.
    steps: something int8 lies behind what may differ, so that an integer next to a tie may move by one.
    proofs: of every int8 node without a doubt. doubts: every node that may differ. Both are empty in manifests of
    before there was a certificate.
    """

    activations: Literal["u8", "s8"]
    overflow_free: bool
    exceptions: tuple[str, ...] = ()
    steps: bool = False
    proofs: tuple[Proof, ...] = ()
    doubts: tuple[Doubt, ...] = ()


class Manifest(Document):
    """The evidence of one artifact. notes: what a user of the folder should know, a sentence each."""

    KIND: ClassVar[str] = "manifest"

    schema_version: Literal[1] = 1
    target: str
    created: str
    versions: dict[str, str]
    source: Source
    recipe: Recipe
    calibration: CalibrationEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    precision: tuple[NodePrecision, ...]
    exactness: Exactness
    steps: tuple[AccuracyStep, ...] = ()
    tradeoff: tuple[TradeOff, ...] = ()
    reference_score: Score | None = None
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
