"""Scores: how accurate a model stayed, by the user's own metric or by agreement with the source model.

Agreement needs no labels. For an output of class scores (rank 2, at least two columns) it is the share of samples for
which both models give the largest score to the same class; for texts, the share of samples with equal texts. For any
other output it is the mean cosine similarity over samples. With several outputs the worst one counts. An output whose
shape differs from the source's has agreement 0, for example when a detector finds one object fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from onnxruntime import InferenceSession

from toolchain.core.errors import InputError
from toolchain.core.user_code import user_code
from toolchain.data.tensors import Array, Feed
from toolchain.formats.results import Score

Run = Callable[[Feed], list[Array]]
Evaluate = Callable[[Run], float]
"""The contract of ``--evaluate``: takes a function from feed to outputs and returns a number, higher is better."""


def evaluate_score(evaluate: Evaluate, engine: InferenceSession, where: str) -> Score:
    """Score a model with the user's function.

    Args:
        evaluate: the user's function.
        engine: the model's session.
        where: the name of the function, for error messages.

    Raises:
        InputError: the function raises an exception, or does not return a finite number.
    """
    with user_code(where):
        value = evaluate(lambda feed: list(engine.run(None, feed)))
    if isinstance(value, bool) or not isinstance(value, float | int | np.number) or not np.isfinite(value):
        raise InputError(f"returned {value!r:.80}", where=where, hint="return one finite number, higher is better")
    return Score(kind="evaluate", value=float(np.asarray(value)))


def agreement_score(reference: InferenceSession, engine: InferenceSession, feeds: Iterable[Feed]) -> Score:
    """Measure the agreement of `engine` with `reference` over `feeds`; the worst output counts."""
    pairs = [(reference.run(None, feed), engine.run(None, feed)) for feed in feeds]
    return Score(kind="agreement", value=agreement(pairs), samples=len(pairs))


def agreement(pairs: Iterable[tuple[Sequence[Array], Sequence[Array]]]) -> float:
    """Compute the agreement of two models from their outputs on each sample; the worst output counts."""
    shares = [[_agreement(a, b) for a, b in zip(expected, got, strict=True)] for expected, got in pairs]
    return float(np.mean(np.array(shares, np.float64), axis=0).min())


def _agreement(expected: Array, got: Array) -> float:
    if np.asarray(expected).dtype.kind in "OUS":
        return float(np.array_equal(expected, got))
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if a.shape != b.shape or not a.size:
        return float(a.shape == b.shape)
    if a.ndim == 2 and a.shape[1] > 1:
        return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / length if 0 < length < np.inf else float(np.array_equal(a, b, equal_nan=True))
