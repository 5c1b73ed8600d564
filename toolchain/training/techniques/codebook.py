"""Codebook weights: shared values, powers of two, or two values per channel, stored as codes of few bits.

onnxruntime's CPU provider unpacks the codes and computes with floats, so the file gets smaller but the model not faster
(:mod:`toolchain.storage.codebook`). :mod:`toolchain.training.techniques.codebook_weights` says how each kind is
trained.

The weights of products (Conv, ConvTranspose, Gemm, MatMul) with more than one axis are coded. A weight that several
nodes read is coded once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from toolchain.core.arrays import F64
from toolchain.core.errors import InputError, ModelError, did_you_mean
from toolchain.data.calibration import CalibrationData
from toolchain.data.tensors import Array
from toolchain.graph import query
from toolchain.ops.weights import product_weights
from toolchain.storage import codebook
from toolchain.training.engine.comparison import output_scores
from toolchain.training.engine.samples import split_labels
from toolchain.training.engine.technique import Technique, Weights
from toolchain.training.engine.torch_graph import TorchGraph, Transforms
from toolchain.training.techniques.codebook_weights import CodebookKind, SharedWeights, TensorToCode

if TYPE_CHECKING:
    from torch import Tensor

LOGGER = logging.getLogger(__name__)

KeepFloat = Literal["ends", "none"] | Sequence[str]
"""Products that stay float: the first and the last one, none, or nodes by name."""


@dataclass(frozen=True)
class CodedProduct:
    """A weight and the node that multiplies with it.

    Attributes:
        node: label of the node.
        name: name of the weight's initializer.
        out: axis of the output channels.
        in_: axis of the input channels.
        groups: number of groups of a convolution.
    """

    node: str
    name: str
    out: int
    in_: int
    groups: int = 1


class Codebook(Technique):
    """Codes the weights of a student's products.

    Args:
        model: the student.
        kind: shared values, powers of two or binary.
        keep: products that stay float; None: none for shared weights, the first and the last for the others, because
            classifiers tolerate little rounding in their first and last layers.
        importance: factor of a weight's squared error, by the name of the weight: an array of its shape (such as
            :func:`squared_gradients`), or one number for each input channel (second moments of the node's input).
            Weights without an entry count equally.

    Raises:
        InputError: a name in `keep` is no product; an importance does not fit its weight.
        ModelError: there is nothing to code.
    """

    def __init__(
        self,
        model: ir.Model,
        kind: CodebookKind,
        keep: KeepFloat | None = None,
        importance: Mapping[str, Array] | None = None,
    ) -> None:
        chosen = coded_products(model, keep or ("none" if isinstance(kind, SharedWeights) else "ends"))
        self.target_share = kind.target_share
        known = importance or {}
        self._codes = {}
        for product in chosen:
            array = np.array(query.float_array(model.graph.initializers[product.name]))
            factors = _importance(product, array.shape, known[product.name]) if product.name in known else None
            self._codes[product.name] = kind.weight_code(TensorToCode(array, product.out, factors))
        LOGGER.info("%d weights are coded, %d products stay float", len(chosen), len(products(model)) - len(chosen))

    def parameters(self) -> dict[str, Tensor]:
        """Return the changes of codebook entries."""
        moves = {f"{name}:book": code.moves for name, code in self._codes.items()}
        return {name: move for name, move in moves.items() if move is not None}

    def transforms(self) -> Transforms:
        """Replace weights by their coded values (for powers of two, only the frozen weights)."""
        return {name: code.decode for name, code in self._codes.items()}

    def advance(self, weights: Weights, share: float) -> None:
        """Freeze or assign weights where that is due."""
        for name, code in self._codes.items():
            code.advance(weights[name], share)

    def state(self) -> dict[str, Any]:
        """Return the state of every code."""
        return {name: code.state() for name, code in self._codes.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state of every code."""
        for name, code in self._codes.items():
            code.restore(state[name])

    def finish(self, model: ir.Model) -> ir.Model:
        """Store the weights as codes; weights that are not frozen yet are rounded."""
        return codebook.store(model, self.encode(model))

    def encode(self, model: ir.Model) -> dict[str, codebook.CodedWeight]:
        """Code the weights of a model, by name.

        Args:
            model: the student with its trained dense weights.
        """
        import torch

        weights = {name: np.array(query.float_array(model.graph.initializers[name])) for name in self._codes}
        return {name: code.encode(torch.from_numpy(weights[name])) for name, code in self._codes.items()}


def products(model: ir.Model) -> list[CodedProduct]:
    """List the products with a float32 initializer of more than one axis, in graph order.

    A weight that several nodes read is listed once for each of them.
    """
    return [
        CodedProduct(query.label(w.node), str(w.value.name), w.axes.out, w.axes.in_, w.axes.groups)
        for w in product_weights(model)
        if w.value.is_initializer()
    ]


def coded_products(model: ir.Model, keep: KeepFloat) -> list[CodedProduct]:
    """List the products to code, one for each weight.

    A weight that a kept node reads stays float for all of its nodes.

    Raises:
        InputError: a name in `keep` is no product.
        ModelError: nothing is left to code.
    """
    every = products(model)
    names = [product.node for product in every]
    if keep == "ends":
        kept = {*names[:1], *names[-1:]}
    else:
        kept = set() if isinstance(keep, str) else set(keep)
        for name in sorted(kept - set(names)):
            raise InputError("no such product to keep", where=f"node {name!r}", hint=did_you_mean(name, names))
    floats = {product.name for product in every if product.node in kept}
    chosen: dict[str, CodedProduct] = {}
    for product in every:
        if product.name not in floats:
            chosen.setdefault(product.name, product)
    if not chosen:
        raise ModelError("has no weights of products to code", where=model.graph.name, hint="keep fewer of them float")
    return list(chosen.values())


def squared_gradients(graph: TorchGraph, losses: Iterable[Tensor]) -> dict[str, Array]:
    """Compute the mean squared gradient of every weight, as an estimate of the diagonal of the Hessian.

    At a minimum of a log-likelihood the two are equal in expectation (the Fisher information), where labels are drawn
    from the model's own scores; no true labels are needed. On two classifiers it raises the fidelity of the outputs of
    3- and 2-bit codebooks by 3 to 7 dB.

    Args:
        graph: the model.
        losses: one for each sample, computed by `graph`; taken one at a time.

    Returns:
        Arrays in the shape of the weights, by name.
    """
    import torch

    sums = {name: torch.zeros_like(weight) for name, weight in graph.parameters.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(graph.parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
        count += 1
    return {name: (total / max(count, 1)).numpy() for name, total in sums.items()}


def own_gradients(model: ir.Model, data: CalibrationData, seed: int) -> dict[str, Array] | None:
    """Compute squared gradients of a classifier, with classes drawn from its own scores; None for other models."""
    import torch

    graph = TorchGraph(model)
    name, scores = next(iter(output_scores(model).items()))
    examples, _ = split_labels(list(data))
    with torch.no_grad():
        if not scores or graph(examples[0], [name])[name].ndim != 2:
            return None
    drawn = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Tensor]:
        for example in examples:
            log_p = graph(example, [name])[name].log_softmax(-1)
            yield -log_p[0, torch.multinomial(log_p[0].exp().detach(), 1, generator=drawn)].sum()

    return squared_gradients(graph, losses())


def _importance(product: CodedProduct, shape: tuple[int, ...], given: Array) -> F64:
    """Expand an importance to the shape of its weight.

    Numbers for input channels are those of all groups, one group after the other.
    """
    where = f"importance of {product.name!r}"
    array = np.asarray(given, np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError("has negative numbers or NaN", where=where, hint="give squares")
    if array.shape == shape:
        return array
    groups = product.groups if product.in_ == 1 else 1
    if array.shape != (groups * shape[product.in_],):
        sizes = f"{list(shape)} or [{groups * shape[product.in_]}]"
        raise InputError(f"has shape {list(array.shape)}", where=where, hint=f"give {sizes}")
    if groups == 1:
        return np.broadcast_to(array.reshape(-1, *[1] * (len(shape) - 1 - product.in_)), shape)
    rows = np.repeat(array.reshape(groups, -1), shape[0] // groups, axis=0)
    return np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)
