"""Selection: choose int8 or float for every node, from the graph alone.

Nodes with a `Kernel` cell (Conv, Gemm, MatMul with constant weights) become int8 wherever that is possible. The
operators between them (Add, Concat, pools, reshapes ...) become int8 where most of the elements they read are int8
already. The reason is that a float operator between int8 operators costs a conversion on each side, and an int8
operator between float operators costs as much and gains nothing. Relu and Clip are merged into the operator before
them. For every node that stays float, the reason is recorded.

Behind the last products of the graph nothing is int8: there is no int8 operator to gain from it, and a range would clip
what the samples did not show, such as the score of a rare class.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.formats.manifest import NodePrecision, Precision
from toolchain.graph import query
from toolchain.ops.cells import Absorbed, Dynamic, Float, Kernel, OwnScale, SameScale
from toolchain.ops.table import rule
from toolchain.ops.weights import weight_axes
from toolchain.quantization import bodies, tails
from toolchain.quantization.magnification import magnified_products
from toolchain.quantization.qdq import dynamic_lstm, embedding_tables
from toolchain.quantization.shared_weights import stored_twice

Reasons = Mapping[str, str]
"""Name of a node to the reason why it stays float."""

UNKNOWN_TYPE = "the type of its input is unknown, even to onnxruntime"
FOLLOWS_FLOAT = "the operator before it is float"


@dataclass(frozen=True)
class Selection:
    """The precision of every node, and the tensors that need a scale.

    Attributes:
        choices: one for every node, in graph order.
        tensors: names of tensors in graph order, each with the axis along which its channel means are needed, or None.
        same: name of a tensor to the name of the tensor whose scale it shares.
        results: names of quantized tensors that no int8 product follows: results of the last convolutions.
    """

    choices: tuple[NodePrecision, ...]
    tensors: dict[str, int | None]
    same: dict[str, str]
    results: frozenset[str] = frozenset()

    def int8_nodes(self) -> set[str]:
        """Name the nodes that compute in static int8."""
        return {choice.node for choice in self.choices if choice.int8}

    def nodes_in(self, precision: Precision) -> set[str]:
        """Name the nodes that compute in this precision."""
        return {choice.node for choice in self.choices if choice.precision == precision}


def select(model: ir.Model, keep_float: Collection[str] = (), reasons: Reasons | None = None) -> Selection:
    """Choose int8 or float for every node of an optimized model.

    Args:
        model: as :func:`toolchain.optimization.passes.optimize` leaves it.
        keep_float: names of nodes, or operator types, that stay float.
        reasons: names of nodes that stay float for another reason, such as a lost race, with that reason.
    """
    given = {**magnified_products(model), **(reasons or {})}
    selection = _select(model, keep_float, given)
    doubled = stored_twice(model, selection.int8_nodes() | selection.nodes_in("int8 storage"))
    return _select(model, keep_float, {**doubled, **given}) if doubled else selection


def _select(model: ir.Model, keep_float: Collection[str], reasons: Reasons) -> Selection:
    """Choose int8 or float for every node; those of `reasons` stay float."""
    int8: dict[ir.Node, bool] = {}
    why: dict[ir.Node, str | None] = {}
    other: dict[ir.Node, Precision] = {}
    for node in model.graph:
        kept = _kept(node, keep_float, reasons)
        reason = kept or _refusal(node) or _unprofitable(node, int8)
        if reason is None and isinstance(rule(node).int8, Dynamic):
            other[node], reason = "int8 dynamic", dynamic_lstm.DYNAMIC_REASON
        elif not kept and embedding_tables.has_table(node):
            other[node], reason = "int8 storage", embedding_tables.TABLE_REASON
        int8[node], why[node] = reason is None, reason
    for node in [node for node, precision in other.items() if precision == "int8 storage"]:
        if not all(int8[product] for product in embedding_tables.products_with_table(node)):
            del other[node]
            why[node] = embedding_tables.READ_AS_FLOAT_REASON
    why |= tails.drop_small_ends(model, int8)
    followed = tails.followed_by_product(model, int8)
    why |= tails.drop_unread(model, int8, followed)
    choices = tuple(
        NodePrecision(
            node=query.label(n),
            op=query.op(n),
            precision=other.get(n, "int8" if int8[n] else "float"),
            reason=why[n],
        )
        for n in model.graph
    )
    names = {query.label(node) for node, chosen in int8.items() if chosen}
    tensors, same = _tensors(model, int8, names)
    ends = (node for node in model.graph if int8[node] and isinstance(rule(node).int8, Kernel) and node not in followed)
    results = {output_point(node, names).name for node in ends}
    return Selection(choices, tensors, same, frozenset(str(name) for name in results if name in tensors))


# ------------------------------------------------------------------------------------------ node by node


def _kept(node: ir.Node, keep_float: Collection[str], reasons: Reasons) -> str | None:
    """Return the reason why the recipe or an earlier step keeps `node` float, or None."""
    name = query.label(node)
    if name in reasons:
        return reasons[name]
    return "the recipe keeps it float" if name in keep_float or query.op(node) in keep_float else None


def _refusal(node: ir.Node) -> str | None:
    """Return the reason why `node` cannot be int8, whichever operators are around it; None where it can."""
    cell = rule(node).int8
    match cell:
        case Float():
            return bodies.reason(node) or cell.reason
        case Kernel():
            return _kernel_refusal(node, cell)
        case Absorbed():
            return _absorb_refusal(node)
        case Dynamic():
            return dynamic_lstm.refusal(node, cell)
        case _:
            return _connecting_refusal(node, cell)


def _kernel_refusal(node: ir.Node, cell: Kernel) -> str | None:
    weight = node.inputs[cell.weight]
    if query.constant(weight) is None:
        if query.constant(node.inputs[cell.act]) is not None:
            return "its constant is on the left, where the int8 kernels take the activation"
        return "its weight is computed at run time, and int8 needs a constant one"
    if _has_unknown_type(weight) or _has_unknown_type(node.inputs[cell.act]):
        return UNKNOWN_TYPE
    if not query.is_float(weight) or not query.is_float(node.inputs[cell.act]):
        return "its input or weight is not float32"
    if query.constant(node.inputs[cell.act]) is not None:
        return "its input is a constant, not an activation"
    if cell.bias is not None and len(node.inputs) > cell.bias and node.inputs[cell.bias] is not None:
        bias = query.constant(node.inputs[cell.bias])
        if bias is None:
            return "its bias is not constant"
        if bias.size != _channels(node) or bias.shape[-1:] != (bias.size,):
            return "its bias does not have one number per output channel"
    if node.op_type == "MatMul" and query.rank(weight) != 2:  # type: ignore[arg-type]
        return "its weight is a stack of matrices, and the int8 kernel takes one matrix"
    if node.op_type == "Gemm":
        alpha, beta = query.attribute(node, "alpha", 1.0), query.attribute(node, "beta", 1.0)
        transposed = query.attribute(node, "transA", 0)
        if transposed or alpha != 1.0 or beta != 1.0:
            return f"there is no int8 kernel for transA={transposed}, alpha={alpha:g}, beta={beta:g}"
    return None


def _has_unknown_type(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is None


def _channels(node: ir.Node) -> int:
    weight = query.constant(node.inputs[1])
    return 0 if weight is None else weight.shape[weight_axes(node).out]


def _absorb_refusal(node: ir.Node) -> str | None:
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or source is None:
        return FOLLOWS_FLOAT
    if query.sole_consumer(source) is not node:
        return "its input has other readers, so it cannot be merged into the operator before it"
    if isinstance(rule(producer).int8, SameScale | Absorbed):
        return "the operator before it does not round to int8, so it cannot be merged into it"
    if node.op_type == "Clip":
        low, high = clip_limits(node)
        if low is None or high is None or not low <= 0.0 <= high:
            return "its limits are not constants with 0 between them"
    return None


def clip_limits(node: ir.Node) -> tuple[float | None, float | None]:
    """Return the constant limits of a Relu or Clip: infinite where there is none, None where it is computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    limits: list[float | None] = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = node.inputs[index] if len(node.inputs) > index else None
        limits.append(default if value is None else query.scalar(value))
    return limits[0], limits[1]


def _connecting_refusal(node: ir.Node, cell: SameScale | OwnScale) -> str | None:
    for value in data_inputs(node):
        if _has_unknown_type(value):
            return UNKNOWN_TYPE
        if not query.is_float(value):
            return "its input is not float32"
        if query.constant(value) is not None:
            return "it combines an activation with a constant, which would only lose precision in int8"
    if node.op_type == "Resize" and query.attribute(node, "mode", "nearest") != "nearest":
        return "it interpolates between values, and int8 results would differ between processors"
    if node.op_type == "AveragePool" and (query.may_pad(node) or query.attribute(node, "ceil_mode")):
        return "it averages fewer elements at the borders, and int8 results would differ between processors"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "it also returns indices"
    return None


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """List the inputs that carry activations: not weights, shapes, axes or limits."""
    cell = rule(node).int8
    match cell:
        case Kernel():
            chosen = [node.inputs[cell.act]]
        case OwnScale(inputs=None):
            chosen = list(node.inputs)
        case _:
            chosen = list(node.inputs[:1])
    return [value for value in chosen if value is not None]


def _unprofitable(node: ir.Node, int8: dict[ir.Node, bool]) -> str | None:
    """Return the reason why an operator between products stays float although it could be int8, or None.

    That is the case where most elements it reads are float.
    """
    cell = rule(node).int8
    if isinstance(cell, Kernel | Dynamic):
        return None
    ready = total = 0
    for value in data_inputs(node):
        size = query.elements(value) or 1
        producer = value.producer()
        total += size
        ready += size if producer is not None and int8.get(producer, False) else 0
    if isinstance(cell, Absorbed):
        return None if ready else FOLLOWS_FLOAT
    return (
        None if 2 * ready > total else "it reads mostly float tensors, and converting them costs more than int8 saves"
    )


# ----------------------------------------------------------------------------------------------- tensors


def output_point(node: ir.Node, int8_nodes: Collection[ir.Node] | Collection[str]) -> ir.Value:
    """Return the tensor that is quantized for an int8 node: its output, or that of the Relu or Clip it absorbs."""
    output = node.outputs[0]
    follower = query.sole_consumer(output)
    if follower is not None and isinstance(rule(follower).int8, Absorbed):
        chosen = follower in int8_nodes or query.label(follower) in int8_nodes
        if chosen:
            return follower.outputs[0]
    return output


def leaves_float(node: ir.Node, int8_names: Collection[str]) -> bool:
    """True where a product's result stays float: the kernel allows it and no int8 node reads it."""
    cell = rule(node).int8
    if not (isinstance(cell, Kernel) and cell.float_output):
        return False
    return not any(query.label(reader) in int8_names for reader in query.consumers(node.outputs[0]))


def _tensors(
    model: ir.Model, int8: Mapping[ir.Node, bool], names: Collection[str]
) -> tuple[dict[str, int | None], dict[str, str]]:
    """Return the tensors that need a scale, and those that share one; see :class:`Selection`.

    Args:
        model: the float model.
        int8: which nodes are int8.
        names: names of those that are.
    """
    tensors: dict[str, int | None] = {}
    same: dict[str, str] = {}
    conflicting: set[str] = set()  # read by a convolution and a matrix product, whose channel axes differ

    def add(value: ir.Value, axis: int | None) -> None:
        if value.name is None:
            return
        known = tensors.get(value.name)
        if known is not None and axis is not None and known != axis:
            conflicting.add(value.name)
        tensors[value.name] = axis if known is None else known

    for node in model.graph:
        cell = rule(node).int8
        if not int8[node] or isinstance(cell, Absorbed):
            continue
        for value in data_inputs(node):
            axis = None
            if isinstance(cell, Kernel) and (rank := query.rank(value)) is not None:
                axis = 1 if node.op_type == "Conv" else rank - 1
            add(value, axis)
        if leaves_float(node, names):
            continue
        for output in node.outputs:
            point = output_point(node, names) if len(node.outputs) == 1 else output
            add(point, None)
            if isinstance(cell, SameScale) and point.name is not None and node.inputs[0] is not None:
                same[point.name] = str(node.inputs[0].name)
    return {name: None if name in conflicting else axis for name, axis in tensors.items()}, same
