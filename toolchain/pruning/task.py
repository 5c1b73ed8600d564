"""`PruneTask`: what pruning to a goal decides from, and the making, timing and judging of one smaller model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from toolchain.channels.branches import drop_branches
from toolchain.channels.cut import Cuts, apply_cuts, keep_sets
from toolchain.channels.index_spaces import kept_positions
from toolchain.core.arrays import Index
from toolchain.core.progress import Progress
from toolchain.data.calibration import CalibrationData
from toolchain.evaluation.judge import Judge
from toolchain.formats.recipe import Prune
from toolchain.ops.cost import total_macs
from toolchain.pruning.latency import quick_int8
from toolchain.pruning.loss import LossLimit
from toolchain.pruning.options import PruneBasis, kept_channels
from toolchain.pruning.repair import repair
from toolchain.pruning.search import WidthPlan
from toolchain.pruning.speed import Speed, SpeedMeter, race_speedup
from toolchain.training.engine.distil import distil

LOGGER = logging.getLogger(__name__)

INT8_SAMPLES = 4
"""Number of samples for an int8 model of which only the speed is measured."""


@dataclass(frozen=True)
class Made:
    """A pruned model.

    Attributes:
        model: after repair and training.
        cut_db: fidelity as cut, in dB.
    """

    model: ir.Model
    cut_db: float


@dataclass(frozen=True)
class PruneTask:
    """The request and everything that decisions are made from.

    Attributes:
        basis: the dense model, its groups and the order of their channels.
        data: samples for repair and training.
        check: held-out samples.
        settings: the goal and the method.
        judge: compares with the dense model on a few held-out samples.
        limit: the most that may be lost; None: everything.
        int8: int8 follows, so its speed counts.
        chosen_by: the cost by which widths are chosen, for the report.
        progress: called at every step.
        meter: times whole models.
    """

    basis: PruneBasis
    data: CalibrationData
    check: CalibrationData
    settings: Prune
    judge: Judge
    limit: LossLimit | None
    int8: bool
    chosen_by: str
    progress: Progress
    meter: SpeedMeter

    @cached_property
    def deployed_dense(self) -> ir.Model:
        """The dense model as it is deployed."""
        return self.deployed(self.basis.model)

    @cached_property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense model."""
        return self.macs(self.basis.model.clone())

    def deployed(self, model: ir.Model) -> ir.Model:
        """Return the model itself, or an int8 model that is as fast as the deployed one."""
        return quick_int8(model, self.data.take(INT8_SAMPLES)) if self.int8 else model

    def cuts(self, plan: WidthPlan) -> dict[str, list[int]]:
        """Return the channels that each cut group keeps."""
        return {name: kept_channels(self.basis, name, width) for name, width in plan.kept.items()}

    def macs(self, model: ir.Model) -> int:
        """Count multiply-accumulates for the first sample; sets the shapes of the model."""
        return total_macs(self.basis.sized(model))

    def cut(self, plan: WidthPlan) -> ir.Model:
        """Cut the model, without repair."""
        return drop_branches(apply_cuts(self.basis.model, self.cuts(plan)), plan.dropped)

    def macs_factor(self, pruned: ir.Model) -> float:
        """Return the multiply-accumulates of the dense model over those of a pruned one."""
        return self.dense_macs / self.macs(pruned.clone())

    def race(self, dense: ir.Model, pruned: ir.Model) -> float:
        """Estimate quickly how much faster the second of two deployed models is."""
        return race_speedup(self.meter.race(dense, pruned, self.basis.feed))

    def measure(self, dense: ir.Model, pruned: ir.Model) -> Speed:
        """Measure how much faster the second of two models is."""
        self.progress("measuring the speed")
        return self.meter.measure(dense, pruned, self.basis.feed)

    def deployed_speed(self, pruned: ir.Model) -> Speed:
        """Measure how much faster a pruned model is than the dense one, both as they are deployed."""
        return self.measure(self.deployed_dense, self.deployed(pruned))

    def make(self, plan: WidthPlan, *, minutes: float = 0.0) -> Made:
        """Cut, repair and train.

        Args:
            plan: the widths.
            minutes: length of the training; 0: none.
        """
        pruned = self.cut(plan)
        cut_db = self.judge.fidelity_db(pruned)
        if self.settings.repair:
            pruned = self._repaired(self.cuts(plan), pruned, cut_db)
        if minutes:
            pruned = distil(
                pruned,
                self.basis.model,
                self.data,
                minutes=minutes,
                seed=self.settings.seed,
                check=self.check,
                progress=self.progress,
            ).model
        return Made(pruned, cut_db)

    def _repaired(self, cuts: Cuts, pruned: ir.Model, before_db: float) -> ir.Model:
        """Repair the layers; keep the repair only where it brings the outputs nearer to the dense model's."""
        basis = self.basis
        keep = keep_sets(basis.model, basis.layout, cuts)
        by_name = {str(value.name): (value, axes) for value, axes in basis.layout.axes.items()}

        def kept(tensor: str) -> Index | None:
            value, axes = by_name[tensor]
            axis = axes[1] if _has_channels_first(value) else axes[-1]
            positions = kept_positions(axis, keep) if axis.root.size is not None else None
            return None if positions is None or len(positions) == axis.root.size else positions

        repaired = repair(pruned, basis.model, self.data, kept, progress=self.progress)
        after_db = self.judge.fidelity_db(repaired)
        better = after_db > before_db
        LOGGER.info("layer repair: %.2f dB -> %.2f dB, %s", before_db, after_db, "kept" if better else "not kept")
        return repaired if better else pruned


def _has_channels_first(value: ir.Value) -> bool:
    """Check whether a tensor is the output of a convolution, or of sums with a convolution among their terms."""
    node = value.producer()
    while node is not None and node.op_type == "Add":
        conv = any(v is not None and (n := v.producer()) is not None and n.op_type == "Conv" for v in node.inputs)
        if conv:
            return True
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Conv"
