"""Gather statistics in two passes over the data; memory is bounded by one sample and one group of tensors.

Pass 1 adds ``ReduceMin``, ``ReduceMax``, ``Size`` and ``ReduceSum`` (per channel where asked for, and then of the
squares as well) after every requested tensor. Only those tiny results become outputs. So the model frees its
activations while it runs, as always, and one pass serves all tensors. The pass gives limits, means, mean squares and
sizes; the sums also reveal a NaN, which minimum and maximum ignore.

Pass 2 makes the tensors themselves outputs, in groups whose sizes fit the memory budget, and counts them into
histograms between the limits of pass 1. Of a tensor with more than `MAX_COUNTED_ELEMENTS` over all samples, evenly
spread elements are counted: a range is chosen from the shape of the histogram, which four million elements show, and a
large image has hundreds of millions. Counts are integers, so the result does not depend on the order of the samples.
It depends on the grouping only where onnxruntime fuses operators across tensors that are not outputs and then rounds
differently: one element in a hundred thousand may move to the next bin.

onnxruntime's own calibrators keep every activation of every sample; here nothing outlives its sample.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain.calibration.observation import OBSERVATION_VERSION, ChannelStats, Observation, TensorStats
from toolchain.core.arrays import F64, I64
from toolchain.core.cache import cache_path
from toolchain.core.errors import DataError, one_line
from toolchain.core.progress import Progress, Stage, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.graph import edit, io, query, run, tap

AXES_AS_INPUT_OPSET = 18
"""First operator set in which all reductions take their axes as an input."""

MAX_COUNTED_ELEMENTS = 1 << 22
"""Largest number of elements of one tensor, over all samples, that are counted into its histogram."""
HISTOGRAM_CHUNK_ELEMENTS = 1 << 16
"""Number of elements binned at a time, so that temporaries stay in the second-level cache."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


def observe(
    model: ir.Model,
    data: CalibrationData,
    tensors: Mapping[str, int | None],
    *,
    bins: int = 2048,
    group_mib: float = 64.0,
    threads: int = 0,
    cache: bool = True,
    progress: Progress = silent,
) -> Observation:
    """Run a model on all samples and gather statistics of some of its tensors.

    Args:
        model: an optimized model; it is not changed.
        data: samples to run.
        tensors: names of float32 tensors, each with the axis of its channels, or None for no statistics by channel.
        bins: number of histogram bins of each tensor.
        group_mib: memory for the activations of one histogram pass.
        threads: onnxruntime threads, 0 for its own choice.
        cache: keep the result on disk and reuse it, keyed by the content of model, data and request.
        progress: called for every sample.

    Raises:
        DataError: a sample makes a tensor NaN or infinite, or onnxruntime refuses it.
    """
    digest = hashlib.sha256(io.to_bytes(model)).hexdigest() if io.weight_bytes(model) <= io.EMBED_LIMIT_BYTES else ""
    path = cache_path(
        "observations", OBSERVATION_VERSION, digest, data.fingerprint, sorted(tensors.items()), bins, suffix=".npz"
    )
    if cache and digest and (known := Observation.load(path)) is not None:
        _log.info("statistics of %d tensors read from %s", len(known.tensors), path)
        return known
    started = time.monotonic()
    summary = _first_pass(model, data, tensors, threads, progress)
    counts = _second_pass(model, data, summary, bins, group_mib, threads, progress)
    observation = Observation(
        {
            name: TensorStats(s.minimum, s.maximum, int(counts[name].sum()), s.channels(), counts[name])
            for name, s in summary.items()
        },
        samples=len(data),
        model_sha256=digest,
        data_fingerprint=data.fingerprint,
    )
    seconds = time.monotonic() - started
    _log.info("observed %d tensors on %d samples in %.1f s", len(summary), len(data), seconds)
    if cache and digest:
        observation.save(path)
    return observation


# ------------------------------------------------------------------------------------------------- pass 1


@dataclass
class _Summary:
    """Limits, sums and sizes of one tensor over the samples so far; arrays are [C], or scalars without an axis.

    Attributes:
        by_channel: the arrays are [C].
        low: the smallest values.
        high: the largest values.
        sums: sums of x.
        squares: sums of x².
        count: number of elements.
        largest: number of elements in the largest sample.
    """

    by_channel: bool
    low: F64
    high: F64
    sums: F64
    squares: F64
    count: int
    largest: int

    @classmethod
    def of(cls, low: Array, high: Array, size: int, sums: Array, squares: Array, axis: int | None) -> _Summary:
        low, high, sums, squares = (array.astype(np.float64) for array in (low, high, sums, squares))
        return cls(axis is not None, low, high, sums, squares, count=size, largest=size)

    def join(self, other: _Summary | None) -> _Summary:
        if other is None:
            return self
        return _Summary(
            self.by_channel,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.sums + other.sums,
            self.squares + other.squares,
            self.count + other.count,
            max(self.largest, other.largest),
        )

    @property
    def minimum(self) -> float:
        return float(self.low.min())

    @property
    def maximum(self) -> float:
        return float(self.high.max())

    def channels(self) -> ChannelStats | None:
        if not self.by_channel:
            return None
        share = self.sums.size / self.count
        return ChannelStats(self.sums * share, self.squares * share, self.low, self.high)


def _first_pass(
    model: ir.Model, data: CalibrationData, tensors: Mapping[str, int | None], threads: int, progress: Progress
) -> dict[str, _Summary]:
    stage = Stage("observing ranges", len(data), progress)
    engine = run.lean_session(_augmented(model, tensors), threads)
    summary: dict[str, _Summary] = {}
    for number, outputs in stream(engine, data, stage):
        results: Iterator[Array] = iter(outputs)
        for name, axis in tensors.items():
            low, high, size, sums = (next(results) for _ in range(4))
            squares = sums if axis is None else next(results)
            if int(size) == 0:
                continue
            if np.isnan(sums).any() or not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise DataError(
                    f"makes tensor {name!r} {'infinite' if np.isinf(low).any() or np.isinf(high).any() else 'NaN'}",
                    where=f"{data.source}: sample {number}",
                    hint="check the preprocessing and the model on this sample",
                )
            summary[name] = _Summary.of(low, high, int(size), sums, squares, axis).join(summary.get(name))
    return summary


def _augmented(model: ir.Model, tensors: Mapping[str, int | None]) -> ir.Model:
    """Clone the model and make statistics its outputs, followed by the model's own outputs.

    Each tensor has four: minimum, maximum, size and sum. If an axis was asked for, all but the size are per channel,
    and the sum of squares follows.
    """
    clone = model.clone()
    values = {value.name: value for value in query.activations(clone)}
    appender = _Appender(clone.graph)
    outputs: list[ir.Value] = []

    def reduced(op: str, value: ir.Value, axes: list[int] | None) -> ir.Value:
        if axes == []:  # a vector is summed over samples only; an empty list of axes would mean all axes
            return appender.add("Identity", [value])
        inputs, attributes = [value], {"keepdims": 0}  # type: list[ir.Value], dict[str, Any]
        if axes is not None and (op == "ReduceSum" or query.opset(clone) >= AXES_AS_INPUT_OPSET):
            inputs.append(appender.constant(axes))
        elif axes is not None:
            attributes["axes"] = axes
        return appender.add(op, inputs, attributes)

    for name, axis in tensors.items():
        value = values[name]
        rank = len(value.shape or ())
        axes = None if axis is None else [a for a in range(rank) if a != axis % rank]
        outputs += [reduced(op, value, axes) for op in ("ReduceMin", "ReduceMax")]
        outputs.append(appender.add("Size", [value], dtype=ir.DataType.INT64))
        outputs.append(reduced("ReduceSum", value, axes))
        if axes is not None:  # ReduceSumSquare takes three times as long
            outputs.append(reduced("ReduceSum", appender.add("Mul", [value, value]), axes))
    # The model's own outputs stay, so that it runs to its end and a sample it cannot take is found here.
    edit.keep_outputs(clone, [*outputs, *clone.graph.outputs])
    return clone


class _Appender:
    """Appends nodes and constants to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._names = graph, edit.Names(graph)

    def constant(self, numbers: list[int]) -> ir.Value:
        """Register int64 numbers."""
        return edit.add_constant(self._graph, self._names.fresh("statistics_constant"), np.array(numbers, np.int64))

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """Append a node and return its output."""
        node = ir.node(op, inputs, attributes, name=self._names.fresh(f"{inputs[0].name}_{op}"))
        node.outputs[0].name = self._names.fresh(f"{node.name}_out")
        node.outputs[0].dtype = dtype
        self._graph.append(node)
        return node.outputs[0]


# ------------------------------------------------------------------------------------------------- pass 2


def _second_pass(
    model: ir.Model,
    data: CalibrationData,
    summary: Mapping[str, _Summary],
    bins: int,
    group_mib: float,
    threads: int,
    progress: Progress,
) -> dict[str, I64]:
    counts = {name: np.zeros(bins, np.int64) for name in summary}
    steps = {name: _step(s) for name, s in summary.items()}
    sizes = [(name, 4 * -(-s.largest // steps[name])) for name, s in summary.items()]
    groups = consecutive_groups(sizes, int(group_mib * 2**20))
    stage = Stage("observing histograms", len(groups) * len(data), progress)
    for group in groups:
        engine = run.lean_session(_spread_elements(model, {name: steps[name] for name in group}), threads)
        for _, outputs in stream(engine, data, stage):
            for name, array in zip(group, outputs, strict=True):
                count_into(counts[name], array, summary[name].minimum, summary[name].maximum)
    return counts


def _step(summary: _Summary) -> int:
    """Return n if every n-th element is counted.

    It has no common factor with the number of elements, so that no row, column or channel is left out.
    """
    step = -(-summary.count // MAX_COUNTED_ELEMENTS)
    while math.gcd(step, summary.largest) > 1:
        step += 1
    return step


def _spread_elements(model: ir.Model, steps: Mapping[str, int]) -> ir.Model:
    """Clone the model and make every n-th element of the named tensors its only outputs, in this order."""
    clone = tap.expose(model, steps)
    appender = _Appender(clone.graph)
    outputs = []
    for value, step in zip(list(clone.graph.outputs), steps.values(), strict=True):
        if step > 1:
            flat = appender.add("Reshape", [value, appender.constant([-1])])
            bounds = [appender.constant([number]) for number in (0, np.iinfo(np.int64).max, 0, step)]
            value = appender.add("Slice", [flat, *bounds])
        outputs.append(value)
    edit.keep_outputs(clone, outputs)
    return clone


def consecutive_groups(sizes: Iterable[tuple[T, int]], budget: int) -> list[list[T]]:
    """Group consecutive items whose sizes sum to at most `budget`; a larger item is a group of its own."""
    groups: list[list[T]] = []
    room = 0
    for item, size in sizes:
        if not groups or size > room:
            groups.append([])
            room = budget
        groups[-1].append(item)
        room -= size
    return groups


def count_into(counts: I64, array: Array, low: float, high: float) -> None:
    """Count the elements of a float32 `array` into equal bins over [low, high]; no element lies below `low`."""
    bins = len(counts)
    flat = array.reshape(-1).astype(np.float32, copy=False)
    if high <= low:
        counts[0] += flat.size
        return
    # float64 where the range or the reciprocal of a bin's width does not fit in float32.
    limit = float(np.finfo(np.float32).max)
    dtype = np.float32 if bins / limit < high - low < limit else np.float64
    factor = dtype(bins / (high - low))
    for start in range(0, flat.size, HISTOGRAM_CHUNK_ELEMENTS):
        part = flat[start : start + HISTOGRAM_CHUNK_ELEMENTS] - dtype(low)
        part *= factor
        index = part.astype(np.intp)
        part_counts = np.bincount(index, minlength=bins + 1)
        part_counts[bins - 1] += part_counts[bins:].sum()  # the maximum, and values that rounding moved beyond it
        counts += part_counts[:bins]


def stream(engine: InferenceSession, data: CalibrationData, stage: Stage) -> Iterator[tuple[int, Sequence[Array]]]:
    """Run every sample and yield its number in the source, and the outputs; each is a step of the stage.

    Raises:
        DataError: onnxruntime refuses a sample.
    """
    for number, feed in zip(data.numbers, data, strict=True):
        try:
            outputs = engine.run(None, feed)
        except run.OrtError as error:
            raise DataError(
                f"onnxruntime cannot run the model on it ({one_line(error)})",
                where=f"{data.source}: sample {number}",
                hint="give samples of the size the model takes",
            ) from None
        yield number, outputs
        stage.step()
