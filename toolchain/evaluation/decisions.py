"""Decisions: what a program would conclude from an output, compared between two models.

The operator that computes a part shows what the part is: a Softmax gives classes, a Sigmoid scores that are compared
with a threshold, four features beside scores are a box, vectors of one length are embeddings. Elements that TopK or
NonMaxSuppression chose are compared as sets, integers and texts exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from toolchain.core.arrays import F64, I64
from toolchain.data.tensors import Array
from toolchain.evaluation.parts import OutputParts, Piece
from toolchain.formats.verdict import Decision

THRESHOLDS = (0.1, 0.25, 0.5, 0.75)
"""Scores above one of these are positives."""
MIN_POSITIVES = 10
"""A threshold counts where the float model has at least this number of positives."""
MAX_RANKED = 100_000
"""Largest number of scores whose order is compared."""
MIN_ROWS = 4
"""Single numbers are compared where a chosen tensor has fewer rows."""
MAX_ROWS = 2000
"""Largest number of rows that are compared as a set."""
ROW_TOLERANCE = 0.25
"""Rows of a set are equal where every number differs by at most this share of its column's standard deviation."""


def of_selected(output: str, expected: Sequence[Array], got: Sequence[Array]) -> Iterator[Decision]:
    """Compare an output that was chosen from larger tensors, or that holds integers or texts.

    Args:
        output: its name.
        expected: the float model's answers, one for each sample.
        got: the other model's answers.
    """
    first = np.asarray(expected[0])
    if first.dtype.kind in "OUS":
        same = [a.shape == b.shape and np.array_equal(a, b) for a, b in zip(expected, got, strict=True)]
        yield Decision(part=output, kind="text", kept=float(np.mean(same)), count=len(same))
    elif first.dtype.kind in "iub":
        pairs = list(zip(expected, got, strict=True))
        if any(a.shape != b.shape for a, b in pairs) or (first.ndim > 1 and first.shape[-1] > 1 and _distinct(first)):
            yield _sets(output, expected, got)
            return
        equal = [np.mean(a == b) if a.size else 1.0 for a, b in pairs]
        yield Decision(part=output, kind="exact", kept=float(np.mean(equal)), count=sum(a.size for a, _ in pairs))
    else:
        yield _sets(output, expected, got)


def _distinct(array: Array) -> bool:
    """True where no number appears twice in a row, as in the indices that TopK gives."""
    rows = array.reshape(-1, array.shape[-1])
    return all(len(np.unique(row)) == len(row) for row in rows)


def _sets(output: str, expected: Sequence[Array], got: Sequence[Array]) -> Decision:
    """Compare rows, or single numbers of integer outputs, in any order; the mean of precision and recall."""
    shares, count = [], 0
    for a, b in zip(expected, got, strict=True):
        first, second = _rows(a), _rows(b)
        count += len(first)
        if not len(first) or not len(second):
            shares.append(float(len(first) == len(second)))
            continue
        if first.shape[1] != second.shape[1]:
            shares.append(0.0)
            continue
        near = ROW_TOLERANCE * np.concatenate([first, second]).std(axis=0) + 1e-12
        same = (np.abs(first[:, None] - second[None]) <= near).all(axis=-1)
        shares.append(float(same.any(axis=1).mean() + same.any(axis=0).mean()) / 2)
    return Decision(part=output, kind="set", kept=float(np.mean(shares)), count=count)


def _rows(array: Array) -> F64:
    x = np.asarray(array, np.float64)
    few = x.ndim < 2 or x.size < MIN_ROWS * x.shape[-1]
    rows = x.reshape(-1, 1) if few or array.dtype.kind in "iu" else x.reshape(-1, x.shape[-1])
    return np.nan_to_num(rows[:MAX_ROWS])


def of_pieces(
    parts: OutputParts,
    labels: Sequence[I64],
    names: Mapping[int, str],
    expected: Sequence[Array],
    got: Sequence[Array],
) -> Iterator[Decision]:
    """Compare what would be concluded from the pieces of an output.

    Args:
        parts: its pieces.
        labels: number of its part for every element, flat, one array for each sample.
        names: name of every piece by its first number.
        expected: the float model's answers.
        got: the other model's answers.
    """
    for piece in parts.pieces:
        pairs = [
            (_matrix(piece, label, a), _matrix(piece, label, b) if a.shape == b.shape else None)
            for label, a, b in zip(labels, expected, got, strict=True)
        ]
        tables = [(a, np.zeros_like(a) if b is None else b) for a, b in pairs if a is not None and a.size]
        if tables:
            yield from _of_piece(parts, piece, names[piece.first], tables)


def _matrix(piece: Piece, label: I64, values: Array) -> F64 | None:
    """Arrange the elements of a piece as [places, features]; None where features have unequal numbers of places."""
    mine = np.flatnonzero(piece.among(label))
    if len(mine) % piece.count:
        return None
    order = mine[np.argsort(label[mine], kind="stable")]
    return np.nan_to_num(values.ravel()[order].astype(np.float64)).reshape(piece.count, -1).T


def _of_piece(parts: OutputParts, piece: Piece, name: str, tables: list[tuple[F64, F64]]) -> Iterator[Decision]:
    a, b = (np.concatenate([pair[side] for pair in tables]) for side in (0, 1))
    lengths = np.linalg.norm(a, axis=1)
    of_one_length = piece.count > 2 and len(a) > 1 and np.ptp(lengths) <= 1e-3 * lengths.max(initial=1e-30)
    raw_scores = piece.op in ("Gemm", "MatMul") and len(parts.pieces) == 1
    if piece.count > 1 and (piece.op in ("Softmax", "LogSoftmax") or (raw_scores and not of_one_length)):
        yield from _classes(name, a, b)
        if len(tables) > 1 and len(tables[0][0]) > 1:
            same = [np.array_equal(_sequence(x), _sequence(y)) for x, y in tables]
            yield Decision(part=name, kind="sequence", kept=float(np.mean(same)), count=len(same))
    elif of_one_length:
        yield from _embeddings(name, a, b)
    elif piece.op == "Sigmoid":
        yield from _scores(name, a.ravel(), b.ravel())
    elif piece.count == 4 and len(parts.pieces) > 1 and len(a) >= MIN_POSITIVES:
        yield Decision(part=name, kind="boxes", kept=_mean_overlap(a, b), count=len(a))


def _classes(name: str, a: F64, b: F64) -> Iterator[Decision]:
    best = a.argmax(axis=1)
    yield Decision(part=name, kind="top-1", kept=float(np.mean(best == b.argmax(axis=1))), count=len(a))
    if a.shape[1] > 5:
        five = np.argpartition(-b, 5, axis=1)[:, :5]
        yield Decision(part=name, kind="top-5", kept=float((five == best[:, None]).any(axis=1).mean()), count=len(a))


def _sequence(table: F64) -> I64:
    """Return the best class of every place, with repetitions merged."""
    best = table.argmax(axis=1)
    return np.asarray(best[np.concatenate([[True], best[1:] != best[:-1]])], np.int64)


def _scores(name: str, a: F64, b: F64) -> Iterator[Decision]:
    kept: list[tuple[float, int]] = []
    for threshold in THRESHOLDS:
        first, second = a > threshold, b > threshold
        if MIN_POSITIVES <= first.sum() < len(first):
            both = np.sum(first & second)
            kept.append((2 * float(both) / float(first.sum() + second.sum()), int(first.sum())))
    if kept:
        share, count = min(kept)
        yield Decision(part=name, kind="positives", kept=share, count=count)
    if len(a) > 2:
        step = -(-len(a) // MAX_RANKED)
        yield Decision(part=name, kind="order", kept=_rank_correlation(a[::step], b[::step]), count=len(a[::step]))


def _rank_correlation(a: F64, b: F64) -> float:
    """Compute Spearman's rank correlation; 0 where one side is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length > 0 else 0.0


def _ranks(values: F64) -> F64:
    """Number values by their order; equal values get their mean number."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)


def _embeddings(name: str, a: F64, b: F64) -> Iterator[Decision]:
    lengths = np.linalg.norm(a, axis=1) * np.maximum(np.linalg.norm(b, axis=1), 1e-30)
    cosine = (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)
    yield Decision(part=name, kind="cosine", kept=float(cosine.mean()), count=len(a))
    if 3 <= len(a) <= MAX_ROWS:
        same = _neighbours(a) == _neighbours(b)
        yield Decision(part=name, kind="nearest neighbour", kept=float(same.mean()), count=len(a))


def _neighbours(vectors: F64) -> I64:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1), np.int64)


def _mean_overlap(a: F64, b: F64) -> float:
    """Compute the mean intersection over union of boxes [places, 4], as corners where those are valid, else centres."""
    if np.mean((a[:, 2] > a[:, 0]) & (a[:, 3] > a[:, 1])) < 0.99:
        a, b = (np.concatenate([x[:, :2] - x[:, 2:] / 2, x[:, :2] + x[:, 2:] / 2], axis=1) for x in (a, b))
    size = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    both = size[:, 0] * size[:, 1]
    areas = [np.maximum(x[:, 2] - x[:, 0], 0) * np.maximum(x[:, 3] - x[:, 1], 0) for x in (a, b)]
    union = areas[0] + areas[1] - both
    return float(np.mean(np.where(union > 0, both / np.maximum(union, 1e-30), 1.0)))
