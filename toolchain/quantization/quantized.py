"""`Quantized`: an int8 plan with everything needed to write it, to judge it and to plan again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.judge import Judge
from toolchain.formats.findings import ClippedTensor, NoiseSource
from toolchain.formats.manifest import AccuracyStep
from toolchain.formats.target import Encoding
from toolchain.graph import io
from toolchain.ops.cost import total_macs
from toolchain.quantization.accuracy.clipping import count_clipped
from toolchain.quantization.accuracy.sensitivity import measure_noise
from toolchain.quantization.accuracy.steps import QuantBasis
from toolchain.quantization.plan import Plan
from toolchain.quantization.planner import AuditedPlan, Planner
from toolchain.quantization.qdq.fusion_audit import Audit
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import Reasons
from toolchain.storage.fp16 import halve_weights

SENSITIVITY_SAMPLES = 4
"""Number of samples that noise is measured on."""
CLIPPING_SAMPLES = 16
"""Number of samples whose values outside the ranges are counted."""


@dataclass(frozen=True)
class Quantized:
    """An int8 plan and everything needed to write it or to plan again.

    Attributes:
        planned: the audited plan; the channels of its float model may be rescaled.
        source: the float model as it was given.
        planner: makes other plans for the same data and recipe.
        check: the samples that accuracy steps were judged by.
        steps: the accuracy steps that were tried.
        notes: facts about the whole model that a user should read.
    """

    planned: AuditedPlan
    source: ir.Model
    planner: Planner
    check: CalibrationData
    steps: tuple[AccuracyStep, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def basis(self) -> QuantBasis:
        """Model, statistics, settings and weights that the plan was made from."""
        return self.planned.basis

    @property
    def plan(self) -> Plan:
        """The scales and integers."""
        return self.planned.plan

    @property
    def audit(self) -> Audit:
        """The part of the plan that onnxruntime runs."""
        return self.planned.audit

    @property
    def model(self) -> ir.Model:
        """The float model that the plan is for; its channels may be rescaled."""
        return self.basis.model

    @property
    def observation(self) -> Observation:
        """The statistics that the plan's ranges come from."""
        return self.basis.observation

    @property
    def encoding(self) -> Encoding:
        """Encoding of activations that this machine has fast kernels for."""
        return self.planner.encoding

    @property
    def computing(self) -> list[str]:
        """Names of the nodes that compute in int8, static or dynamic."""
        return [choice.node for choice in self.plan.choices if choice.precision in ("int8", "int8 dynamic")]

    def with_note(self, note: str) -> Quantized:
        """Return a copy with another fact about the whole model."""
        return replace(self, notes=(*self.notes, note))

    def write(self, encoding: Encoding) -> ir.Model:
        """Write the quantized model for targets of this encoding."""
        written = apply_quantization(self.model, self.plan, encoding)
        return halve_weights(written).model if self.planner.recipe.quantize.fp16_weights else written

    def noise_sources(self) -> tuple[NoiseSource, ...]:
        """Measure the effect of rounding each tensor and each weight on the outputs, the largest first."""
        judge = Judge(self.model, self.check.take(SENSITIVITY_SAMPLES))
        if not judge.usable:
            return ()
        samples = f"{judge.samples} of {self.check.fingerprint}"
        macs = total_macs(self.model, self.check.shapes)
        return measure_noise(self.model, self.plan, judge, samples, self.planner.progress, macs=macs)

    def clipped(self) -> tuple[ClippedTensor, ...]:
        """Count the values of the check samples that lie outside the ranges, tensor by tensor."""
        inputs = [spec.name for spec in io.inputs(self.model)]
        feeds = ({name: feed[name] for name in inputs} for feed in self.check.take(CLIPPING_SAMPLES))
        return count_clipped(self.model, self.plan.activations, feeds)

    def leaving_float(self, reasons: Mapping[str, str]) -> Quantized:
        """Plan and audit again with the nodes of `reasons` float too; all other decisions stay."""
        return self.planned_from(self.basis, {**self.planned.reasons, **reasons})

    def planned_from(self, basis: QuantBasis, reasons: Reasons | None = None) -> Quantized:
        """Plan and audit again from another basis.

        Args:
            basis: model, statistics and weights to plan from.
            reasons: nodes that stay float, and why; by default those of this plan.
        """
        known = self.planned.reasons if reasons is None else reasons
        return replace(self, planned=self.planner.audited_plan(basis.model, known, basis))
