"""`Manifest`: the content of an exported folder, its origin and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from toolchain.formats.base import Document, Record
from toolchain.formats.findings import ClippedTensor
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import Measurement, Score
from toolchain.formats.target import Encoding
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.formats.verdict import Verdict

MANIFEST_NAME = "manifest.json"
"""Name of the manifest's file in an exported folder."""


class FileEntry(Record):
    """A file of the folder."""

    name: str
    """File name."""
    sha256: str
    """Hash of the content."""
    size_bytes: int
    """Size of the content."""


class Source(Record):
    """The model that was converted."""

    name: str
    """File, or ``package.module:callable``."""
    sha256: str
    """Hash of the file, or of the ONNX model exported from a torch module."""
    kind: Literal["torch", "pt2", "onnx"]
    """torch: a module. pt2: a file of ``torch.export.save``. onnx: an ONNX file."""
    exporter: str
    """Program that wrote the ONNX model, with its version."""


class CalibrationEntry(Record):
    """The samples that activation ranges were computed from."""

    source: str
    """File, folder, or ``package.module:callable``."""
    samples: int
    """Number of samples."""
    fingerprint: str
    """Hash of all samples."""
    preprocessing: dict[str, object] | None = None
    """The image pipeline with its settings; null where the samples were arrays."""


Precision = Literal["int8", "int8 dynamic", "int8 storage", "float"]
"""`int8`: static int8. `int8 dynamic`: int8 products of activations whose range is measured at run time.
`int8 storage`: the constant is int8 in the file, and the node computes in float."""


class NodePrecision(Record):
    """The precision in which one node computes."""

    node: str
    """Name of the node."""
    op: str
    """Type of the operator."""
    precision: Precision
    """int8: static int8. int8 dynamic: int8 products of activations whose range is measured at run time. int8 storage:
    the constant is int8 in the file, and the node computes in float."""
    reason: str | None = None
    """Why the node is not static int8; null where it is."""

    @property
    def int8(self) -> bool:
        """True for static int8 only."""
        return self.precision == "int8"


class AccuracyStep(Record):
    """A step for accuracy that was tried.

    Range search is measured on calibration samples, all other steps on samples that no statistic was taken from.
    """

    name: str
    """Name of the step."""
    without_db: float
    """Fidelity of the outputs in dB without the step, after the decisions on all steps before it."""
    with_db: float
    """Fidelity of the outputs in dB with the step."""
    used: bool
    """True where the step was kept."""


class StageTime(Record):
    """The time that a stage of the export took."""

    stage: str
    """Name of the stage."""
    seconds: float
    """Wall-clock seconds, on the exporting machine."""

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> tuple[StageTime, ...]:
        """Make the records of seconds by stage, in milliseconds precision."""
        return tuple(cls(stage=stage, seconds=round(time, 3)) for stage, time in seconds.items())


class TradeOff(Record):
    """A point of the trade-off curve: a plan that was tried to keep to the limits."""

    float_nodes: int
    """Number of operators left float for accuracy."""
    score: float
    """Score of the int8 model."""
    speedup: float
    """Speed-up over the float model on the exporting machine, with one thread."""


class Proof(Record):
    """The reason why int8 nodes give the same integers on every processor."""

    kernel: str
    """onnxruntime's name of the kernel."""
    proof: str
    """The reason."""
    nodes: tuple[str, ...]
    """Names of the nodes it holds for."""
    used: float | None = None
    """Largest part of the proof's bound that a node uses, below 1: part of int32's range, or the kernels' error divided
    by the distance to the nearest tie. Null where there is no bound."""


class Doubt(Record):
    """The reason why nodes may give other numbers on other processors."""

    op: str
    """Type of the operator."""
    kernel: str | None
    """onnxruntime's name of the int8 kernel; null for a float operator."""
    reason: str
    """The reason."""
    nodes: tuple[str, ...]
    """Names of the nodes it holds for."""


STEPS_MEANING = "int8 operators read float results, so outputs may differ between processors by as much as int8 rounds"
"""What it means that a last digit of float can become a whole step of int8."""


class Exactness(Record):
    """The exactness certificate: whether every target computes the same integers."""

    activations: Encoding
    """Encoding of activations in the file. x86 has exact kernels for u8 only, ARM for both."""
    overflow_free: bool
    """True where no product can saturate on any processor."""
    exceptions: tuple[str, ...] = ()
    """What may differ between processors, one clause for each cause."""
    steps: bool = False
    """True where an int8 operator follows one that may differ, so that an integer beside a tie may change by one."""
    proofs: tuple[Proof, ...] = ()
    """Proofs for all int8 nodes that cannot differ; empty in manifests older than the certificate."""
    doubts: tuple[Doubt, ...] = ()
    """Reasons for all nodes that may differ; empty in manifests older than the certificate."""

    @property
    def differs(self) -> bool:
        """True where outputs may differ between processors by more than the last digits of float."""
        return self.steps or not self.overflow_free or any(doubt.kernel for doubt in self.doubts)

    @property
    def summary(self) -> str:
        """One clause on how outputs may differ between processors, with the causes."""
        causes = "; ".join(self.exceptions)
        if self.steps:
            return f"{STEPS_MEANING}: {causes}"
        if self.differs:
            return f"not the same numbers on every processor: {causes}"
        return "the same numbers on every processor" + (f", except: {causes}" if causes else "")


class Manifest(Document):
    """The evidence of one exported model."""

    KIND: ClassVar[str] = "manifest"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    target: str
    """Name of the target."""
    created: str
    """Date and time of the export in ISO 8601."""
    versions: dict[str, str]
    """Versions of the packages that made the model."""
    source: Source
    """Origin of the model."""
    recipe: Recipe
    """The choices of the export."""
    calibration: CalibrationEntry
    """The calibration data."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model."""
    outputs: tuple[TensorSpec, ...]
    """Outputs of the model."""
    files: tuple[FileEntry, ...]
    """Files of the folder."""
    precision: tuple[NodePrecision, ...]
    """Precision of every node."""
    exactness: Exactness
    """The exactness certificate."""
    steps: tuple[AccuracyStep, ...] = ()
    """Steps for accuracy in the order they were tried."""
    verdict: Verdict | None = None
    """What is left of the float model's answer, part by part; null in manifests older than the judge."""
    clipped: tuple[ClippedTensor, ...] = ()
    """Tensors with values outside their int8 range on held-out samples, those with the largest share first."""
    tradeoff: tuple[TradeOff, ...] = ()
    """Plans that were tried to keep to the limits, from all int8 on."""
    reference_score: Score | None = None
    """Score of the float model."""
    measurements: tuple[Measurement, ...] = ()
    """Rows of this model in the table of results."""
    stages: tuple[StageTime, ...] = ()
    """Times of all stages before this folder was written, in the order of their beginnings."""
    notes: tuple[str, ...] = ()
    """Facts that users of the folder should know, one sentence each."""
