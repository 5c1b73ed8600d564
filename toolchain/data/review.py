"""A look at the samples as a whole: those that cannot serve for calibration are refused, others get remarks.

Ranges come from what the samples show. Samples that are all zero (scaled twice, black frames) or all equal give ranges
that fit nothing else, and agreement with the float model on them is perfect and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolchain.core.errors import DataError
from toolchain.data.calibration import LABELS, CalibrationData
from toolchain.data.tensors import Array

FEW_SAMPLES = 16
"""Fewer samples than these show the range of no input well; a quarter of them is held out in addition."""


def review(data: CalibrationData) -> tuple[str, ...]:
    """Return remarks for the user, one sentence each; samples are read until every input has shown two values.

    Raises:
        DataError: all samples together hold one value for each input, or all samples are equal.
    """
    feeds = iter(data)
    given = {name: array for name, array in next(feeds).items() if name != LABELS}
    first = {name: array for name, array in given.items() if array.size}
    empty = {name for name, array in given.items() if not array.size}
    equal, constant = set(first), {name for name, array in first.items() if _is_constant(array, array)}
    for feed in feeds:
        if not equal and not constant and not empty:
            break
        empty -= {name for name in empty if feed[name].size}
        equal -= {name for name in equal if not np.array_equal(feed[name], first[name])}
        constant -= {name for name in constant if not _is_constant(feed[name], first[name])}
    _check(data, first, equal, constant)
    notes = [
        f"input {name!r} is empty in all samples, so that its values in later calls were not observed"
        for name in given
        if name in empty
    ]
    if len(data) < FEW_SAMPLES:
        count = "1 sample was" if len(data) == 1 else f"{len(data)} samples were"
        notes.append(f"only {count} given to calibrate on; give a few hundred that are like the inputs in use")
    if len(data) > 1:
        notes += [f"input {name!r} is the same in all {len(data)} samples" for name in first if name in equal]
    return tuple(notes)


def _is_constant(array: Array, first: Array) -> bool:
    """True if all elements of `array` are equal to the first element of the first sample."""
    return bool(np.all(array == first.reshape(-1)[0]))


def _check(data: CalibrationData, first: Mapping[str, Array], equal: set[str], constant: set[str]) -> None:
    if not first:
        return
    if constant == set(first):
        values = ", ".join(f"{array.reshape(-1)[0]} in input {name!r}" for name, array in first.items())
        samples = "the sample holds" if len(data) == 1 else f"all {len(data)} samples hold"
        what = f"{samples} one value only ({values})"
        hint = "give real inputs, scaled as the model was trained"
        raise DataError(what, where=data.source, hint=hint)
    if len(data) > 1 and equal == set(first):
        raise DataError(f"all {len(data)} samples are equal", where=data.source, hint="give samples that differ")
