"""The oracle: how much of every part of every output is left, from NumPy and onnxruntime alone.

A part is a piece that a row declares, ``[:, 4:20]`` of a detector for example, or one index of an output's channel
axis. Its fidelity, over samples and places and with a mean for every index of the channel axis, is

    10 log₁₀ ( Σ (y - mean)² / Σ (ŷ - y)² )

so that an answer that is always the same has 0 dB, whatever its offset. Parts that are constant in float are left out.
Integers, truth values and texts are compared by how many agree; where their number depends on the data, as sets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from zoo.net import session
from zoo.samples import Feed

CONSTANT = 1e-8
"""A part whose variance is less than this share of the largest part's is constant."""
PRODUCTS = {"Conv", "Gemm", "MatMul", "ConvTranspose", "Einsum"}
Piece = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """Fidelity of one part: `value` is in dB, or the share of equal elements where `decibels` is false.

    index: the part is one index of the channel axis.
    """

    name: str
    value: float
    decibels: bool = True
    index: bool = False


@dataclass(frozen=True)
class Answers:
    """A model's interface and its outputs, one array for every sample."""

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    arrays: tuple[list[np.ndarray], ...]


def answers(path: Path | str, feeds: Sequence[Feed]) -> Answers:
    """Run a file with onnxruntime as a user would, with all its optimizations."""
    run = session(str(path), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    results = [run.run(None, feed) for feed in feeds]
    ends = tuple((value.name, value.type) for value in run.get_outputs())
    return Answers(
        tuple((value.name, value.type) for value in run.get_inputs()),
        ends,
        tuple([result[k] for result in results] for k in range(len(ends))),
    )


def interface_changes(before: Answers, after: Answers) -> list[str]:
    """Sentences on names, order and types of inputs and outputs, and on shapes of outputs, that differ."""
    found = []
    for kind in ("inputs", "outputs"):
        if getattr(before, kind) != getattr(after, kind):
            found.append(f"{kind} {getattr(before, kind)} became {getattr(after, kind)}")
    for (name, _), old, new in zip(before.outputs, before.arrays, after.arrays, strict=False):
        pairs = [(np.shape(a), np.shape(b)) for a, b in zip(old, new, strict=True) if not isinstance(a, list)]
        found += [f"{name}: shape {a} became {b}" for a, b in pairs if len(a) != len(b)][:1]
    return found


def declared_shapes(path: Path | str) -> dict[str, tuple[int | str, ...] | None]:
    """The shapes of inputs and outputs as the file declares them; None where it declares none."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: _declared(v) for v in (*graph.input, *graph.output)}


def _declared(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)


def parts_left(
    before: Answers,
    after: Answers,
    pieces: Mapping[str, Sequence[Piece]],
    channels: Mapping[str, int],
    sets: Collection[str] = (),
) -> list[Part]:
    """Judge every part.

    Args:
        before: of the source.
        after: of the changed file, on the same samples.
        pieces: by output, (axis, start, stop) of the pieces that its producer joined.
        channels: by output, its channel axis, 1 where nothing is said.
        sets: outputs whose rows are chosen by the data, such as boxes behind TopK.
    """
    found: list[Part] = []
    for (name, _), old, new in zip(before.outputs, before.arrays, after.arrays, strict=True):
        if name in sets:
            found.append(Part(f"{name} (as a set)", _found_again(old, new), decibels=False))
            continue
        if isinstance(old[0], list):
            old, new = [[np.ravel(x) for sample in side for x in sample] for side in (old, new)]
        if np.asarray(old[0]).dtype.kind not in "fc" and np.asarray(old[0]).dtype.name != "bfloat16":
            found.append(Part(name, _agreement(old, new), decibels=False))
            continue
        if any(np.shape(a) != np.shape(b) for a, b in zip(old, new, strict=True)):
            found.append(Part(f"{name} (number of rows)", _agreement(old, new), decibels=False))
            continue
        found += _float_parts(name, old, new, pieces.get(name, ()), channels.get(name, 1))
    return found


def _float_parts(name: str, old: list, new: list, pieces: Sequence[Piece], axis: int) -> list[Part]:
    chosen = [(name, slice(None), 0)]
    chosen += [(f"{name}[axis {k}, {start}:{stop}]", slice(start, stop), k) for k, start, stop in pieces]
    candidates = []
    for label, cut, k in chosen:
        candidates.append(
            (label, False, *_power([_take(a, cut, k) for a in old], [_take(b, cut, k) for b in new], axis))
        )
    first, second = (_rows(side, axis) for side in (old, new))
    if first is not None and second is not None and first.shape[1] > 1:
        for c in range(first.shape[1]):
            candidates.append((f"{name}[axis {axis}, {c}]", True, *_moments(first[:, c], second[:, c])))
    largest = max(variance for _, _, variance, _, _ in candidates)
    return [
        Part(label, 10 * np.log10(variance / max(error, 1e-12 * variance)), index=index)
        for label, index, variance, error, size in candidates
        if variance > CONSTANT * largest and variance > 1e-10 * size
    ]


def _take(array: np.ndarray, chosen: slice, axis: int) -> np.ndarray:
    return array if chosen == slice(None) else array[(slice(None),) * (axis % array.ndim) + (chosen,)]


def _rows(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray | None:
    """All samples as [places, channels]; None where the arrays have no such axis, or not always the same size."""
    arrays = [np.asarray(a, np.float64) for a in arrays]
    if any(a.ndim <= (axis if axis >= 0 else -axis - 1) for a in arrays) or len({a.shape[axis] for a in arrays}) > 1:
        return None
    return np.concatenate([np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in arrays])


def _power(old: list, new: list, axis: int) -> tuple[float, float, float]:
    """Variance, error and size of a piece; every channel has its own mean."""
    first, second = _rows(old, axis), _rows(new, axis)
    if first is None or second is None:
        first, second = (np.concatenate([np.ravel(a).astype(np.float64) for a in side])[:, None] for side in (old, new))
    moments = np.array([_moments(first[:, c], second[:, c]) for c in range(first.shape[1])])
    return tuple(moments.mean(0)) if len(moments) else (0.0, 0.0, 0.0)


def _moments(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Variance of the first, mean squared difference, mean square of the first; where the first is finite."""
    finite = np.isfinite(first)
    if not finite.any():
        return 0.0, 0.0, 0.0
    a, b = first[finite], np.nan_to_num(second[finite], nan=1e30, posinf=1e30, neginf=-1e30)
    return float(a.var()), float(((a - b) ** 2).mean()), float((a**2).mean())


def _agreement(old: list, new: list) -> float:
    """Share of equal elements over all samples; of rows that both have (F1) for samples whose shapes differ."""
    equal = []
    for a, b in zip(map(np.asarray, old), map(np.asarray, new), strict=True):
        if a.shape == b.shape:
            equal.append(float(np.mean(a == b)) if a.size else 1.0)
        else:
            rows = [{tuple(np.ravel(row)) for row in side} for side in (np.atleast_1d(a), np.atleast_1d(b))]
            equal.append(2 * len(rows[0] & rows[1]) / max(len(rows[0]) + len(rows[1]), 1))
    return float(np.mean(equal))


def _found_again(old: list, new: list) -> float:
    """Share of rows of the first that have a row in the second within a tenth of the standard deviation."""
    deviation, share = np.std(np.concatenate([np.ravel(a) for a in old])), []
    for a, b in zip(old, new, strict=True):
        a, b = (side.reshape(-1, a.shape[-1]) for side in (a, b))
        apart = np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1)) if len(b) else np.full((len(a), 1), np.inf)
        share += list(apart.min(1) < 0.1 * deviation)
    return float(np.mean(share)) if share else 1.0


def int8_products(path: Path | str) -> int:
    """Number of products that a file computes from integers: QDQ around them, or an integer operator."""
    graph = onnx.load(str(path)).graph
    made_by = {output: node for node in graph.node for output in node.output}
    count = 0
    for node in graph.node:
        readers = [made_by[name].op_type if name in made_by else "" for name in node.input[:2]]
        count += node.op_type in PRODUCTS and readers[:2] == ["DequantizeLinear"] * 2
        count += "Integer" in node.op_type or (node.op_type.startswith("DynamicQuantize") and node.domain != "")
    return count
