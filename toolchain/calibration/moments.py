"""Second moments of the inputs of products: H = E[x xᵀ] over positions, with columns in the order of the packed weight.

For a convolution x is the patch under the kernel, laid out (kh, kw, channel) for each group; for a matrix product it is
a row. H is K x K, so memory is bounded in three ways: some positions of every sample are drawn, the same ones each
time; layers whose matrices together fit the budget share a pass over the data; and only the blocks along the diagonal
of H are kept, of at most `MAX_BLOCK_COLUMNS` columns, because for a K of thousands H has gigabytes and takes minutes to
invert. Where that is still too much work, because a model has many or very long rows, the blocks are smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.calibration.statistics import consecutive_groups, stream
from toolchain.core.arrays import F32, F64, Index
from toolchain.core.progress import Progress, Stage, silent
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.graph import query, run, tap
from toolchain.ops.weights import weight_axes

MAX_BLOCK_COLUMNS = 1024
"""Largest block of H. It is even, because adjacent columns are rounded in pairs."""
MIN_BLOCK_COLUMNS = 64
"""Blocks are not made smaller than this."""
MAX_MULTIPLICATIONS = 3e11
"""Largest number of multiplications for all moments of a model; a processor does some 5e10 in a second."""
POSITIONS_PER_COLUMN = 8
"""Positions that are drawn for every column of a block, over all samples; fewer where the data has fewer."""
MIN_POSITIONS_PER_SAMPLE = 32
"""At least this many positions of each sample are drawn."""
MOMENTS_BUDGET_MIB = 256.0
"""Memory for the matrices of one pass over the data."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the input of one product.

    Attributes:
        blocks: blocks along the diagonal of the mean of x xᵀ, each float64 [groups, b, b] with
            b <= `MAX_BLOCK_COLUMNS`.
        positions: number of positions the mean was taken over.
    """

    blocks: tuple[F64, ...]
    positions: int


def second_moments(
    model: ir.Model,
    data: CalibrationData,
    nodes: Sequence[ir.Node],
    *,
    budget_mib: float = MOMENTS_BUDGET_MIB,
    threads: int = 0,
    progress: Progress = silent,
) -> Iterator[tuple[ir.Node, Moments]]:
    """Yield each node with the moments of its first input, one by one, so that the caller need not hold them all.

    Args:
        model: the float model.
        data: samples to run.
        nodes: Conv, Gemm (not transA) or MatMul nodes of `model` with constant weights.
        budget_mib: memory for the matrices of one pass.
        threads: onnxruntime threads, 0 for its own choice.
        progress: called for every sample.

    Raises:
        DataError: onnxruntime refuses a sample.
    """
    limit = _block_limit(nodes)
    batches = consecutive_groups([(node, _bytes(node, limit)) for node in nodes], int(budget_mib * 2**20))
    stage = Stage("second moments", len(batches) * len(data), progress)
    for batch in batches:
        names = list(dict.fromkeys(str(node.inputs[0].name) for node in batch))  # type: ignore[union-attr]
        engine = run.lean_session(tap.expose(model, names), threads)
        sums = [_MomentSum(node, limit, len(data)) for node in batch]
        for number, outputs in stream(engine, data, stage):
            arrays = dict(zip(names, outputs, strict=True))
            for total in sums:
                total.add(arrays[str(total.node.inputs[0].name)], seed=number)  # type: ignore[union-attr]
        while sums:
            total = sums.pop(0)
            yield total.node, total.moments()


def joint_moments(
    model: ir.Model, data: CalibrationData, groups: Sequence[Sequence[ir.Node]], *, progress: Progress = silent
) -> Iterator[tuple[Sequence[ir.Node], Moments]]:
    """Yield each group of nodes with the moments over the first inputs of all of them, for nodes that share a weight.

    Args:
        model: the float model.
        data: samples to run.
        groups: nodes of `model` as in :func:`second_moments`; the weights of one group have one shape.
        progress: called for every sample.

    Raises:
        DataError: onnxruntime refuses a sample.
    """
    each = second_moments(model, data, [node for group in groups for node in group], progress=progress)
    for group in groups:
        total = next(each)[1]
        for _ in group[1:]:
            total = _joined(total, next(each)[1])
        yield group, total


def _joined(one: Moments, other: Moments) -> Moments:
    """Return the moments over the positions of both."""
    positions = one.positions + other.positions
    share = one.positions / max(positions, 1)
    blocks = tuple(share * a + (1 - share) * b for a, b in zip(one.blocks, other.blocks, strict=True))
    return Moments(blocks, positions)


def channel_moments(
    model: ir.Model,
    data: CalibrationData,
    tensor_axes: Iterable[tuple[str, int]],
    *,
    positions: int = 4096,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[tuple[str, int], tuple[F64, F64]]:
    """Compute second moments [C, C] and means [C] along one axis of tensors, over positions drawn from the other axes.

    Args:
        model: the float model.
        data: samples to run.
        tensor_axes: pairs of tensor name and axis.
        positions: number of positions drawn over all samples; at least ten for each element of the axis are drawn.
        threads: onnxruntime threads, 0 for its own choice.
        progress: called for every sample.

    Raises:
        DataError: onnxruntime refuses a sample.
    """
    pairs = sorted(set(tensor_axes))
    names = list(dict.fromkeys(name for name, _ in pairs))
    engine = run.lean_session(tap.expose(model, names), threads)
    sums: dict[tuple[str, int], tuple[F64, F64]] = {}
    zero = np.zeros(1)
    counts = dict.fromkeys(pairs, 0)
    for number, outputs in stream(engine, data, Stage("moments of channels", len(data), progress)):
        arrays = dict(zip(names, outputs, strict=True))
        for pair in pairs:
            flat = np.moveaxis(arrays[pair[0]], pair[1], -1)
            flat = flat.reshape(-1, flat.shape[-1])
            share = max(MIN_POSITIONS_PER_SAMPLE, max(positions, 10 * flat.shape[1]) // len(data))
            x: F64 = flat[position_sampler(share, number)(len(flat))].astype(np.float64)
            second, mean = sums.get(pair, (zero, zero))
            sums[pair] = second + x.T @ x, mean + x.sum(axis=0)
            counts[pair] += len(x)
    return {pair: (second / counts[pair], mean / counts[pair]) for pair, (second, mean) in sums.items()}


class _MomentSum:
    """Adds up the moments of one node over samples."""

    def __init__(self, node: ir.Node, limit: int, samples: int) -> None:
        self.node = node
        groups, columns = _columns(node)
        self._blocks = [np.zeros((groups, n, n)) for n in _block_sizes(columns, limit)]
        self._sample_positions = max(MIN_POSITIONS_PER_SAMPLE, POSITIONS_PER_COLUMN * min(columns, limit) // samples)
        self._positions = 0
        self._waiting: list[F32] = []

    def add(self, x: Array, seed: int) -> None:
        vectors = product_inputs(self.node, x, self._sample_positions, seed)
        self._positions += vectors.shape[1]
        self._waiting.append(vectors)
        # Products of few vectors would take less time than adding them to the blocks.
        if 2 * sum(part.shape[1] for part in self._waiting) >= self._blocks[0].shape[1]:
            self._multiply()

    def _multiply(self) -> None:
        vectors = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        start = 0
        for block in self._blocks:
            part = vectors[..., start : start + block.shape[1]]
            # A matrix times its own transpose takes half the time, but only one by one.
            block += part[0].T @ part[0] if len(part) == 1 else np.matmul(part.transpose(0, 2, 1), part)
            start += block.shape[1]

    def moments(self) -> Moments:
        if self._waiting:
            self._multiply()
        return Moments(tuple(block / max(self._positions, 1) for block in self._blocks), self._positions)


def _block_limit(nodes: Iterable[ir.Node]) -> int:
    """Return the largest number of columns of a block: the most for which all moments are not too much work."""
    sizes = [_columns(node) for node in nodes]
    limit = MAX_BLOCK_COLUMNS
    while limit > MIN_BLOCK_COLUMNS:
        # Each of the positions is multiplied with the columns of its block.
        work = sum(groups * columns * POSITIONS_PER_COLUMN * min(columns, limit) ** 2 for groups, columns in sizes)
        if work <= MAX_MULTIPLICATIONS:
            break
        limit //= 2
    return limit


def _columns(node: ir.Node) -> tuple[int, int]:
    """Return the number of groups and the columns K of each."""
    shape = query.sizes(node.inputs[1]) or ()
    if node.op_type == "Conv":
        return query.attribute(node, "group", 1), int(np.prod(shape[1:]))
    return 1, shape[weight_axes(node).in_]


def _block_sizes(columns: int, limit: int) -> list[int]:
    """Split columns into blocks of even sizes, at most `limit`, that differ as little as possible."""
    count = -(-columns // limit)
    size = -(-columns // count)
    size += size % 2
    return [min(size, columns - start) for start in range(0, columns, size)]


def _bytes(node: ir.Node, limit: int) -> int:
    groups, columns = _columns(node)
    return 8 * groups * sum(n * n for n in _block_sizes(columns, limit))


def product_inputs(node: ir.Node, x: Array, count: int, seed: int) -> F32:
    """Draw at most `count` of the vectors that a product multiplies its weight by: float32 [groups, n, K].

    Args:
        node: Conv, Gemm or MatMul with a constant weight.
        x: its first input.
        count: number of positions.
        seed: decides which positions are drawn.
    """
    draw = position_sampler(count, seed)
    if node.op_type != "Conv":
        flat = x.reshape(-1, x.shape[-1])
        return flat[draw(len(flat))][None].astype(np.float32)
    kernel = (query.sizes(node.inputs[1]) or ())[2:]
    strides, dilations, before, behind = query.window(node, x.shape[2:])
    counts = [
        (size + first + last - d * (k - 1) - 1) // stride + 1
        for size, first, last, d, k, stride in zip(x.shape[2:], before, behind, dilations, kernel, strides, strict=True)
    ]
    drawn = draw(len(x) * int(np.prod(counts)))
    batch, *indices = np.unravel_index(drawn, (len(x), *counts))
    taps = [tap.ravel() for tap in np.indices(kernel)]
    places = [  # [n, taps] along each axis
        (p * stride - first)[:, None] + d * tap
        for p, stride, first, d, tap in zip(indices, strides, before, dilations, taps, strict=True)
    ]
    inside = np.all([(p >= 0) & (p < size) for p, size in zip(places, x.shape[2:], strict=True)], axis=0)
    near = [np.clip(p, 0, size - 1) for p, size in zip(places, x.shape[2:], strict=True)]
    patches = x[(batch[:, None], slice(None), *near)] * inside[..., None]  # [n, taps, channels]
    groups = query.attribute(node, "group", 1)
    rows: Array = patches.reshape(*inside.shape, groups, -1)  # [n, taps, groups, channels of a group]
    return rows.transpose(2, 0, 1, 3).reshape(groups, len(batch), -1).astype(np.float32)


def position_sampler(count: int, seed: int) -> Callable[[int], Index]:
    """Return a function that draws at most `count` of a number of positions.

    It returns their indices in rising order; the same seed draws the same positions.
    """
    rng = np.random.default_rng(seed)

    def draw(available: int) -> Index:
        if available <= count:
            return np.arange(available)
        return np.sort(rng.choice(available, count, replace=False))

    return draw
