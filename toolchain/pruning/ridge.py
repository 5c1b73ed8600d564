"""The ridge solve of layer repair: weights that reproduce given outputs from given inputs.

With X [n, K] the rows that a layer reads, W its weights, R [n, O] the rows of the residual y - W x and s the mean of
the diagonal of XᵀX, the weights W + Δ have the smallest squared error plus a penalty λ s |Δ|² for

    primal   Δᵀ = (XᵀX + λ s I)⁻¹ Xᵀ R            K x K, where positions outnumber columns
    dual     Δᵀ = Xᵀ (X Xᵀ + λ s I)⁻¹ R           n x n, otherwise

One eigendecomposition of the matrix serves every λ (Hoerl and Kennard 1970, ridge regression).

Behind a Relu or Clip, the part of y that the activation clips does not matter: there the layer may give any value that
is clipped as well. So the targets are updated from the layer's own output, a few times (non-linear reconstruction,
Zhang et al., arXiv 1505.06798).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toolchain.core.arrays import F64

RIDGE_CANDIDATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of λ."""
UNLIMITED = (-np.inf, np.inf)
"""Limits of a layer without an activation behind it."""
TARGET_UPDATES = 4
"""Number of target updates where a Relu or Clip follows."""


@dataclass(frozen=True)
class Positions:
    """Positions of a layer.

    Attributes:
        x: inputs of the layer, [groups, n, columns].
        y: outputs that it should give, [groups, n, outputs of a group].
    """

    x: F64
    y: F64

    def outputs(self, matrix: F64) -> F64:
        """Compute the outputs of a layer with this matrix [groups, outputs of a group, columns]."""
        outputs: F64 = np.matmul(self.x, matrix.transpose(0, 2, 1))
        return outputs

    def error(self, matrix: F64, limits: tuple[float, float]) -> float:
        """Compute the squared error behind the activation."""
        return float(np.sum((np.clip(self.y, *limits) - np.clip(self.outputs(matrix), *limits)) ** 2))


@dataclass(frozen=True)
class _GramDecomposition:
    """Eigendecomposition V diag(v) Vᵀ of XᵀX (primal) or X Xᵀ (dual), for every group.

    Attributes:
        x: X, [groups, n, columns].
        values: v, ascending, [groups, m].
        vectors: V, [groups, m, m].
        scale: s, the mean of the diagonal of XᵀX, [groups].
        dual: True where m is n, the number of positions.
    """

    x: F64
    values: F64
    vectors: F64
    scale: F64
    dual: bool


def _decompose(x: F64) -> _GramDecomposition:
    """Decompose the smaller one of XᵀX and X Xᵀ; both have the same sum of eigenvalues."""
    n, columns = x.shape[1:]
    x_t = x.transpose(0, 2, 1)
    dual = columns > n
    values, vectors = np.linalg.eigh(np.matmul(x, x_t) if dual else np.matmul(x_t, x))
    return _GramDecomposition(x, values, vectors, np.maximum(values.sum(axis=1) / columns, 1e-12), dual)


def _ridge_solutions(gram: _GramDecomposition, residual: F64) -> Iterator[F64]:
    """Yield Δ [groups, outputs of a group, columns] for every λ of `RIDGE_CANDIDATES`.

    primal   Δᵀ = V (diag(v) + λ s I)⁻¹ Vᵀ Xᵀ R
    dual     Δᵀ = Xᵀ V (diag(v) + λ s I)⁻¹ Vᵀ R

    Args:
        gram: of X.
        residual: R, [groups, n, outputs of a group].
    """
    x_t = gram.x.transpose(0, 2, 1)
    projected = np.matmul(gram.vectors.transpose(0, 2, 1), residual if gram.dual else np.matmul(x_t, residual))
    for ridge in RIDGE_CANDIDATES:
        shrunk = projected / (np.maximum(gram.values, 0) + ridge * gram.scale[:, None])[:, :, None]
        change = np.matmul(gram.vectors, shrunk)  # [groups, n or columns, outputs of a group]
        change = np.matmul(x_t, change) if gram.dual else change
        yield change.transpose(0, 2, 1)


def fit_matrix(train: Positions, held: Positions, old: F64, limits: tuple[float, float]) -> F64:
    """Find the matrix with the smallest held-out error among the ridge solutions of all target updates and `old`.

    Every solution starts from `old` [groups, outputs of a group, columns], which is returned where none is better.
    """
    gram = _decompose(train.x)
    outputs = train.outputs(old)
    best, least, targets = old, held.error(old, limits), train.y
    for _ in range(TARGET_UPDATES if limits != UNLIMITED else 1):
        improved = None
        for change in _ridge_solutions(gram, targets - outputs):
            candidate = old + change
            error = held.error(candidate, limits)
            if np.isfinite(error) and error < least:
                best, least, improved = candidate, error, candidate
        if improved is None:
            break
        targets = _updated_targets(train.y, train.outputs(improved), limits)
    return best


def _updated_targets(y: F64, outputs: F64, limits: tuple[float, float]) -> F64:
    """Update the targets: where the activation clips y, keep the layer's output if that is clipped as well."""
    low, high = limits
    targets: F64 = np.where(y <= low, np.minimum(outputs, low), y)
    return np.where(y >= high, np.maximum(outputs, high), targets)
