"""Types and shapes of all values: by onnx's rules, and where these know none, as onnxruntime has them.

onnx knows no operators of other domains, so it knows nothing behind one. onnxruntime knows its own operators. Where it
does not know a number of axes either, the model is run once, on random inputs if no sample is at hand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from toolchain.core.errors import ModelError
from toolchain.data.tensors import Array, Feed
from toolchain.graph import io, query, run, tap

TRIED_SIZES = (2, 3, 8, 32, 128, 512, 1)
"""Sizes of dynamic axes for the run, up to the first with which the model runs. A 1 may hide an axis: it comes last."""

_RENAMED = {"float": "FLOAT", "double": "DOUBLE"}
"""Element types that onnxruntime calls otherwise than onnx_ir; other names differ by their case only."""


def infer_shapes(model: ir.Model, feed: Feed | None = None) -> None:
    """Fill in the type and shape of every value of the main graph as far as they can be known.

    Args:
        model: the model, which is changed.
        feed: inputs to run the model on where only a run tells a number of axes; None: random ones.
    """
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    unknown = {str(value.name): value for value in query.activations(model) if _is_unknown(value)}
    if not unknown:
        return
    exposed = tap.expose(model, unknown)
    try:
        session = run.session(exposed, fuse=False)
    except ModelError:
        return  # stays unknown; reports say so
    targets = list(unknown.values())
    _read_session(session, targets)
    if any(value.shape is None for value in targets):
        for value, array in zip(targets, _run_once(exposed, session, feed), strict=False):
            if value.shape is None and isinstance(value.type, ir.TensorType):
                value.shape = ir.Shape([None] * array.ndim)


def _is_unknown(value: ir.Value) -> bool:
    return value.type is None or (isinstance(value.type, ir.TensorType) and value.shape is None)


def _read_session(session: ort.InferenceSession, targets: list[ir.Value]) -> None:
    """Take over the types and shapes of a session's outputs."""
    for value, output in zip(targets, session.get_outputs(), strict=True):
        kind, _, element = output.type.rstrip(")").partition("(")
        if kind == "tensor" and value.type is None:
            value.type = ir.TensorType(ir.DataType[_RENAMED.get(element, element.upper())])
        if value.shape is None and output.shape:  # an unknown number of axes looks like that of a scalar
            value.shape = ir.Shape(output.shape)


def has_unknown(model: ir.Model) -> bool:
    """True where the type or number of axes of any value of the main graph is unknown."""
    return any(_is_unknown(value) for value in query.activations(model))


def _run_once(model: ir.Model, session: ort.InferenceSession, feed: Feed | None) -> list[Array]:
    """Outputs for `feed` or for random inputs; none if the model runs on none of them."""
    rng, specs = np.random.default_rng(0), io.inputs(model)
    sizes = [size for size in TRIED_SIZES if run.can_draw(specs, size)]
    for inputs in [feed] if feed is not None else (run.random_feed(specs, rng, dynamic=size) for size in sizes):
        try:
            return list(session.run(None, inputs))
        except run.OrtError:
            continue
    return []
