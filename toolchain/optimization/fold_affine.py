"""Folding of batch normalization, and of constant factors and offsets, into the weights and biases of products.

    γ (W x + b - μ) / σ + β  =  (γ/σ W) x + (b - μ) γ/σ + β      batch normalization, σ = sqrt(variance + ε)
    f · (W x + b) + c  =  (f W) x + (f b + c)      after a convolution; f and c are one number, or one per channel
    W (f x) + b        =  (f W) x + b              before it; f is one number, since padding zeros stay zeros
    W (x + c) + b      =  W x + (b + c · Σ W)      before one without padding; c is one number

Each saves a pass over a tensor. In int8 it also saves two conversions, since sums and products with a constant have no
kernel. A factor also moves past operators that are linear or commute with it, on all paths to the convolutions behind.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.core.arrays import F32
from toolchain.graph import edit, query
from toolchain.ops.weights import weight_axes

LINEAR_OPERATORS = frozenset(
    {"GlobalAveragePool", "AveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
)
"""Operators with f · op(x) = op(f · x) for every f."""


def fold_batchnorm(model: ir.Model) -> None:
    """Fold a ``BatchNormalization`` into the ``Conv``, ``ConvTranspose`` or ``Gemm`` before it.

    It stays where the product is read otherwise, and in training mode, where it takes its statistics from its input.
    """
    names = edit.Names(model.graph)
    for node in [node for node in model.graph if query.op(node) == "BatchNormalization"]:
        product = node.inputs[0].producer() if node.inputs[0] is not None else None
        affine = batchnorm_factors(node)
        if product is None or affine is None or query.op(product) not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        if query.sole_consumer(product.outputs[0]) is not node or not _is_constant_product(product):
            continue
        scale, shift = affine
        weight, bias = _parameters(product)
        if product.op_type == "Gemm" and bias is not None:
            bias = bias * np.float32(query.attribute(product, "beta", 1.0))
            product.attributes.pop("beta", None)
        _set(model, product, 1, _scaled(product, weight, scale), names)
        _set(model, product, 2, shift if bias is None else bias * scale + shift, names)
        edit.bypass(node)


def batchnorm_factors(node: ir.Node) -> tuple[F32, F32] | None:
    """Factor and offset of each channel, float32; None in training mode, and if a parameter is not constant."""
    gamma, beta, mean, variance = (query.float_array(value) for value in node.inputs[1:5])
    if query.attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        return None
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    scale = gamma / np.sqrt(variance + np.float32(query.attribute(node, "epsilon", 1e-5)))
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def _scaled(product: ir.Node, weight: F32, scale: F32) -> F32:
    """The weight of a product with each output channel multiplied by its factor."""
    axes = weight_axes(product)
    if product.op_type != "ConvTranspose":
        return weight * scale.reshape([-1 if axis == axes.out else 1 for axis in range(weight.ndim)])
    # Of [G x I, O, kernel], the channels of one group have the factors of its outputs.
    grouped = weight.reshape(axes.groups, -1, *weight.shape[1:])
    factors = scale.reshape(axes.groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (grouped * factors).reshape(weight.shape)


def _is_constant_product(product: ir.Node) -> bool:
    """True if weight and bias are constant, and the bias has one number per channel."""
    if query.float_array(product.inputs[1]) is None:
        return False
    bias = query.optional_input(product, 2)
    array = query.float_array(bias)
    return bias is None or (array is not None and array.ndim <= 1)


def fold_affine_after_conv(model: ir.Model) -> None:
    """Fold a ``Mul`` or ``Add`` of a constant, one number or one per channel, into the ``Conv`` before it."""
    names = edit.Names(model.graph)
    for node in list(model.graph):
        conv = node.inputs[0].producer() if node.op_type in ("Mul", "Add") and node.inputs[0] is not None else None
        if conv is None or query.sole_consumer(conv.outputs[0]) is not node or not _is_constant_conv(conv):
            continue
        weight, bias = _parameters(conv)
        number = _per_channel(query.float_array(node.inputs[1]), weight)
        if number is None:
            continue
        if node.op_type == "Mul":
            _set(model, conv, 1, weight * number.reshape(-1, *[1] * (weight.ndim - 1)), names)
            bias = None if bias is None else bias * number
        else:
            bias = number + (0 if bias is None else bias)
        if bias is not None:
            _set(model, conv, 2, bias, names)
        edit.bypass(node)


def fold_affine_before_conv(model: ir.Model) -> None:
    """Fold a ``Mul`` or ``Add`` of one constant number into the convolutions after it."""
    names = edit.Names(model.graph)
    for node in list(model.graph):
        number = query.float_array(node.inputs[1]) if node.op_type in ("Mul", "Add") else None
        if number is None or number.size != 1 or not query.is_float(node.inputs[0]) or _raises_rank(node, number):
            continue
        value = np.float32(number.reshape(()))
        if node.op_type == "Add":
            changes = _absorb_offset(model, node.outputs[0], value, names)
        else:
            changes = _absorb_factor(model, node.outputs[0], value, names) if value else None
        if changes:
            for change in changes:
                change()
            edit.bypass(node)


Changes = list[Callable[[], None]]
"""Functions that change the graph. They are called once it is known that all readers can take part."""


def _absorb_offset(model: ir.Model, value: ir.Value, number: np.float32, names: edit.Names) -> Changes | None:
    """Changes after which all readers of `value` compute as if `number` had been added to it; None if one cannot."""
    changes: Changes = []
    for node in _readers(value):
        if not _is_constant_conv(node) or node.inputs.count(value) > 1 or query.may_pad(node):
            return None

        def change(node: ir.Node = node) -> None:
            weight, bias = _parameters(node)
            added = number * weight.sum(axis=tuple(range(1, weight.ndim)), dtype=np.float64)
            _set(model, node, 2, added + (0 if bias is None else bias), names)

        changes.append(change)
    return changes


def _absorb_factor(model: ir.Model, value: ir.Value, factor: np.float32, names: edit.Names) -> Changes | None:
    """Changes after which all readers of `value` compute as if it were multiplied by `factor`; None if one cannot."""
    changes: Changes = []
    for node in _readers(value):
        if list(node.inputs).count(value) != 1 or (node.inputs[0] is not value and query.op(node) != "Mul"):
            return None
        if _is_constant_conv(node):
            changes.append(lambda node=node: _set(model, node, 1, _parameters(node)[0] * factor, names))  # type: ignore[misc]
            continue
        if query.op(node) == "Add":
            offset = query.float_array(node.inputs[1])
            if offset is None or not np.isfinite(offset / factor).all():
                return None
            changes.append(lambda node=node, offset=offset: _set(model, node, 1, offset / factor, names))  # type: ignore[misc]
        elif query.op(node) not in LINEAR_OPERATORS and query.op(node) != "Mul":
            return None
        further = _absorb_factor(model, node.outputs[0], factor, names)
        if not further:
            return None
        changes += further
    return changes


def _readers(value: ir.Value) -> list[ir.Node]:
    """Readers of `value`; none if it is an output, or if a branch of an If or Loop reads it (not supported)."""
    nodes = query.consumers(value)
    producer = value.producer()
    inside = producer is not None and all(node.graph is producer.graph for node in nodes)
    return nodes if inside and not value.is_graph_output() else []


def _is_constant_conv(node: ir.Node) -> bool:
    if query.op(node) != "Conv" or query.float_array(node.inputs[1]) is None:
        return False
    bias = query.optional_input(node, 2)
    return bias is None or query.float_array(bias) is not None


def _parameters(conv: ir.Node) -> tuple[F32, F32 | None]:
    weight = query.float_array(conv.inputs[1])
    if weight is None:
        raise ValueError(f"{query.label(conv)} has no constant weight")
    return weight, query.float_array(query.optional_input(conv, 2))


def _per_channel(array: F32 | None, weight: F32) -> F32 | None:
    """Return one number per output channel of a convolution; None if the array does not broadcast like that."""
    if array is None or array.ndim > weight.ndim:
        return None
    if array.size == 1:
        return np.full(len(weight), array.reshape(()), np.float32)
    channels = (len(weight), *[1] * (weight.ndim - 2))
    return array.reshape(-1) if array.shape in (channels, (1, *channels)) else None


def _raises_rank(node: ir.Node, number: F32) -> bool:
    """True unless the result surely has the rank of the first input."""
    rank = query.rank(node.inputs[0]) if node.inputs[0] is not None else None
    return rank is None or number.ndim > rank


def _set(model: ir.Model, node: ir.Node, index: int, array: npt.NDArray[np.floating], names: edit.Names) -> None:
    """Set the weight (1) or the bias (2) of a product."""
    name = f"{query.label(node)}_{'weight' if index == 1 else 'bias'}"
    edit.set_constant(model.graph, names, node, index, name, np.asarray(array, np.float32))
