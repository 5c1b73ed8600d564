"""An ONNX graph in torch: any tensor from any others, with gradients to its weights.

`TorchGraph` computes what is asked for from what is given and runs no other node. Given a model's inputs and asked for
its outputs it is the model; given the tensors in front of a block and asked for those behind it, the block. A tensor
may also be passed `through` a function on its way to its readers, as fake quantization does with activations and
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import ModelError
from toolchain.graph import query
from toolchain.training.engine.torch_ops import batch_normalized, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OLDEST_OPSET = 13
"""Softmax, Split and Squeeze had other meanings before."""

TRAINED: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Inputs that are weights where they are constant, float and of more than one element."""

Through = Mapping[str, "Callable[[Tensor], Tensor]"]


class TorchGraph:
    """A model in torch, on the CPU.

    parameters: the weights that can be trained, by initializer name; they require gradients.
    buffers: the running means and variances of batch normalizations, by initializer name.
    training: whether batch normalizations use the batch's own statistics, and move the running ones towards them.

    Raises:
        ModelError: an operator (or operator set) that cannot be trained through, by name.
    """

    parameters: dict[str, torch.nn.Parameter]
    buffers: dict[str, Tensor]
    training: bool

    def __init__(self, model: ir.Model) -> None:
        import torch

        check_operators(model)
        self._model = model
        self.training = False
        self._nodes = [node for node in model.graph if node.op_type != "Constant"]
        self.parameters, self._constants = {}, {}
        wanted = {name for node in self._nodes for name in _weights(node)}
        for value in _constants(model):
            array = query.constant(value) if value.const_value is None else value.const_value.numpy()
            tensor = torch.from_numpy(np.array(array))
            if value.name in wanted:
                self.parameters[str(value.name)] = torch.nn.Parameter(tensor)
            else:
                self._constants[str(value.name)] = tensor
        norms = [node for node in self._nodes if node.op_type == "BatchNormalization"]
        names = [str(value.name) for node in norms for value in node.inputs[3:5] if value is not None]
        self.buffers = {name: self._constants[name] for name in names if name in self._constants}
        self._orders: dict[tuple[frozenset[str], tuple[str, ...]], list[tuple[ir.Node, list[str]]]] = {}

    def __call__(
        self, given: Mapping[str, Tensor], wanted: Iterable[str], through: Through | None = None
    ) -> dict[str, Tensor]:
        """The tensors of the names `wanted`, computed from those `given`.

        Args:
            given: tensors by name, inputs of the model or any others; nothing in front of them is run.
            wanted: names of tensors.
            through: functions by tensor name (weights included): readers of the tensor get the function's result.

        Raises:
            ModelError: something wanted depends on an input that is not given, or is not in the graph.
        """
        names = tuple(wanted)
        known: dict[str, Tensor] = {**self._constants, **self.parameters, **given}
        changed = through or {}
        seen = {name: change(known[name]) for name, change in changed.items() if name in known}
        known.update(seen)
        operators = {**table(), "BatchNormalization": batch_normalized} if self.training else table()
        for node, done in self._order(frozenset(given), names):
            inputs = [None if value is None else known[str(value.name)] for value in node.inputs]
            found = operators[query.op(node)](node, *inputs)
            outputs = found if isinstance(found, list | tuple) else [found]
            for value, tensor in zip(node.outputs, outputs, strict=False):
                name = str(value.name)
                known[name] = changed[name](tensor) if name in changed else tensor
            for name in done:
                known.pop(name, None)
        return {name: known[name] for name in names}

    def write_back(self) -> ir.Model:
        """A clone of the model with the parameters and buffers as they are now."""
        clone = self._model.clone()
        now = {**self.buffers, **self.parameters}
        for value in _constants(clone):
            if value.name in now:
                value.const_value = ir.tensor(now[value.name].detach().numpy().copy(), name=value.name)
        return clone

    def _order(self, given: frozenset[str], wanted: tuple[str, ...]) -> list[tuple[ir.Node, list[str]]]:
        """The nodes to run, each with the tensors that nothing needs after it."""
        if (given, wanted) not in self._orders:
            self._orders[given, wanted] = self._find_order(given, wanted)
        return self._orders[given, wanted]

    def _find_order(self, given: frozenset[str], wanted: tuple[str, ...]) -> list[tuple[ir.Node, list[str]]]:
        ready = given | self.parameters.keys() | self._constants.keys()
        needed, order = set(wanted) - ready, []
        read = set(wanted)
        for node in reversed(self._nodes):
            outputs = {str(value.name) for value in node.outputs}
            if not outputs & needed:
                continue
            inputs = {str(value.name) for value in node.inputs if value is not None}
            done = sorted((inputs | outputs) - read - ready)
            read |= inputs | outputs
            needed = (needed - outputs) | (inputs - ready)
            order.append((node, done))
        if needed:
            raise ModelError(f"depends on {min(needed)!r}, which is not given", where=f"tensor {wanted[0]!r}")
        return order[::-1]


def check_operators(model: ir.Model) -> None:
    """Refuse what cannot be trained.

    Raises:
        ModelError: an old operator set, or an operator that is not in the table of torch's.
    """
    if query.opset(model) < OLDEST_OPSET:
        raise ModelError(
            f"is of operator set {query.opset(model)}, and {OLDEST_OPSET} is the oldest that can be trained",
            where=model.graph.name,
            hint="convert it first",
        )
    operators = table()
    for node in model.graph:
        if query.op(node) not in operators and node.op_type != "Constant":
            raise ModelError(
                f"the operator {query.op(node)} cannot be trained through",
                where=f"node {query.label(node)!r}",
                hint="leave training out",
            )


def _constants(model: ir.Model) -> list[ir.Value]:
    nodes = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    return [*model.graph.initializers.values(), *nodes]


def _weights(node: ir.Node) -> set[str]:
    """Names of the node's inputs that can be trained: initializers, for others cannot be written back."""
    chosen = [node.inputs[i] for i in TRAINED.get(query.op(node), ()) if i < len(node.inputs)]
    return {
        str(value.name)
        for value in chosen
        if value is not None and value.is_initializer() and query.is_float(value) and (query.elements(value) or 0) > 1
    }
