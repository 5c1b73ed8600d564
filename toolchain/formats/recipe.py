"""`Recipe`: a file with every choice that makes one exported model differ from another.

A recipe never names a device: the settings that depend on the device come from the `Target`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Record

RangeMethod = Literal["auto", "mse", "minmax", "percentile", "entropy"]


class Calibrate(Record):
    """Settings of reading and observing calibration data."""

    samples: int | None = pydantic.Field(default=None, ge=1)
    """Number of samples to read at most, evenly spread over the data; without it, all."""
    bins: int = pydantic.Field(default=2048, ge=16)
    """Histogram bins for each tensor."""
    group_mib: float = pydantic.Field(default=64.0, gt=0)
    """Activation memory in MiB that one pass over the data may hold."""


class Quantize(Record):
    """Settings of quantization. Steps for accuracy are kept only where they lower the error of the outputs."""

    ranges: RangeMethod = "auto"
    """How activation ranges are chosen. auto: by least squared error (mse) where that lowers the error of the outputs,
    else by minimum and maximum."""
    percentile: float = pydantic.Field(default=99.99, gt=50, le=100)
    """Percentage of values inside the range, for ranges = "percentile"."""
    exact: bool = True
    """Choose weights that cannot overflow and scales without ties, so that every target computes the same numbers."""
    equalize: bool = True
    """Try to rescale channels so that their ranges are alike."""
    bias_correction: bool = True
    """Try to take the mean error of the rounded weights out of the biases."""
    rounding: bool = True
    """Try to round weights by the second moments of the activations they multiply."""
    mixed: bool = True
    """Leave the few operators float that cause most of the error, where the model gets no slower and is not bit-exact
    on all processors anyway."""
    keep_float: tuple[str, ...] = ()
    """Names of nodes, or operator types such as "Softmax", that stay float."""
    measure: bool = True
    """Leave parts of the graph float that are measured to be slower as int8 on this machine."""
    fp16_weights: bool = False
    """Store weights that stay float as float16, for a smaller download at the same speed."""


class Prune(Record):
    """Settings of pruning: at most one goal out of speedup, latency_ms and keep, and the way to it."""

    speedup: float | None = pydantic.Field(default=None, gt=1)
    """Goal: target speed-up, e.g. 1.3."""
    latency_ms: float | None = pydantic.Field(default=None, gt=0)
    """Goal: milliseconds of one inference."""
    keep: float | None = pydantic.Field(default=None, gt=0, lt=1)
    """Goal: part of the multiply-accumulates to keep, e.g. 0.7."""
    criterion: Literal["obs", "activation", "l2", "l1", "random"] = "obs"
    """Importance by which channels are ranked; the least important are cut first. obs: change of the outputs after the
    other weights compensate, by second moments. activation: the change without compensation. l2, l1: size of the
    weights. random: for comparison."""
    uniform: bool = False
    """Keep the same part of every group of channels, instead of choosing widths by loss and latency."""
    branches: bool = True
    """Allow whole residual branches to be removed."""
    repair: bool = True
    """Fit the remaining weights to the outputs of the dense model, layer by layer."""
    minutes: float = pydantic.Field(default=0.0, ge=0)
    """Minutes of training after that towards the dense model's outputs, without labels; needs PyTorch. 0: none."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    @pydantic.model_validator(mode="after")
    def _one_goal(self) -> Prune:
        if sum(goal is not None for goal in (self.speedup, self.latency_ms, self.keep)) > 1:
            raise ValueError("speedup, latency_ms and keep exclude each other")
        return self

    @property
    def has_goal(self) -> bool:
        """True where a goal is given."""
        return any(goal is not None for goal in (self.speedup, self.latency_ms, self.keep))


class Bench(Record):
    """Settings of latency: a warm-up, then at least `min_runs` inferences and `min_time_s` seconds in all."""

    warmup_s: float = pydantic.Field(default=0.3, ge=0)
    """Seconds of warm-up at least, and until the times are steady."""
    min_time_s: float = pydantic.Field(default=3.0, ge=0)
    """Seconds of measuring at least, over all rounds."""
    min_runs: int = pydantic.Field(default=20, ge=3)
    """Number of inferences at least, over all rounds."""
    rounds: int = pydantic.Field(default=30, ge=1)
    """Number of rounds; in each, the models take turns. With a slow model there are fewer, but at least `min_runs`, as
    one inference in each would take longer than `min_time_s`."""
    processes: int = pydantic.Field(default=3, ge=1)
    """Number of fresh processes that share the rounds."""
    threads: int | None = pydantic.Field(default=None, ge=1)
    """Threads within an operator; without it, the target's."""


class Recipe(Document):
    """Every choice about a model that does not depend on the device. The default recipe is the recommended one."""

    KIND: ClassVar[str] = "recipe"

    schema_version: Literal[1] = 1
    """Version of this file format."""
    calibrate: Calibrate = Calibrate()
    """Reading and observing of calibration data."""
    prune: Prune = Prune()
    """How the float model is pruned; nothing is pruned without a goal."""
    quantize: Quantize = Quantize()
    """How the float model becomes int8."""
    bench: Bench = Bench()
    """How latency is measured."""
    max_drop: Annotated[float, pydantic.Field(ge=0)] | Literal["off"] | None = None
    """Largest allowed loss of score against float; operators stay float until it holds. null: no part of the answer may
    be lost. "off": the model is written whatever it lost, and says so."""
