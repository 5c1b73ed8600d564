"""Comparison of a cleaned-up model with the original: both run in onnxruntime, on random inputs or on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError, one_line
from toolchain.data.tensors import Feed
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, run

# Folding batch normalization or constants reassociates float32 sums; 24-bit mantissas and a few hundred
# terms leave relative errors near 1e-6, a hundred layers may add up to 1e-5.
EQUIVALENCE_TOLERANCE = 1e-4

DYNAMIC_SIZES = (1, 1, 2)
LARGER_DYNAMIC_SIZES = (8, 32, 128, 512)
"""Sizes of dynamic axes. If the original runs with none of the first, the larger ones are tried until one runs, with a
batch of one: a detector on 512 images of 512 x 512 would not fit into the memory."""


@dataclass(frozen=True)
class Equivalence:
    """The result of a comparison.

    Attributes:
        difference: the worst output; None if the original ran on no random input.
        failure: the message of onnxruntime if the changed model does not run where the original does, else empty.
    """

    difference: run.Difference | None
    failure: str = ""

    @property
    def holds(self) -> bool:
        """True unless a difference or a failure was found."""
        return not self.failure and (self.difference is None or self.difference.error <= EQUIVALENCE_TOLERANCE)


def compare(before: ir.Model, after: ir.Model, samples: Iterable[Feed] = ()) -> Equivalence:
    """Compare two models, up to the first input that shows more than :data:`EQUIVALENCE_TOLERANCE`.

    Args:
        before: the original.
        after: the changed model.
        samples: inputs to compare on; without them, random inputs of several sizes are made.

    Raises:
        ModelError: onnxruntime does not accept `before`.
    """
    original = run.session(before)
    try:
        changed = run.session(after)
    except ModelError as error:
        return Equivalence(None, error.what)
    names, specs = [spec.name for spec in io.outputs(before)], io.inputs(before)
    worst: run.Difference | None = None
    given = [{spec.name: sample[spec.name] for spec in specs} for sample in samples]
    inputs = given or _random_inputs(specs, enough=lambda: worst is not None)
    for feed in inputs:
        try:
            reference = run.run(original, [feed])
        except run.OrtError:
            continue  # the original does not run with these sizes of the dynamic axes
        try:
            difference = run.difference(names, reference, run.run(changed, [feed]))
        except run.OrtError as error:
            return Equivalence(worst, one_line(error))
        if worst is None or not difference.error <= worst.error:
            worst = difference
        if not Equivalence(worst).holds:
            break
    return Equivalence(worst)


def _random_inputs(specs: Sequence[TensorSpec], enough: Callable[[], bool]) -> Iterator[Feed]:
    """Draw inputs of :data:`DYNAMIC_SIZES`, then larger ones with a batch of one until `enough` is true."""
    for seed, size in enumerate((*DYNAMIC_SIZES, *LARGER_DYNAMIC_SIZES)):
        is_larger = size in LARGER_DYNAMIC_SIZES
        if is_larger and (enough() or not run.can_draw(specs, size)):
            return
        yield run.random_feed(_sized(specs, 1 if is_larger else size, size), np.random.default_rng(seed))


def _sized(specs: Sequence[TensorSpec], batch: int, size: int) -> list[TensorSpec]:
    """Replace dynamic axes by `size`, and by `batch` the leading one of an input that has further dynamic axes.

    An input whose only dynamic axis is the leading one may count places there, so that it needs the size.
    """
    several = [spec for spec in specs if sum(not isinstance(axis, int) for axis in spec.dims) > 1]
    batches = {spec.dims[0] for spec in several if isinstance(spec.dims[0], str)}

    def fixed(spec: TensorSpec, index: int) -> int:
        axis = spec.dims[index]
        if isinstance(axis, int):
            return axis
        return batch if axis in batches or (index == 0 and spec in several) else size

    return [replace(spec, dims=tuple(fixed(spec, index) for index in range(len(spec.dims)))) for spec in specs]


def first_wrong(count: int, is_right: Callable[[int], bool]) -> int:
    """Find the first step after which a result is wrong, by bisection.

    Args:
        count: number of steps. The result is right before the first and wrong after the last.
        is_right: takes a number of steps; True if the result is right after them.

    Returns:
        The index of the step, counted from 0.
    """
    right, wrong = 0, count
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if is_right(middle):
            right = middle
        else:
            wrong = middle
    return wrong - 1
