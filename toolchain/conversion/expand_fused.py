"""Operators that onnxruntime's optimizer writes into a saved file, taken apart into standard ones.

    FusedConv, FusedGemm                      product, sum, activation
    FusedMatMul, TransposeMatMul              Transpose, MatMul, Mul
    BiasGelu, Gelu, FastGelu, QuickGelu       sum, and the activation by its parts
    SkipLayerNormalization                    sums, and a normalization
    SkipSimplifiedLayerNormalization          sums, and a root mean square normalization by its parts
    LayerNormalization (below operator set 17), SimplifiedLayerNormalization        by their parts

None of them has an int8 kernel, but their parts do, and onnxruntime joins again what stays float. onnx's converter of
operator sets knows none of them. A node is left as it is where a part of it has no standard operator. Definitions:
onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph import edit, query, shapes

MICROSOFT = "com.microsoft::"
GELU_TANH_FACTOR = float(np.sqrt(2 / np.pi))
GELU_CUBE_FACTOR = 0.044715
"""Gelu by tanh: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))); onnxruntime's FastGelu."""
EPSILON = 1e-5
SKIP_EPSILON = 1e-12
"""Defaults of `epsilon`, of onnxruntime's normalizations without and with a sum before them."""
QUICK_GELU_FACTOR = 1.702
"""Default of `alpha` of QuickGelu, x · sigmoid(alpha x)."""


def expand_fused(model: ir.Model) -> int:
    """Take apart the operators that this module lists, and return how many there were."""
    version = query.opset(model)
    found = [node for node in model.graph if query.op(node) in _EXPANSIONS]
    if version >= 17:
        found = [node for node in found if query.op(node) != "LayerNormalization"]
    if not found:
        return 0
    shapes.infer_shapes(model)
    names, expanded = edit.Names(model.graph), 0
    for node in found:
        parts = _Parts(node, names, version)
        results = _EXPANSIONS[query.op(node)](node, parts)
        if results is not None:
            parts.replace_node(results)
            expanded += 1
    if expanded:
        edit.remove_unused(model)
    return expanded


class _Parts:
    """New nodes that are to replace one. They enter the graph only with :meth:`replace_node`.

    Attributes:
        version: version of the standard operator set.
    """

    def __init__(self, old: ir.Node, names: edit.Names, version: int) -> None:
        self._old, self._names, self._new, self.version = old, names, list[ir.Node](), version

    def op(self, kind: str, *inputs: ir.Value | float | None, **attributes: object) -> ir.Value:
        """Add a node with one output. Inputs that are numbers become float32 constants."""
        values = [self.constant(np.float32(v)) if isinstance(v, int | float) else v for v in inputs]
        node = ir.node(kind, values, attributes, name=self._names.fresh(f"{query.label(self._old)}_{kind}"))
        node.outputs[0].name = self._names.fresh(f"{node.name}_out")
        self._new.append(node)
        return node.outputs[0]

    def constant(self, numbers: np.generic | Sequence[int]) -> ir.Value:
        """Add a constant: a float32 number, or int64 axes."""
        array = np.asarray(numbers)
        tensor = ir.tensor(array)
        node = ir.node("Constant", [], {"value": tensor}, name=self._names.fresh(f"{query.label(self._old)}_number"))
        node.outputs[0].name = self._names.fresh(f"{node.name}_out")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        self._new.append(node)
        return node.outputs[0]

    def mean(self, value: ir.Value) -> ir.Value:
        """Add a mean over the last axis, which is kept."""
        if self.version >= 18:
            return self.op("ReduceMean", value, self.constant([-1]), keepdims=1)
        return self.op("ReduceMean", value, axes=[-1], keepdims=1)

    def replace_node(self, results: Sequence[ir.Value | None]) -> None:
        """Put the nodes in the place of the old one; `results` take the names of its outputs, as far as it has any."""
        graph = self._old.graph
        if graph is None:
            raise ValueError(f"{query.label(self._old)} is in no graph")
        for node in self._new:
            graph.insert_before(self._old, node)
        renamed = []
        for before, after in zip(self._old.outputs, results, strict=False):
            if after is not None:
                after.type, after.shape = before.type, before.shape
                before.replace_all_uses_with(after, replace_graph_outputs=True)
                renamed.append((after, before.name))
        graph.remove(self._old, safe=True)
        for after, name in renamed:
            after.name = name


Expansion = Callable[[ir.Node, _Parts], "Sequence[ir.Value | None] | None"]
"""Adds the parts of a node; returns its outputs, or None if it cannot be expressed."""

# ---------------------------------------------------------------------------------------------- products

_PLAIN_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")


def _activation(parts: _Parts, value: ir.Value, kind: str | None, numbers: Sequence[float]) -> ir.Value | None:
    """Add an activation by its name in a fused operator and its numbers; None if it is unknown."""
    match kind, numbers:
        case (("" | None), _):
            return value
        case "LeakyRelu", [alpha, *_]:
            return parts.op("LeakyRelu", value, alpha=alpha)
        case "HardSigmoid", [alpha, beta, *_]:
            return parts.op("HardSigmoid", value, alpha=alpha, beta=beta)
        case "Clip", [low, high, *_]:
            return parts.op("Clip", value, float(low), float(high))
        case _:
            return parts.op(kind, value) if kind in _PLAIN_ACTIVATIONS else None


def _conv(node: ir.Node, parts: _Parts) -> Sequence[ir.Value] | None:
    x, weight, bias, added = (query.optional_input(node, index) for index in range(4))
    own = ("activation", "activation_params")
    attributes = {key: query.attribute(node, key) for key in node.attributes if key not in own}
    result = parts.op("Conv", x, weight, *([bias] if bias is not None else []), **attributes)
    if added is not None:
        result = parts.op("Add", result, added)
    numbers = query.attribute(node, "activation_params", [])
    activated = _activation(parts, result, query.attribute(node, "activation"), numbers)
    return None if activated is None else [activated]


def _gemm(node: ir.Node, parts: _Parts) -> Sequence[ir.Value] | None:
    own = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    attributes = {key: query.attribute(node, key) for key in node.attributes if key not in own}
    numbers = [query.attribute(node, key) for key in own[1:] if key in node.attributes]
    result = parts.op("Gemm", *node.inputs, **attributes)
    activated = _activation(parts, result, query.attribute(node, "activation"), numbers)
    return None if activated is None else [activated]


def _matmul(node: ir.Node, parts: _Parts) -> Sequence[ir.Value] | None:
    if query.attribute(node, "transBatchA", 0) or query.attribute(node, "transBatchB", 0):
        return None
    operands = []
    for value, key in zip(node.inputs, ("transA", "transB"), strict=True):
        rank = query.rank(value) if value is not None else None
        if query.attribute(node, key, 0) and rank != 1:  # a vector has no axes to exchange
            if rank is None:
                return None
            value = parts.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(value)
    product, alpha = parts.op("MatMul", *operands), query.attribute(node, "alpha", 1.0)
    return [product if alpha == 1 else parts.op("Mul", product, float(alpha))]


# ------------------------------------------------------------------------------------------- activations


def _with_bias(node: ir.Node, parts: _Parts) -> ir.Value | None:
    bias = query.optional_input(node, 1)
    return node.inputs[0] if bias is None else parts.op("Add", node.inputs[0], bias)


def _gelu(node: ir.Node, parts: _Parts) -> Sequence[ir.Value]:
    x = _with_bias(node, parts)
    one_plus_erf = parts.op("Add", parts.op("Erf", parts.op("Div", x, float(np.sqrt(2)))), 1.0)
    return [parts.op("Mul", parts.op("Mul", x, one_plus_erf), 0.5)]


def _fast_gelu(node: ir.Node, parts: _Parts) -> Sequence[ir.Value]:
    x = _with_bias(node, parts)
    cube = parts.op("Mul", parts.op("Pow", x, 3.0), GELU_CUBE_FACTOR)
    tanh = parts.op("Tanh", parts.op("Mul", parts.op("Add", x, cube), GELU_TANH_FACTOR))
    return [parts.op("Mul", parts.op("Mul", x, 0.5), parts.op("Add", tanh, 1.0))]


def _quick_gelu(node: ir.Node, parts: _Parts) -> Sequence[ir.Value]:
    x, alpha = node.inputs[0], float(query.attribute(node, "alpha", QUICK_GELU_FACTOR))
    scaled = x if alpha == 1 else parts.op("Mul", x, alpha)
    return [parts.op("Mul", x, parts.op("Sigmoid", scaled))]


# ---------------------------------------------------------------------------------------- normalizations


def _normalized(parts: _Parts, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float) -> ir.Value:
    """Add a layer normalization over the last axis."""
    if parts.version >= 17:
        inputs = [x, scale] if bias is None else [x, scale, bias]
        return parts.op("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)
    centred = parts.op("Sub", x, parts.mean(x))
    variance = parts.mean(parts.op("Pow", centred, 2.0))
    root = parts.op("Sqrt", parts.op("Add", variance, float(epsilon)))
    scaled = parts.op("Mul", parts.op("Div", centred, root), scale)
    return scaled if bias is None else parts.op("Add", scaled, bias)


def _simply_normalized(parts: _Parts, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    """Add a root mean square normalization over the last axis."""
    root = parts.op("Sqrt", parts.op("Add", parts.mean(parts.op("Pow", x, 2.0)), float(epsilon)))
    return parts.op("Mul", parts.op("Div", x, root), scale)


def _layer_norm(node: ir.Node, parts: _Parts) -> Sequence[ir.Value] | None:
    x, scale = node.inputs[:2]
    if x is None or scale is None or not _is_over_last_axis(node) or _reads_statistics(node, range(1, 3)):
        return None
    epsilon = query.attribute(node, "epsilon", EPSILON)
    if node.op_type == "SimplifiedLayerNormalization":
        return [_simply_normalized(parts, x, scale, epsilon)]
    return [_normalized(parts, x, scale, query.optional_input(node, 2), epsilon)]


def _skip_layer_norm(node: ir.Node, parts: _Parts) -> Sequence[ir.Value | None] | None:
    simplified = node.op_type.startswith("SkipSimplified")
    x, skip, scale = node.inputs[:3]
    bias_at = 3 if simplified else 4
    if scale is None or _reads_statistics(node, range(1, 3)):
        return None
    bias = query.optional_input(node, bias_at)
    if bias is not None:  # next to the product, which may take it over
        first, second = (skip, x) if _is_product(skip) else (x, skip)
        x, skip = parts.op("Add", first, bias), second
    total = parts.op("Add", x, skip)
    epsilon = query.attribute(node, "epsilon", SKIP_EPSILON)
    if simplified:
        return [_simply_normalized(parts, total, scale, epsilon), None, None, total]
    return [_normalized(parts, total, scale, query.optional_input(node, 3), epsilon), None, None, total]


def _is_product(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and query.op(producer) == "MatMul"


def _is_over_last_axis(node: ir.Node) -> bool:
    rank, axis = query.rank(node.inputs[0]) if node.inputs[0] is not None else None, query.attribute(node, "axis", -1)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _reads_statistics(node: ir.Node, positions: Sequence[int]) -> bool:
    """True if the mean or the deviation, which only training needs, is read."""
    chosen = [node.outputs[index] for index in positions if index < len(node.outputs)]
    return any(value.is_graph_output() or query.consumers(value) for value in chosen)


_EXPANSIONS: dict[str, Expansion] = {
    f"{MICROSOFT}FusedConv": _conv,
    f"{MICROSOFT}FusedGemm": _gemm,
    f"{MICROSOFT}FusedMatMul": _matmul,
    f"{MICROSOFT}TransposeMatMul": _matmul,
    f"{MICROSOFT}BiasGelu": _gelu,
    f"{MICROSOFT}Gelu": _gelu,
    f"{MICROSOFT}FastGelu": _fast_gelu,
    f"{MICROSOFT}QuickGelu": _quick_gelu,
    f"{MICROSOFT}SkipLayerNormalization": _skip_layer_norm,
    f"{MICROSOFT}SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "LayerNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
}
