"""Parity: the check that a converted model and its source compute the same, on random inputs or on samples.

Errors are relative to the largest magnitude of each output, since the next layer or the decision depends on that; the
relative error of an element close to zero means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.conversion.inputs import concrete, random_feed
from toolchain.core.errors import GateError, ModelError, one_line
from toolchain.data.tensors import Array, Feed, is_text
from toolchain.graph import io, run

Reference = Callable[[Feed], list[Array] | None]
"""Runs the source model; returns None if it does not take a feed of these sizes."""

# Two runtimes add float32 numbers in different orders. Five ImageNet networks of up to 150 layers stayed below 1e-6
# between torch and onnxruntime, and so did six upgraded files; a wrong attribute or weight shows as 1e-2.
PARITY_TOLERANCE = 1e-4
# float16 has 11 bits (5e-4 per operation), and runtimes widen to float32 at different points.
PARITY_TOLERANCE_FLOAT16 = 2e-2

# Batch, and factor of the size of other dynamic axes, of each feed
PARITY_FEEDS = ((2, 1), (1, 1), (3, 1), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1))


@dataclass(frozen=True)
class Parity:
    """The worst errors over all outputs and samples.

    Attributes:
        samples: number of samples that were compared.
        max_abs_error: largest absolute error.
        max_rel_error: largest error relative to the largest value of its output.
    """

    samples: int
    max_abs_error: float
    max_rel_error: float


def measure(model: ir.Model, reference: Reference, *, size: int, ids: int = 2, half: bool = False) -> Parity | None:
    """Compare a model with its source on eight random feeds, with batches of 1 to 3 if the batch is dynamic.

    Args:
        model: the converted model.
        reference: runs the source.
        size: a size that the source takes for dynamic axes other than the batch; twice this size is tried as well.
        ids: integer inputs are below this number.
        half: the source computes in 16-bit floats, the model in float32.

    Returns:
        As :func:`measure_on`, which also says what is raised.
    """
    specs = io.inputs(model)
    feeds = (
        random_feed(concrete(specs, batch, factor * size), seed, ids)
        for seed, (batch, factor) in enumerate(PARITY_FEEDS)
    )
    return measure_on(model, reference, feeds, half=half)


def measure_on(model: ir.Model, reference: Reference, feeds: Iterable[Feed], *, half: bool = False) -> Parity | None:
    """Compare `model` in onnxruntime with `reference`.

    Args:
        model: the converted model.
        reference: runs the source.
        feeds: inputs; those that the source does not take are left out.
        half: the source computes in 16-bit floats, the model in float32.

    Returns:
        None if the source ran on none of the inputs.

    Raises:
        GateError: an output differs (with its name and error), or the model does not run where its source does.
        ModelError: the source gives two different results for one input.
    """
    engine = run.session(model)
    names = [spec.name for spec in io.outputs(model)]
    worst_abs = worst_rel = 0.0
    samples = 0
    for feed in feeds:
        expected = reference(feed)
        if expected is None:
            continue
        got = _run(engine, feed)
        if len(got) != len(expected):
            raise GateError(f"has {len(got)} outputs, and its source {len(expected)}", where="converted model")
        for name, a, b in zip(names, expected, got, strict=True):
            absolute, relative = _errors(a, b)
            tolerance = PARITY_TOLERANCE_FLOAT16 if half or b.dtype == np.float16 else PARITY_TOLERANCE
            if not relative <= tolerance:
                _check_source(reference, feed)
                hint = "an operator was exported wrongly: find it by exporting parts of the model, or change the model"
                raise GateError(_fault(a, b, relative, tolerance), where=f"output {name!r}", hint=hint)
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
        samples += 1
    return Parity(samples, worst_abs, worst_rel) if samples else None


def _run(engine: object, feed: Feed) -> list[Array]:
    try:
        return run.run(engine, [feed])[0]
    except run.OrtError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise GateError(
            f"the converted model does not run where its source does ({one_line(error)})",
            where=f"inputs {shapes}",
            hint="fix the dynamic axes (--freeze), or change the model",
        ) from None


def _errors(expected: Array, got: Array) -> tuple[float, float]:
    """Largest absolute error, and relative to the largest magnitude; infinite if the arrays cannot be compared."""
    relative = run.relative_error(expected, got)
    if not np.isfinite(relative) or is_text(expected):
        return relative, relative
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0)), relative


def _fault(expected: Array, got: Array, relative: float, tolerance: float) -> str:
    if expected.shape != got.shape:
        return f"has shape {list(got.shape)}, and in the source {list(expected.shape)}"
    if is_text(expected):
        return "has other texts than in the source"
    if not np.isfinite(relative):
        return "has NaN or infinity where the source has numbers, or the other way round"
    return f"differs from the source by {relative:.1e} of its largest value (allowed {tolerance:.0e})"


def _check_source(reference: Reference, feed: Feed) -> None:
    """Tell a source that gives random results from a wrong export."""
    first, second = reference(feed), reference(feed)
    if first is None or second is None or _same(first, second):
        return
    raise ModelError(
        "gives two different results for one input",
        where="the source",
        hint="remove random numbers and dropout from it, or call model.eval()",
    )


def _same(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(first, second, strict=True))
