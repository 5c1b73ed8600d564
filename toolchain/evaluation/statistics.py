"""Statistics of parts: the spread of every part in the float model, and the errors of another model in its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolchain.core.arrays import F64, I64
from toolchain.data.tensors import Array
from toolchain.evaluation import floor
from toolchain.evaluation.fidelity import SATURATING_OPERATORS, power_to_db
from toolchain.evaluation.parts import OutputParts, Piece

MIN_PLACES = 8
"""An index is judged by itself from this number of elements; with fewer, a piece is judged as a whole."""
CONSTANT_SHARE = 1e-8
"""An index is constant where its variance is below this share of the largest of its piece."""


class PartStatistics:
    """The spread of a point's parts in the float model, float64 arrays by number of the part.

    Attributes:
        count: number of elements.
        mean: mean over samples and places.
        variance: mean square of the distance from it.
        effective: number of samples that the variance comes from, (Σ v)² / Σ v² with v the part of each sample; 1 for
            what is active in one sample only.
    """

    def __init__(self, found: OutputParts, labels: Sequence[I64], values: Sequence[Array]) -> None:
        self.parts = found
        self.labels = [label.ravel() for label in labels]
        size = 1 + sum(piece.count for piece in found.pieces)
        numbers = [(label, _finite(value)) for label, value in zip(self.labels, values, strict=True)]
        self.count = sum((np.bincount(label, minlength=size) for label in self.labels), np.zeros(size))
        total = sum((np.bincount(label, x, minlength=size) for label, x in numbers), np.zeros(size))
        self.mean: F64 = total / np.maximum(self.count, 1)
        spreads = [np.bincount(label, (x - self.mean[label]) ** 2, minlength=size) for label, x in numbers]
        whole: F64 = np.sum(spreads, axis=0)
        self.variance: F64 = whole / np.maximum(self.count, 1)
        self.effective: F64 = whole**2 / np.maximum(np.sum(np.square(spreads), axis=0), 1e-300)

    def errors(self, expected: Sequence[Array], got: Sequence[Array]) -> F64:
        """Sum the squared errors of every part in every sample: [samples, parts].

        What has another shape or no number counts as its mean.
        """
        sums = []
        for label, a, b in zip(self.labels, expected, got, strict=True):
            x = _finite(a)
            if b.shape == a.shape:
                usable = np.isfinite(b).ravel()
                y = _finite(b) if usable.all() else np.where(usable, _finite(b), self.mean[label])
                lost = np.where(np.isfinite(a).ravel(), (x - y) ** 2, 0)
            else:
                lost = (x - self.mean[label]) ** 2
            sums.append(np.bincount(label, lost, minlength=len(self.count)))
        return np.array(sums)

    def judge(self, piece: Piece, errors: F64) -> JudgedPiece | None:
        """Judge one piece; None where it is constant in float.

        Args:
            piece: the piece.
            errors: as :meth:`errors` computes them.
        """
        own = slice(piece.first, piece.first + piece.count)
        variance, count = self.variance[own], self.count[own]
        error = errors[:, own].sum(axis=0) / np.maximum(count, 1)
        smallest = max(CONSTANT_SHARE * float(variance.max(initial=0)), 1e-12 * float(np.max(self.mean[own] ** 2)))
        live = np.flatnonzero(variance > smallest)
        if not len(live):
            return None
        constant = piece.count - len(live)
        noise = float(error[live].sum() / variance[live].sum())
        by_sample = (errors[:, own] / np.maximum(count, 1))[:, live].sum(axis=1) * (len(errors) / variance[live].sum())
        if count[live].min() < MIN_PLACES or piece.op in SATURATING_OPERATORS:
            return JudgedPiece(max(0.0, power_to_db(noise)), noise, len(live), constant, None, by_sample)
        fidelities = np.array([max(0.0, power_to_db(p)) for p in error[live] / variance[live]])
        floors = floor.index_floors_db(self.effective[own][live])
        worst = int(np.argmin(fidelities - floors))
        index = JudgedIndex(int(live[worst]), float(fidelities[worst]), float(floors[worst]))
        return JudgedPiece(float(fidelities.mean()), noise, len(live), constant, index, by_sample)


@dataclass(frozen=True)
class JudgedIndex:
    """An index of a feature axis, its fidelity and its floor in dB."""

    number: int
    fidelity_db: float
    floor_db: float


@dataclass(frozen=True)
class JudgedPiece:
    """The fidelity of a piece.

    Attributes:
        fidelity_db: in decibels, at least 0.
        noise: summed squared error over summed variance of all indices, without limit.
        indices: number of indices that vary in float.
        constant: number of indices that do not.
        worst: the index that is nearest to its floor or furthest below it; None where the piece is judged as a whole.
        by_sample: what every sample adds to the noise, times their number: [samples].
    """

    fidelity_db: float
    noise: float
    indices: int
    constant: int
    worst: JudgedIndex | None
    by_sample: F64


def _finite(value: Array) -> F64:
    x = value.astype(np.float64).ravel()
    return np.where(np.isfinite(x), x, 0.0)
