"""`Planner`: plan and audit in turn, until everything that is planned as int8 runs as int8.

    select → observe → plan → apply → audit ─► plan
       ▲                                │
       └── what does not run as int8 ◄──┘   stays float, with the reason

Nothing here keeps state: the reasons why nodes stay float are passed in, and returned with the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.calibration.observation import Observation
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.formats.recipe import Recipe
from toolchain.formats.target import Encoding
from toolchain.quantization.accuracy.steps import QuantBasis, covers, observe_selection
from toolchain.quantization.plan import Plan
from toolchain.quantization.qdq.fusion_audit import Audit, audit, optimized_graph
from toolchain.quantization.qdq.writer import apply_quantization
from toolchain.quantization.selection import Reasons, Selection, select

UNFUSED_REASON = "onnxruntime does not fuse it into an int8 kernel on this machine"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditedPlan:
    """A plan that onnxruntime runs as planned.

    Attributes:
        basis: model, statistics, settings and weights that the plan was made from.
        plan: scales and integers.
        audit: the part of the plan that onnxruntime runs as int8.
        reasons: names of nodes that stay float although their operators could be int8, with the reason.
    """

    basis: QuantBasis
    plan: Plan
    audit: Audit
    reasons: Reasons


@dataclass(frozen=True)
class Planner:
    """Makes audited plans.

    Attributes:
        data: samples that statistics are taken from.
        recipe: settings of calibration and quantization.
        encoding: the encoding of activations in the audit, which is this machine's own.
        progress: called for every stage.
    """

    data: CalibrationData
    recipe: Recipe
    encoding: Encoding
    progress: Progress

    def select(self, model: ir.Model, reasons: Reasons) -> Selection:
        """Choose int8 or float for every node; the nodes of `reasons` stay float."""
        return select(model, self.recipe.quantize.keep_float, reasons)

    def audited_plan(self, model: ir.Model, reasons: Reasons, basis: QuantBasis | None = None) -> AuditedPlan:
        """Plan `model`, and leave float what onnxruntime does not run as int8.

        Args:
            model: the float model.
            reasons: nodes that stay float, and why.
            basis: the basis of an earlier plan for the same model; its statistics and weights are reused.

        Returns:
            The plan. Its reasons contain `reasons` and those that the audit added.
        """
        reasons = dict(reasons)
        while True:  # ends, because each turn leaves at least one more node float
            basis = self._basis_for(model, self.select(model, reasons), basis)
            self.progress("planning")
            plan = basis.plan()
            audited = audit(optimized_graph(apply_quantization(model, plan, self.encoding)), plan.int8_nodes())
            added = {name: UNFUSED_REASON for name in audited.unfused if name not in reasons} | dict(plan.inexact)
            _log.debug("audit: %d int8 nodes planned, %d not fused", len(plan.int8_nodes()), len(audited.unfused))
            if not added:
                return AuditedPlan(basis, plan, audited, reasons)
            log_left_float(added)
            reasons |= added

    def _basis_for(self, model: ir.Model, selection: Selection, basis: QuantBasis | None) -> QuantBasis:
        """Reuse `basis` where its statistics cover the selection, else observe what is missing.

        The first time, the data is observed even if no tensor needs statistics: this runs every sample once, and so
        finds samples that cannot be run.
        """
        if basis is not None and _covers(basis.observation, selection):
            return replace(basis, selection=selection)
        known = None if basis is None else basis.observation.tensors
        observation = observe_selection(model, selection, self.data, self.recipe.calibrate, self.progress, known)
        self.progress("planning")
        if basis is None:
            return QuantBasis.plain(model, selection, observation, self.recipe.quantize)
        return replace(basis, selection=selection, observation=observation)


def _covers(observation: Observation, selection: Selection) -> bool:
    known = observation.tensors
    return all(name in known and covers(known[name], axis) for name, axis in selection.tensors.items())


def log_left_float(reasons: Mapping[str, str]) -> None:
    """Log which nodes are left float and why, one line for each reason."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        nodes.setdefault(reason, []).append(node)
    for reason, names in nodes.items():
        _log.info("left float, %s: %s", ", ".join(names), reason)
