"""`Recipe`: every choice that makes one artifact differ from another, in a file.

A recipe never names a device: what depends on the device comes from the `Target`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from toolchain.formats.base import Document, Part

RangeMethod = Literal["auto", "mse", "minmax", "percentile", "entropy"]


class Calibrate(Part):
    """samples: at most so many are read, evenly spread over the data; None reads all.
    bins: histogram bins of each tensor; group_mib: how much activation memory one observing pass may hold.
    """

    samples: int | None = pydantic.Field(default=None, ge=1)
    bins: int = pydantic.Field(default=2048, ge=16)
    group_mib: float = pydantic.Field(default=64.0, gt=0)


class Quantize(Part):
    """ranges: how activation ranges are chosen; auto: by least squared error where that lowers the outputs' error, else
    min-max. percentile: for that method, in percent.
    exact: overflow-free weights, so that every target computes the same numbers.
    equalize, bias_correction, rounding: steps that are taken where they lower the outputs' error: channels are
    rescaled to like ranges; the mean error of the weights is taken out of the bias; weights are rounded by the second
    moments of what they multiply.
    mixed: the few operators that make most of the error stay float, where the model is no slower for it and does not
    give the same bits everywhere anyway.
    keep_float: names of nodes, or operator types, that stay float.
    measure: leave fragments float that are measured slower as int8 on this machine.
    fp16_weights: weights that stay float are stored as float16, for a smaller download.
    """

    ranges: RangeMethod = "auto"
    percentile: float = pydantic.Field(default=99.99, gt=50, le=100)
    exact: bool = True
    equalize: bool = True
    bias_correction: bool = True
    rounding: bool = True
    mixed: bool = True
    keep_float: tuple[str, ...] = ()
    measure: bool = True
    fp16_weights: bool = False


class Prune(Part):
    """How a graph is pruned. At most one goal: speedup: so many times as fast as before. latency_ms: an inference takes
    so long. keep: this part of the multiply-accumulates stays.
    criterion: which channels go first; see :mod:`toolchain.pruning.importance`.
    uniform: all groups to the same part, instead of by loss and latency.
    branches: whole residual branches may go.
    repair: what is left is fitted to the dense model's answers, layer by layer.
    minutes: of training after that to give the dense model's answers, without labels; needs PyTorch. 0: none.
    seed: of what is drawn at random.
    """

    speedup: float | None = pydantic.Field(default=None, gt=1)
    latency_ms: float | None = pydantic.Field(default=None, gt=0)
    keep: float | None = pydantic.Field(default=None, gt=0, lt=1)
    criterion: Literal["obs", "activation", "l2", "l1", "random"] = "obs"
    uniform: bool = False
    branches: bool = True
    repair: bool = True
    minutes: float = pydantic.Field(default=0.0, ge=0)
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _one_goal(self) -> Prune:
        if sum(goal is not None for goal in (self.speedup, self.latency_ms, self.keep)) > 1:
            raise ValueError("speedup, latency_ms and keep exclude each other")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is a goal."""
        return any(goal is not None for goal in (self.speedup, self.latency_ms, self.keep))


class Bench(Part):
    """How latency is measured: warm up, then at least `min_runs` runs and `min_time_s` seconds, shared by the rounds.
    processes: so many fresh ones share the rounds.
    """

    warmup_s: float = pydantic.Field(default=0.3, ge=0)
    min_time_s: float = pydantic.Field(default=3.0, ge=0)
    min_runs: int = pydantic.Field(default=20, ge=3)
    rounds: int = pydantic.Field(default=30, ge=1)
    processes: int = pydantic.Field(default=3, ge=1)
    threads: int | None = pydantic.Field(default=None, ge=1)


class Recipe(Document):
    """What to do to a model. The default recipe is the recommended one."""

    KIND: ClassVar[str] = "recipe"

    schema_version: Literal[1] = 1
    calibrate: Calibrate = Calibrate()
    prune: Prune = Prune()
    quantize: Quantize = Quantize()
    bench: Bench = Bench()
    max_drop: float | None = pydantic.Field(default=None, ge=0)
