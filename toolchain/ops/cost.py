"""The cost of a model from its graph alone: multiply-accumulates, parameters, bytes, activation memory.

Sizes        Dynamic axes count as 1: a model with a dynamic batch is counted for one sample. The shapes that follow
             are inferred anew.
MACs         The sum of the table's cost cells (``table.py``). They include element-wise work, so a total is a few per
             cent above the multiply-adds in papers, which count convolutions and matrix products only; `operators`
             has those by themselves. A node without a row in the table, or of unknown shapes, is named in `unknown`.
             Nodes computed from constants alone cost nothing: runtimes fold them when they load the model.
Parameters   Elements of constants, without integer shapes and indices and without scales and zero points.
Activations  In the file's order of nodes, a tensor is alive from the node that makes it (an input: from the start) to
             its last reader (an output: to the end). The peak is the largest sum of bytes alive at one node. Nodes that
             runtimes fuse share one memory: a Relu or Clip with the node before it, conversions with the integers
             between them. Views and other work in place are not modelled, so a runtime may need less; nor are blocked
             layouts and scratch memory, so it may need more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from toolchain.graph import query
from toolchain.ops import table
from toolchain.ops.cells import Absorbed

NO_SHAPE = "its shapes are not known"

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class OperatorCost:
    """Sums over all nodes of one operator.

    Attributes:
        op: key of the operator table.
        nodes: number of nodes.
        macs: multiply-accumulates of the nodes where they are known.
        unknown: number of nodes where they are not known.
    """

    op: str
    nodes: int
    macs: int
    unknown: int


@dataclass(frozen=True)
class Cost:
    """Totals of a model; the module's docstring says what each one counts.

    Attributes:
        macs: multiply-accumulates by node; None where they are not known.
        operators: the same by operator, the most expensive one first.
        unknown: for each node without known multiply-accumulates, the reason.
        parameters: number of parameters.
        weight_bytes: bytes of all constants.
        peak_activation_bytes: largest sum of the bytes that are alive at one node.
        dynamic: input axes that are counted as 1, as ``input.axis``.
        peak_node: the first node at which the peak is reached; None for a graph without nodes.
    """

    macs: Mapping[str, int | None]
    operators: tuple[OperatorCost, ...]
    unknown: Mapping[str, str]
    parameters: int
    weight_bytes: int
    peak_activation_bytes: int
    dynamic: tuple[str, ...]
    peak_node: str | None = None

    @property
    def total_macs(self) -> int:
        """Sum over all nodes whose MACs are known."""
        return sum(operator.macs for operator in self.operators)

    @property
    def int8_peak_activation_bytes(self) -> int:
        """Estimated peak of a float32 model after every activation became int8: a quarter."""
        return self.peak_activation_bytes // 4


def total_macs(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Sum of :func:`macs_by_node`."""
    return sum(macs_by_node(model, shapes).values())


def macs_by_node(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Multiply-accumulates of every node, 0 where the cost is unknown, by the shapes that the model holds.

    Args:
        model: the model.
        shapes: shapes of the inputs, by name; dynamic axes have these sizes instead of 1.
    """
    if shapes is not None:
        model = model.clone()
        _fix_axes(model, shapes)
    return {query.label(node): table.macs(node) or 0 for node in model.graph}


def count(model: ir.Model) -> Cost:
    """Count a model, which is not changed. A node of control flow has unknown cost; its subgraphs are not counted."""
    clone = model.clone()
    dynamic = _fix_axes(clone)
    nodes, constant = [node for node in clone.graph if node.op_type != "Constant"], folded(clone)
    macs = {query.label(node): 0 if node in constant else table.macs(node) for node in nodes}
    peak, peak_node = _peak(clone)
    return Cost(
        macs=macs,
        operators=_by_operator(nodes, macs),
        unknown={
            query.label(node): NO_SHAPE if query.op(node) in table.TABLE else table.NO_ROW
            for node in nodes
            if macs[query.label(node)] is None
        },
        parameters=sum(tensor.size for value, tensor in constants(clone) if _is_parameter(value)),
        weight_bytes=sum(tensor.nbytes for _, tensor in constants(clone)),
        peak_activation_bytes=peak,
        dynamic=dynamic,
        peak_node=peak_node,
    )


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Initializers of all graphs and the tensors of Constant nodes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in model.graph.all_nodes():
        tensor = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
        if tensor is not None:
            yield node.outputs[0], tensor


def _is_parameter(value: ir.Value) -> bool:
    uses = list(value.uses())
    for_scale = uses and all(use.node.op_type in _CONVERSIONS and use.idx > 0 for use in uses)
    return value.dtype not in (ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING) and not for_scale


def folded(model: ir.Model) -> set[ir.Node]:
    """Constant nodes and nodes computed from constants alone, which runtimes replace when they load the model."""
    constant: set[ir.Node] = set()
    for node in model.graph:
        sources = [value for value in node.inputs if value is not None]
        if node.op_type == "Constant" or (
            sources and all(v.producer() in constant or query.constant(v) is not None for v in sources)
        ):
            constant.add(node)
    return constant


def _by_operator(nodes: list[ir.Node], macs: Mapping[str, int | None]) -> tuple[OperatorCost, ...]:
    """Costs by operator: the highest first, equal ones by number of nodes."""
    number, total, unknown = Counter[str](), Counter[str](), Counter[str]()
    for node in nodes:
        op, known = query.op(node), macs[query.label(node)]
        number[op] += 1
        total[op] += known or 0
        unknown[op] += known is None
    costs = [OperatorCost(op, number[op], total[op], unknown[op]) for op in number]
    return tuple(sorted(costs, key=lambda cost: (-cost.macs, -cost.nodes)))


# ------------------------------------------------------------------------------------------- dynamic axes


def _fix_axes(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[str, ...]:
    """Set dynamic axes of the inputs to their sizes in `shapes`, else to 1, and infer all shapes; return those axes."""
    dynamic, symbols = [], dict[str, int]()
    for value in model.graph.inputs:
        if value.name in model.graph.initializers or value.shape is None:
            continue
        dynamic += [f"{value.name}.{axis}" for axis, dim in enumerate(value.shape) if not _is_size(dim)]
        sizes = (shapes or {}).get(str(value.name)) or [1] * len(value.shape)
        for dim, size in zip(value.shape, sizes, strict=True):
            symbols.update(dict.fromkeys(query.symbols(dim), size))
        value.shape = ir.Shape([dim if _is_size(dim) else size for dim, size in zip(value.shape, sizes, strict=True)])
    if dynamic:
        for output in (output for node in model.graph for output in node.outputs):
            if output.shape is not None:
                output.shape = ir.Shape([dim if _is_size(dim) else _evaluated(dim, symbols) for dim in output.shape])
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return tuple(dynamic)


def _is_size(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) and dim >= 0


def _evaluated(dim: int | ir.SymbolicDim, symbols: Mapping[str, int]) -> int | ir.SymbolicDim:
    """Value of an expression such as 32*batch for these input axes; other expressions become unknown sizes."""
    own = query.symbols(dim)
    if isinstance(dim, ir.SymbolicDim) and own and own <= set(symbols):
        return dim.evaluate({name: symbols[name] for name in own})
    return ir.SymbolicDim(None)


# -------------------------------------------------------------------------------------------- activations


def _peak(model: ir.Model) -> tuple[int, str | None]:
    """The largest number of bytes alive at one node, and that node."""
    constant = folded(model)
    nodes = [node for node in model.graph if node not in constant]
    memory = _shared_memory(nodes)

    def holder(value: ir.Value) -> ir.Value:
        while value in memory:
            value = memory[value]
        return value

    born = {holder(value): 0 for value in model.graph.inputs if not value.is_initializer()}
    dies = dict(born)
    for step, node in enumerate(nodes):
        for value in filter(None, node.inputs):
            if query.constant(value) is None and value.producer() not in constant:
                dies[holder(value)] = step
        for value in (output for output in node.outputs if output.name):
            born.setdefault(holder(value), step)
            dies[holder(value)] = step
    dies |= {holder(value): len(nodes) - 1 for value in model.graph.outputs}
    change = np.zeros(len(nodes) + 1, np.int64)
    for value, step in born.items():
        change[step] += _bytes(value)
        change[dies[value] + 1] -= _bytes(value)
    if not nodes:
        return int(change.sum()), None
    alive = np.cumsum(change)[: len(nodes)]
    return int(alive.max()), query.label(nodes[int(alive.argmax())])


def _shared_memory(nodes: list[ir.Node]) -> dict[ir.Value, ir.Value]:
    """For tensors without memory of their own, the tensor whose memory they share; see *Activations* in the module."""
    memory: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            continue
        fused = node.op_type == "QuantizeLinear" or isinstance(table.rule(node).int8, Absorbed)
        if node.op_type == "DequantizeLinear":
            memory[node.outputs[0]] = source
        elif fused and source not in memory and source.producer() and query.sole_consumer(source) is node:
            memory[source] = node.outputs[0]
    return memory


def _bytes(value: ir.Value) -> int:
    """Bytes of a tensor: float32 if the type is unknown, 0 if the rank is unknown or the elements are text."""
    if value.dtype == ir.DataType.STRING:
        return 0
    return int((query.elements(value) or 0) * (4 if value.dtype is None else value.dtype.itemsize))
