"""The streaming engine: two passes over the data, memory bounded by one sample and one group of tensors.

Pass 1 adds ``ReduceMin``, ``ReduceMax``, ``Size`` and ``ReduceSum`` (per channel where asked for) behind every
wanted tensor and makes only those tiny results outputs, so the model runs as always, frees its activations as
always, and all tensors are seen at once. It gives the limits, the means and the tensors' sizes; the sums also tell
of a NaN, which minimum and maximum pass over.

Pass 2 makes the tensors themselves outputs, a group at a time whose sizes fit the memory budget, and counts
them into histograms with the edges fixed by pass 1. Counts are integers, so the result does not depend on the
order of the samples. It depends on the grouping only where onnxruntime fuses over tensors that are no outputs and
then rounds otherwise: an element in a hundred thousand may move to the next bin.

onnxruntime's own calibrators keep every activation of every sample; here nothing outlives its sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime import InferenceSession

from toolchain.data import CalibrationData
from toolchain.errors import DataError
from toolchain.files import cache_dir
from toolchain.graph import edit, io, query, run
from toolchain.observation import VERSION, Observation, TensorStats
from toolchain.tensors import Array

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

CHUNK = 1 << 16
"""Elements binned at a time: the temporaries stay inside the second-level cache."""


def observe(
    model: ir.Model,
    data: CalibrationData,
    tensors: Mapping[str, int | None],
    *,
    bins: int = 2048,
    group_mib: float = 64.0,
    threads: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> Observation:
    """Run `model` over `data` and gather statistics of `tensors`.

    Args:
        model: an optimized model; it is not changed.
        data: feeds the model takes.
        tensors: float32 tensor name to the channel axis its means are wanted along, or None.
        bins: histogram bins of each tensor.
        group_mib: activation memory one histogram pass may hold.
        threads: onnxruntime threads, 0 for its own choice.
        cache: reuse and keep the result on disk, keyed by the content of model, data and request.
        progress: told about every sample.

    Raises:
        DataError: a sample makes a tensor NaN or infinite, or onnxruntime refuses it.
    """
    digest = hashlib.sha256(io.to_bytes(model)).hexdigest() if io.weight_bytes(model) <= io.EMBED_LIMIT_BYTES else ""
    path = cache_dir("observations") / f"{_key(digest, data, tensors, bins)}.npz"
    if cache and digest and (known := Observation.load(path)) is not None:
        return known
    report = progress or (lambda what, done, total: None)
    summary = _first_pass(model, data, tensors, threads, report)
    counts = _second_pass(model, data, summary, bins, group_mib, threads, report)
    found = Observation(
        {name: TensorStats(s.minimum, s.maximum, s.count, s.mean(), counts[name]) for name, s in summary.items()},
        samples=len(data),
        model_sha256=digest,
        data_fingerprint=data.fingerprint,
    )
    if cache and digest:
        found.save(path)
    return found


def _key(digest: str, data: CalibrationData, tensors: Mapping[str, int | None], bins: int) -> str:
    request = repr((VERSION, digest, data.fingerprint, sorted(tensors.items()), bins))
    return hashlib.sha256(request.encode()).hexdigest()[:32]


# ------------------------------------------------------------------------------------------------- pass 1


@dataclass
class _Summary:
    """Running limits, sums and sizes of one tensor."""

    minimum: float = np.inf
    maximum: float = -np.inf
    count: int = 0
    largest: int = 0
    sums: npt.NDArray[np.float64] | None = None

    def add(self, low: float, high: float, size: int, sums: Array | None) -> None:
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.count += size
        self.largest = max(self.largest, size)
        if sums is not None:
            self.sums = sums.astype(np.float64) + (0.0 if self.sums is None else self.sums)

    def mean(self) -> npt.NDArray[np.float64] | None:
        return None if self.sums is None else self.sums * (len(self.sums) / max(self.count, 1))


def _first_pass(
    model: ir.Model, data: CalibrationData, tensors: Mapping[str, int | None], threads: int, report: Progress
) -> dict[str, _Summary]:
    engine = _session(_augmented(model, tensors), threads)
    summary = {name: _Summary() for name in tensors}
    for number, outputs in _stream(engine, data, "limits", report):
        results: Iterator[Array] = iter(outputs)
        for name, axis in tensors.items():
            low, high, size, sums = (next(results) for _ in range(4))
            if int(size) == 0:
                continue
            if np.isnan(sums).any() or not np.isfinite([low, high]).all():
                raise DataError(
                    f"makes tensor {name!r} {'infinite' if np.isinf([low, high]).any() else 'NaN'}",
                    where=f"{data.source}: sample {number}",
                    hint="check the preprocessing and the model on this sample",
                )
            summary[name].add(float(low), float(high), int(size), None if axis is None else sums)
    return {name: s for name, s in summary.items() if s.count}


def _augmented(model: ir.Model, tensors: Mapping[str, int | None]) -> ir.Model:
    """A clone whose outputs are, for every tensor, minimum, maximum, size and sum (with an axis: sums per channel), and
    then the model's own.
    """
    clone = model.clone()
    graph = clone.graph
    values = {value.name: value for value in query.activations(clone)}
    names = edit.Names(graph)
    outputs: list[ir.Value] = []

    def add(op: str, value: ir.Value, dtype: ir.DataType, axes: list[int] | None = None) -> None:
        inputs, attributes = [value], {} if op == "Size" else {"keepdims": 0}
        if axes is not None:
            inputs.append(edit.add_constant(graph, names.fresh(f"{value.name}_axes"), np.array(axes, np.int64)))
            attributes["noop_with_empty_axes"] = 1  # a vector: nothing is summed but over the samples
        node = ir.node(op, inputs, attributes, name=names.fresh(f"{value.name}_{op}"))
        node.outputs[0].name = names.fresh(f"{node.name}_out")
        node.outputs[0].dtype = dtype
        graph.append(node)
        outputs.append(node.outputs[0])

    for name, axis in tensors.items():
        value = values[name]
        add("ReduceMin", value, ir.DataType.FLOAT)
        add("ReduceMax", value, ir.DataType.FLOAT)
        add("Size", value, ir.DataType.INT64)
        rank = len(value.shape or ())
        axes = None if axis is None else [a for a in range(rank) if a != axis % rank]
        add("ReduceSum", value, ir.DataType.FLOAT, axes)
    # The model's own outputs stay, so that it runs to its end: a sample it cannot take is found here, not later.
    edit.keep_outputs(clone, [*outputs, *graph.outputs])
    return clone


# ------------------------------------------------------------------------------------------------- pass 2


def _second_pass(
    model: ir.Model,
    data: CalibrationData,
    summary: Mapping[str, _Summary],
    bins: int,
    group_mib: float,
    threads: int,
    report: Progress,
) -> dict[str, npt.NDArray[np.int64]]:
    counts = {name: np.zeros(bins, np.int64) for name in summary}
    groups = _groups({name: 4 * s.largest for name, s in summary.items()}, int(group_mib * 2**20))
    for index, group in enumerate(groups):
        clone = model.clone()
        values = {value.name: value for value in query.activations(clone)}
        edit.keep_outputs(clone, [values[name] for name in group])
        engine = _session(clone, threads)
        for _, outputs in _stream(engine, data, f"histograms {index + 1}/{len(groups)}", report):
            for name, array in zip(group, outputs, strict=True):
                count_into(counts[name], array, summary[name].minimum, summary[name].maximum)
    return counts


def _groups(sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    """Consecutive tensors whose bytes sum to at most `budget`; a bigger one stands alone."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = budget
        groups[-1].append(name)
        room -= size
    return groups


def count_into(counts: npt.NDArray[np.int64], array: Array, low: float, high: float) -> None:
    """Add the elements of a float32 `array` to equal bins over [low, high], none of which lies below `low`."""
    bins = len(counts)
    flat = array.reshape(-1).astype(np.float32, copy=False)
    if high <= low:
        counts[0] += flat.size
        return
    # float64 where the range, or a bin's reciprocal, is beyond float32.
    limit = float(np.finfo(np.float32).max)
    kind = np.float32 if bins / limit < high - low < limit else np.float64
    factor = kind(bins / (high - low))
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK] - kind(low)
        part *= factor
        index = part.astype(np.intp)
        found = np.bincount(index, minlength=bins + 1)
        found[bins - 1] += found[bins:].sum()  # the maximum itself, and what rounding put beside it
        counts += found[:bins]


def _session(model: ir.Model, threads: int) -> InferenceSession:
    """Lean, and without idle threads that spin: between two runs it is NumPy that needs the processor."""
    return run.session(model, threads=threads, pattern=False, options={"session.intra_op.allow_spinning": "0"})


def _stream(
    engine: InferenceSession, data: CalibrationData, what: str, report: Progress
) -> Iterator[tuple[int, Sequence[Array]]]:
    """Run every feed; yields (number of the sample in its source, outputs)."""
    for done, (number, feed) in enumerate(zip(data.numbers, data, strict=True), start=1):
        try:
            outputs = engine.run(None, feed)
        except run.OrtError as error:
            raise DataError(
                f"onnxruntime cannot run the model on it ({run.one_line(error)})",
                where=f"{data.source}: sample {number}",
                hint="give samples of the size the model takes",
            ) from None
        yield number, outputs
        report(what, done, len(data))
