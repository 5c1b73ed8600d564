"""A report page, and the findings and manifest it is made from."""

from __future__ import annotations

from toolchain.formats.findings import (
    BudgetCheck,
    Checkpoint,
    CutFidelity,
    CutGroup,
    CutProof,
    Evaluation,
    Findings,
    NoiseSource,
    Profile,
    Pruning,
    TargetFit,
    TrainingStep,
)
from toolchain.formats.manifest import CalibrationEntry, Exactness, FileEntry, Manifest, NodePrecision, Source
from toolchain.formats.recipe import Recipe
from toolchain.formats.results import OperatorTime, Results
from toolchain.report.compare import Comparison
from toolchain.report.derive import derive
from toolchain.report.html import page as html

PROFILES = (
    Profile(
        variant="fp32",
        operators=(
            OperatorTime(node="a_nchwc", op="Conv", median_us=40.0, layer="a"),
            OperatorTime(node="b_nchwc", op="Conv", median_us=60.0, layer="b"),
            OperatorTime(node="r", op="ReorderOutput", median_us=5.0),
        ),
    ),
    Profile(
        variant="int8",
        operators=(
            OperatorTime(node="q", op="QuantizeLinear", median_us=3.0),
            OperatorTime(node="a_token_1", op="QLinearConv", median_us=20.0, layer="a"),
            OperatorTime(node="b_token_2", op="QLinearConv", median_us=25.0, layer="b"),
        ),
    ),
)


CHECKPOINTS = tuple(
    Checkpoint(share=i / 4, evaluation=Evaluation(loss=1 / (i + 1), fidelity_db=5.0 * i, accuracy=0.5 + 0.1 * i))
    for i in range(5)
)

PRUNING = Pruning(
    helped=True,
    reason="",
    speedup=1.3,
    int8_speedup=1.2,
    fidelity_db=CutFidelity(cut=11.0, repaired=24.0),
    macs=(1000, 700),
    parameters=(100, 60),
    chosen_by="multiply-accumulates",
    groups=(CutGroup(name="conv", size=64, kept=48, nodes=("conv", "next")),),
    dropped=(),
    proof=CutProof(error=1e-7, identical=True, exact=True),
    notes=(),
)


TRAINING = tuple(
    TrainingStep(
        technique=name, summary="<some> channels", seconds=12.3, steps=40, checkpoints=CHECKPOINTS, kept=4,
        macs=123_000,
        parameters=1000, zeros=0.25, bytes=2_000_000, zip_bytes=1_000_000, wire_bytes=900_000, score=0.875,
        notes=("no faster",),
    )
    for name in ("prune", "distil")
)  # fmt: skip


FINDINGS = Findings(
    when="2026-01-01T00:00:00+00:00",
    profiles=PROFILES,
    macs={"a": 900, "b": 100},
    fits=(
        TargetFit(
            target="host",
            title="A <box>",
            channel_multiple=8,
            convolutions=2,
            misfits=(),
            budgets=(
                BudgetCheck(name="size", unit="MiB", limit=10.0, value=13.4, fits=False),
                BudgetCheck(name="latency", unit="ms", limit=15.0, value=None, fits=None),
            ),
        ),
    ),
    pruning=PRUNING,
    causes=(
        NoiseSource(kind="activation", at="x", op="Conv", share=0.75, fidelity_db=30.0),
        NoiseSource(kind="weight", at="a", op="Conv", share=0.25, fidelity_db=35.0),
    ),
    training=TRAINING,
)


def manifest(**changes):
    base = Manifest(
        target="host",
        created="2026-01-01T00:00:00+00:00",
        versions={"onnx": "1.23.2"},
        source=Source(name="mine:net", sha256="1" * 64, kind="torch", exporter="torch"),
        recipe=Recipe(max_drop=0.5),
        calibration=CalibrationEntry(source="photos", samples=64, fingerprint="2" * 64),
        inputs=(),
        outputs=(),
        files=(FileEntry(name="model.onnx", sha256="0" * 64, size_bytes=14_000_000),),
        precision=(
            NodePrecision(node="a", op="Conv", precision="int8"),
            NodePrecision(node="b", op="Conv", precision="float", reason="its <reason> & more"),
        ),
        exactness=Exactness(activations="u8", overflow_free=True),
    )
    return base.model_copy(update=changes)


def page(results: Results, details: html.Details | None = None) -> str:
    return html.render(Comparison(derive([(None, results)])), details)
