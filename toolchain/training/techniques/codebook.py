"""Weights from a small alphabet: shared values, powers of two, or two values a channel; stored as codes of few bits.

What onnxruntime's CPU provider computes with are floats all the same: it is the file that gets small, not the time
(:mod:`toolchain.storage.codebook`). :mod:`toolchain.training.techniques.codebook_weights` says how each kind learns.

The weights are those of products (Conv, ConvTranspose, Gemm, MatMul) with more than one axis. A weight that several
nodes read is one weight.
"""

from __future__ import annotations

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
from toolchain.training.engine.objective import heads
from toolchain.training.engine.samples import split_labels
from toolchain.training.engine.technique import Technique, Weights
from toolchain.training.engine.torch_graph import Through, TorchGraph
from toolchain.training.techniques.codebook_weights import CodebookKind, CodedTensor, SharedWeights

if TYPE_CHECKING:
    from torch import Tensor

Keep = Literal["ends", "none"] | Sequence[str]
"""What stays float: the first and the last product, nothing, or nodes by name."""


@dataclass(frozen=True)
class CodedProduct:
    """A weight and how a node multiplies with it. out, in_: its axes. groups: of channels, each summed by itself."""

    node: str
    name: str
    out: int
    in_: int
    groups: int = 1


class Codebook(Technique):
    """Codes the weights of a student's products.

    letters: which alphabet. keep: what stays float; None: nothing of shared weights, else the ends, for a classifier
    bears little rounding where it meets the image and where it scores. importance: how much a squared error of a
    weight counts, by the weight's name: an array of its shape (such as :func:`squared_gradients`) or of one number for
    each input channel (second moments of what the node reads); others count alike.

    Raises:
        InputError: no node of a name in `keep`; an importance that does not fit its weight.
        ModelError: there is nothing to code.
    """

    def __init__(
        self,
        model: ir.Model,
        letters: CodebookKind,
        keep: Keep | None = None,
        importance: Mapping[str, Array] | None = None,
    ) -> None:
        chosen = coded_products(model, keep or ("none" if isinstance(letters, SharedWeights) else "ends"))
        self.settled = letters.settled
        known = importance or {}
        self._letters = {}
        for product in chosen:
            array = np.array(query.float_array(model.graph.initializers[product.name]))
            weighed = _importance(product, array.shape, known[product.name]) if product.name in known else None
            self._letters[product.name] = letters.letter(CodedTensor(array, product.out, weighed))

    def parameters(self) -> dict[str, Tensor]:
        """The moves of codebooks."""
        found = {f"{name}:book": letter.moved for name, letter in self._letters.items()}
        return {name: moved for name, moved in found.items() if moved is not None}

    def through(self) -> Through:
        """Coded weights (of powers of two: those that are frozen)."""
        return {name: letter.read for name, letter in self._letters.items()}

    def advance(self, weights: Weights, share: float) -> None:
        """Freeze or assign what is due."""
        for name, letter in self._letters.items():
            letter.advance(weights[name], share)

    def state(self) -> dict[str, Any]:
        """Of every weight."""
        return {name: letter.state() for name, letter in self._letters.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Of every weight."""
        for name, letter in self._letters.items():
            letter.restore(state[name])

    def finish(self, model: ir.Model) -> ir.Model:
        """The model with all these weights coded, stored as codes; what is not frozen yet is rounded."""
        return codebook.store(model, self.coded(model))

    def coded(self, model: ir.Model) -> dict[str, codebook.Coded]:
        """The weights of :meth:`finish` by name; `model`: the student with its trained dense weights."""
        import torch

        weights = {name: np.array(query.float_array(model.graph.initializers[name])) for name in self._letters}
        return {name: letter.coded(torch.from_numpy(weights[name])) for name, letter in self._letters.items()}


def products(model: ir.Model) -> list[CodedProduct]:
    """The products with a float32 initializer of more than one axis, in graph order; a weight once for each reader."""
    return [
        CodedProduct(query.label(w.node), str(w.value.name), w.axes.out, w.axes.in_, w.axes.groups)
        for w in product_weights(model)
        if w.value.is_initializer()
    ]


def coded_products(model: ir.Model, keep: Keep) -> list[CodedProduct]:
    """Those whose weights are coded, one for each weight; a weight that one kept node reads stays float for all."""
    found = products(model)
    names = [product.node for product in found]
    if keep == "ends":
        kept = {*names[:1], *names[-1:]}
    else:
        kept = set() if isinstance(keep, str) else set(keep)
        for name in sorted(kept - set(names)):
            raise InputError("no such product to keep", where=f"node {name!r}", hint=did_you_mean(name, names))
    floats = {product.name for product in found if product.node in kept}
    chosen: dict[str, CodedProduct] = {}
    for product in found:
        if product.name not in floats:
            chosen.setdefault(product.name, product)
    if not chosen:
        raise ModelError("has no weights of products to code", where=model.graph.name, hint="keep fewer of them float")
    return list(chosen.values())


def squared_gradients(graph: TorchGraph, losses: Iterable[Tensor]) -> dict[str, Array]:
    """For every weight the mean square of its gradient, of its shape: what stands in for the Hessian's diagonal.

    At a minimum of a log-likelihood they are the same in expectation (the Fisher information), with labels drawn from
    the model's own scores: it needs none of ours. On two classifiers it makes the outputs of 3- and 2-bit codebooks 3
    to 7 dB more faithful.

    losses: one for each sample, computed by `graph`; taken one at a time.
    """
    import torch

    sums = {name: torch.zeros_like(weight) for name, weight in graph.parameters.items()}
    count = 0
    for loss in losses:
        found = torch.autograd.grad(loss, list(graph.parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient.square()
        count += 1
    return {name: (total / max(count, 1)).numpy() for name, total in sums.items()}


def own_gradients(model: ir.Model, data: CalibrationData, seed: int) -> dict[str, Array] | None:
    """Squared gradients of a classifier on some samples, with classes drawn from its own scores; None of others."""
    import torch

    graph = TorchGraph(model)
    name, scores = next(iter(heads(model).items()))
    examples, _ = split_labels(list(data))
    with torch.no_grad():
        if not scores or graph(examples[0], [name])[name].ndim != 2:
            return None
    drawn = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Tensor]:
        for example in examples:
            found = graph(example, [name])[name].log_softmax(-1)
            yield -found[0, torch.multinomial(found[0].exp().detach(), 1, generator=drawn)].sum()

    return squared_gradients(graph, losses())


def _importance(product: CodedProduct, shape: tuple[int, ...], given: Array) -> F64:
    """Of the weight's shape; input channels are those of all groups, one group after the other."""
    where = f"importance of {product.name!r}"
    array = np.asarray(given, np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError("has numbers below zero, or none at all", where=where, hint="give squares")
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
