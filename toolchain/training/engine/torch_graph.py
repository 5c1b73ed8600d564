"""An ONNX graph in torch, with gradients to its weights.

`TorchGraph` computes the wanted tensors from the given ones and runs no other node. From the inputs to the outputs, it
runs the whole model; from the tensors in front of a block to those behind it, it runs only the block. A tensor can also
be replaced by a function of itself for all of its readers (`Transforms`), as fake quantization does with activations
and weights.
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

MIN_OPSET = 13
"""Softmax, Split and Squeeze had other meanings in older operator sets."""

WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = {
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
"""Input positions that are trained where they are constant, float and have more than one element."""

Transforms = Mapping[str, "Callable[[Tensor], Tensor]"]
"""Functions by tensor name (weights included); the readers of a tensor get the function's result."""


class TorchGraph:
    """A model in torch, on the CPU.

    Attributes:
        parameters: the weights that can be trained, by initializer name; they require gradients.
        buffers: the running means and variances of batch normalizations, by initializer name.
        training: batch normalizations use the statistics of the batch, and move the running ones towards them.

    Raises:
        ModelError: the model has an operator or operator set that cannot be trained through.
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
        self, given: Mapping[str, Tensor], wanted: Iterable[str], transforms: Transforms | None = None
    ) -> dict[str, Tensor]:
        """Compute the tensors named in `wanted` from those in `given`.

        Args:
            given: tensors by name, inputs of the model or any others; nothing in front of them is run.
            wanted: names of tensors.
            transforms: functions that tensors are passed through on the way to their readers.

        Raises:
            ModelError: a wanted tensor depends on an input that is not given, or is not in the graph.
        """
        names = tuple(wanted)
        known: dict[str, Tensor] = {**self._constants, **self.parameters, **given}
        transforms = transforms or {}
        known.update({name: transform(known[name]) for name, transform in transforms.items() if name in known})
        operators = {**table(), "BatchNormalization": batch_normalized} if self.training else table()
        for node, unneeded in self._order(frozenset(given), names):
            inputs = [None if value is None else known[str(value.name)] for value in node.inputs]
            result = operators[query.op(node)](node, *inputs)
            outputs = result if isinstance(result, list | tuple) else [result]
            for value, tensor in zip(node.outputs, outputs, strict=False):
                name = str(value.name)
                known[name] = transforms[name](tensor) if name in transforms else tensor
            for name in unneeded:
                known.pop(name, None)
        return {name: known[name] for name in names}

    def write_back(self) -> ir.Model:
        """Write the parameters and buffers as they are now into a clone of the model."""
        clone = self._model.clone()
        now = {**self.buffers, **self.parameters}
        for value in _constants(clone):
            if value.name in now:
                value.const_value = ir.tensor(now[value.name].detach().numpy().copy(), name=value.name)
        return clone

    def _order(self, given: frozenset[str], wanted: tuple[str, ...]) -> list[tuple[ir.Node, list[str]]]:
        """Return the nodes to run, each with the tensors that are not needed after it."""
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
            unneeded = sorted((inputs | outputs) - read - ready)
            read |= inputs | outputs
            needed = (needed - outputs) | (inputs - ready)
            order.append((node, unneeded))
        if needed:
            raise ModelError(f"depends on {min(needed)!r}, which is not given", where=f"tensor {wanted[0]!r}")
        return order[::-1]


def check_operators(model: ir.Model) -> None:
    """Check that every operator of a model can be trained through.

    Raises:
        ModelError: the operator set is too old, or an operator is not in :mod:`toolchain.training.engine.torch_ops`.
    """
    if query.opset(model) < MIN_OPSET:
        raise ModelError(
            f"has operator set {query.opset(model)}; training needs {MIN_OPSET} or newer",
            where=model.graph.name,
            hint="convert it with `toolchain convert` first",
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
    """Name the node's inputs that can be trained: initializers only, because others cannot be written back."""
    chosen = [node.inputs[i] for i in WEIGHT_INPUTS.get(query.op(node), ()) if i < len(node.inputs)]
    return {
        str(value.name)
        for value in chosen
        if value is not None and value.is_initializer() and query.is_float(value) and (query.elements(value) or 0) > 1
    }
