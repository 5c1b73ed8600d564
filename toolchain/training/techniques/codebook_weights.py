"""Codes of one weight during training: shared values, powers of two, binary.

shared         w_i = c[j(i)]. The gradient of an entry is the sum over its weights, ∂L/∂c_j = Σ_{i in j} ∂L/∂w_i (Han et
               al. 2016). Where assignments are renewed during training, the gradient also passes straight to the dense
               weights, and each weight is assigned to the entry that is nearest by then.
powers of two  Incremental freezing (INQ, Zhou et al. 2017): the larger half of the weights is fixed at its levels, the
               others are trained on as floats and compensate; then half of those; in the end all.
binary         w̃ = α sign(w), α = mean |w| of the output channel, which has the least squared error (XNOR-Net,
               Rastegari et al. 2016, arXiv 1603.05279). sign has no gradient; it is passed straight through where
               |w| < GRADIENT_CLIP α (Bengio et al. 2013, arXiv 1308.3432): a larger weight will not change its sign
               soon and need not grow.

Scales and centres start from the given weights; all of it works without training as well. Weights that were pruned
before stay zero: powers of two freeze them at once, and shared weights keep an entry for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolchain.core.arrays import F64
from toolchain.core.errors import ConfigError
from toolchain.data.tensors import Array
from toolchain.storage.codebook import CodedWeight
from toolchain.training.techniques import codebook_levels

if TYPE_CHECKING:
    from torch import Tensor

GRADIENT_CLIP = 3.0
"""Gradients of binary weights stop above this many α; 1.7 % of normally distributed weights lie outside."""
FREEZE_SCHEDULE = ((0.0, 0.5), (0.25, 0.75), (0.5, 0.875), (0.75, 1.0))
"""Powers of two: (fraction of the training, share of the weights that is frozen from then on)."""


@dataclass(frozen=True)
class TensorToCode:
    """A weight to code.

    Attributes:
        array: the weight, float32.
        axis: axis of its output channels.
        importance: factors of the squared errors, in the shape of the weight; None: all equal.
    """

    array: Array
    axis: int
    importance: F64 | None

    def rows(self, group: int | None = 1) -> F64:
        """Return the weight as float64 [channels / group, weights of a group]; None: all channels in one row."""
        rows: F64 = _rows(self.array, self.axis, group).astype(np.float64)
        return rows

    def shares(self, group: int | None = 1) -> F64 | None:
        """Return the importance in the layout of :meth:`rows`."""
        return None if self.importance is None else _rows(self.importance, self.axis, group)


class WeightCode(ABC):
    """The levels of one weight, and the level of each of its numbers."""

    moves: Tensor | None = None
    """A leaf tensor that is trained beside the weight."""

    @abstractmethod
    def decode(self, weight: Tensor) -> Tensor:
        """Replace the weight by its coded values, with gradients; changes nothing."""

    @abstractmethod
    def encode(self, weight: Tensor) -> CodedWeight:
        """Code the whole weight; the codes stand for the values that :meth:`decode` gives once all of it is coded."""

    @abstractmethod
    def advance(self, weight: Tensor, share: float) -> None:
        """Adapt to the progress of the training. share: the fraction that is over, 0 to 1."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return a copy of everything that :meth:`advance` has changed: tensors and numbers."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""


@dataclass(frozen=True)
class SharedWeights:
    """Weight sharing. See :mod:`toolchain.training.techniques.codebook_weights`.

    Attributes:
        bits: 1 to 8; there are 2^bits values.
        group: number of output channels that share a codebook, reduced to a divisor of the tensor's channels; None: one
            codebook for the whole tensor.
        start: first centres of k-means. linear keeps the few large weights apart, and is usually better (Han et al.
            2016).
        assign: number of times, evenly over the training, that weights are assigned to entries again; 0: never. At 2
            bits it more than halves the remaining loss. Few times are worse than many, because the weights move far
            between them.

    Raises:
        ConfigError: a number is out of its range.
    """

    bits: int = 4
    group: int | None = None
    start: codebook_levels.Start = "linear"
    assign: int = 100
    target_share: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _within("bits of shared weights", self.bits, 1, 8)
        _within("assign", self.assign, 0, 1000)
        if self.group is not None:
            _within("group", self.group, 1, 1 << 20)

    def weight_code(self, tensor: TensorToCode) -> WeightCode:
        """Make the code of one weight."""
        return _SharedCode(self, tensor)


@dataclass(frozen=True)
class PowerOfTwoWeights:
    """Powers of two, or sums of two of them, with a scale for each output channel; zero is a level.

    Attributes:
        bits: 2 to 6; up to 8 with two terms.
        terms: 1 or 2 powers in each level.

    Raises:
        ConfigError: a number is out of its range.
    """

    bits: int = 4
    terms: int = 1
    target_share: ClassVar[float] = FREEZE_SCHEDULE[-1][0]

    def __post_init__(self) -> None:
        _within("terms", self.terms, 1, 2)
        _within("bits of powers of two", self.bits, 2, 6 if self.terms == 1 else 8)

    def weight_code(self, tensor: TensorToCode) -> WeightCode:
        """Make the code of one weight."""
        return _PowerCode(self, tensor)


@dataclass(frozen=True)
class BinaryWeights:
    """Two values for each output channel, α and -α."""

    target_share: ClassVar[float] = 0.0

    def weight_code(self, tensor: TensorToCode) -> WeightCode:
        """Make the code of one weight."""
        return _BinaryCode(tensor)


CodebookKind = SharedWeights | PowerOfTwoWeights | BinaryWeights


class _SharedCode(WeightCode):
    """Entries are centre + unit · move, so that a step of the optimizer is relative to the size of the weights."""

    def __init__(self, kind: SharedWeights, tensor: TensorToCode) -> None:
        import torch

        self._bits, self._assign, self._axis = kind.bits, kind.assign, tensor.axis
        group = None if kind.group is None else _divisor(tensor.array.shape[tensor.axis], kind.group)
        rows, shares, count = tensor.rows(group), tensor.shares(group), 1 << kind.bits
        weights = [None] * len(rows) if shares is None else list(shares)
        zeros = rows == 0
        pruned = bool(zeros.mean() > 1 / count)  # more zeros than the fair share of one entry
        books = [_entries(row, share, count, kind.start, pruned) for row, share in zip(rows, weights, strict=True)]
        self._centres = torch.from_numpy(np.stack(books).astype(np.float32))
        self._zeros = torch.from_numpy(zeros) if pruned else torch.zeros(1, dtype=torch.bool)
        self._fixed = (self._centres == 0) & pruned
        self._unit = torch.from_numpy(np.sqrt((rows**2).mean(1, keepdims=True)).astype(np.float32))
        self.moves = torch.zeros_like(self._centres, requires_grad=True)
        self._assigned = 0
        self._codes = self._chosen(torch.from_numpy(tensor.array))

    def decode(self, weight: Tensor) -> Tensor:
        first = weight.movedim(self._axis, 0).shape
        values = self._book().gather(1, self._codes).reshape(first).movedim(0, self._axis)
        return values + (weight - weight.detach()) if self._assign else values

    def encode(self, weight: Tensor) -> CodedWeight:
        first = weight.movedim(self._axis, 0).shape
        codes = self._codes.reshape(first).movedim(0, self._axis).numpy().astype(np.uint8)
        return CodedWeight(codes, self._book().detach().numpy(), self._bits, self._axis)

    def advance(self, weight: Tensor, share: float) -> None:
        assigned = min(int(share * (self._assign + 1)), self._assign)
        if assigned > self._assigned:
            self._assigned, self._codes = assigned, self._chosen(weight)

    def state(self) -> dict[str, Any]:
        return {"assigned": self._assigned, "codes": self._codes.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._assigned, self._codes = state["assigned"], state["codes"].clone()

    def _book(self) -> Tensor:
        assert self.moves is not None
        return self._centres + self._unit * self.moves * ~self._fixed

    def _chosen(self, weight: Tensor) -> Tensor:
        """Return the index of the nearest entry, int64 [rows, weights]; training may have put entries out of order."""
        import torch

        book = self._book().detach()
        rows = weight.detach().movedim(self._axis, 0).reshape(len(book), -1).contiguous()
        ordered, order = book.sort(1)
        nearest = order.gather(1, torch.searchsorted((ordered[:, 1:] + ordered[:, :-1]) / 2, rows, right=True))
        return torch.where(self._zeros, self._fixed.int().argmax(1, keepdim=True), nearest)


class _PowerCode(WeightCode):
    def __init__(self, kind: PowerOfTwoWeights, tensor: TensorToCode) -> None:
        import torch

        levels = codebook_levels.power_levels(kind.bits, kind.terms)
        scale = codebook_levels.best_scales(tensor.rows(), levels, tensor.shares()).astype(np.float32)
        self._bits, self._axis = kind.bits, tensor.axis
        self._levels = torch.from_numpy(levels.astype(np.float32))
        self._scale = torch.from_numpy(scale)
        self._wide = self._scale.reshape(-1, *[1] * (tensor.array.ndim - 1)).movedim(0, tensor.axis)
        self._zeros = torch.from_numpy(tensor.array == 0)
        self._frozen = self._zeros.clone()
        self._codes = self._nearest(torch.from_numpy(tensor.array))

    def decode(self, weight: Tensor) -> Tensor:
        import torch

        return torch.where(self._frozen, self._levels[self._codes.long()] * self._wide, weight)

    def encode(self, weight: Tensor) -> CodedWeight:
        import torch

        codes = torch.where(self._frozen, self._codes, self._nearest(weight))
        return CodedWeight(codes.numpy(), self._levels.numpy()[None], self._bits, self._axis, self._scale.numpy())

    def advance(self, weight: Tensor, share: float) -> None:
        import torch

        part = max(part for since, part in FREEZE_SCHEDULE if share >= since)
        missing = round(part * int((~self._zeros).sum())) - int((self._frozen & ~self._zeros).sum())
        if missing <= 0:
            return
        size = torch.where(self._frozen, -1.0, weight.detach().abs() / self._wide)
        chosen = size.reshape(-1).argsort(descending=True, stable=True)[:missing]
        new = torch.zeros_like(self._frozen).reshape(-1)
        new[chosen] = True
        new = new.reshape(self._frozen.shape)
        self._codes = torch.where(new, self._nearest(weight), self._codes)
        self._frozen = self._frozen | new

    def state(self) -> dict[str, Any]:
        return {"frozen": self._frozen.clone(), "codes": self._codes.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._frozen, self._codes = state["frozen"].clone(), state["codes"].clone()

    def _nearest(self, weight: Tensor) -> Tensor:
        import torch

        middles = (self._levels[1:] + self._levels[:-1]) / 2
        return torch.searchsorted(middles, (weight.detach() / self._wide).contiguous(), right=True).to(torch.uint8)


class _BinaryCode(WeightCode):
    def __init__(self, tensor: TensorToCode) -> None:
        self._axis = tensor.axis

    def decode(self, weight: Tensor) -> Tensor:
        import torch

        held = weight.detach()
        alpha = self._alpha(held)
        hard = torch.where(held < 0, -alpha, alpha)
        passed = torch.where(held.abs() < GRADIENT_CLIP * alpha, weight, held)
        return hard + (passed - held)

    def encode(self, weight: Tensor) -> CodedWeight:
        alpha = self._alpha(weight.detach()).reshape(-1).numpy()
        codes = (weight.detach() >= 0).numpy().astype(np.uint8)
        return CodedWeight(codes, np.array([[-1, 1]], np.float32), 1, self._axis, alpha)

    def advance(self, weight: Tensor, share: float) -> None:
        """Do nothing: signs and α follow the weight."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""

    def _alpha(self, weight: Tensor) -> Tensor:
        """Compute α of every output channel, in a shape that broadcasts to the weight."""
        others = [axis for axis in range(weight.ndim) if axis != self._axis]
        return weight.abs().mean(others, keepdim=True)


def _entries(
    row: F64,
    share: F64 | None,
    count: int,
    start: codebook_levels.Start,
    pruned: bool,
) -> F64:
    """Find a sorted codebook. If `pruned`, zero is one of its entries, and the others are fitted to nonzero weights."""
    if not pruned:
        return codebook_levels.kmeans(row, codebook_levels.start_centres(row, count, start), share)
    left = row != 0
    if not left.any():
        return np.zeros(count)
    rest = row[left]
    centres = codebook_levels.kmeans(
        rest, codebook_levels.start_centres(rest, count - 1, start), None if share is None else share[left]
    )
    return np.sort(np.append(centres, 0.0))


def _rows(array: Array, axis: int, group: int | None) -> Any:
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(1 if group is None else len(moved) // group, -1)


def _divisor(channels: int, most: int) -> int:
    """Return the largest number up to `most` that divides the channels."""
    return next(n for n in range(min(most, channels), 0, -1) if channels % n == 0)


def _within(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise ConfigError(f"is {number}", where=name, hint=f"choose {least} to {most}")
