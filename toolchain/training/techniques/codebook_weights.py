"""One weight whose readers see few values while it learns: shared, powers of two, binary.

shared         w_i = c[j(i)]. An entry's gradient is the sum over its weights, ∂L/∂c_j = Σ_{i in j} ∂L/∂w_i (Han et al.
               2016). Where assignments are made anew now and then, the gradient also passes straight to the dense
               weights, and each goes to the entry it has come nearest to.
powers of two  Incremental freezing (INQ, Zhou et al. 2017): half of the weights, the largest, take their level for
               good, the others go on learning as floats and make up for it; then half of those; in the end all.
binary         w̃ = α sign(w), α = mean |w| of the output channel, which is the least squared error (XNOR-Net, Rastegari
               et al. 2016, arXiv 1603.05279). sign has no gradient; it passes straight through where |w| < CLIP α
               (Bengio et al. 2013, arXiv 1308.3432): what lies further out will not change its sign soon, and need not
               grow.

Scales and centres start from the weights that are given; all of it works without training as well. What has been pruned
before stays zero: powers of two freeze it at once, and shared weights keep an entry for it.
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
from toolchain.storage.codebook import Coded
from toolchain.training.techniques import codebook_levels

if TYPE_CHECKING:
    from torch import Tensor

CLIP = 3.0
"""Of α; of normally distributed weights 1.7 % lie outside."""
STEPS = ((0.0, 0.5), (0.25, 0.75), (0.5, 0.875), (0.75, 1.0))
"""Of powers of two: from which share of the training on which part of the weights is frozen."""


@dataclass(frozen=True)
class CodedTensor:
    """What is coded. array: float32, the weight. axis: of its output channels. importance: of its shape, or None."""

    array: Array
    axis: int
    importance: F64 | None

    def rows(self, group: int | None = 1) -> F64:
        """float64 [channels / group, weights of so many]; None: all channels in one row."""
        found: F64 = _rows(self.array, self.axis, group).astype(np.float64)
        return found

    def shares(self, group: int | None = 1) -> F64 | None:
        """The importance in such rows."""
        return None if self.importance is None else _rows(self.importance, self.axis, group)


class WeightCode(ABC):
    """The alphabet of one weight, and what is chosen from it."""

    moved: Tensor | None = None
    """What is trained beside the weight."""

    @abstractmethod
    def read(self, weight: Tensor) -> Tensor:
        """What readers get; changes nothing."""

    @abstractmethod
    def coded(self, weight: Tensor) -> Coded:
        """`weight` with the values that readers get once all of it is coded."""

    @abstractmethod
    def advance(self, weight: Tensor, share: float) -> None:
        """The training has come so far."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What :meth:`advance` has changed, copied."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""


@dataclass(frozen=True)
class SharedWeights:
    """Weight sharing. See :mod:`toolchain.training.techniques.codebook_weights`.

    Attributes:
        bits: 1 to 8; 2^bits values.
        group: output channels that have a codebook in common (as many as divide the tensor's); None: the whole tensor.
        start: of k-means. linear keeps the few large weights apart, and is mostly the better (Han et al. 2016).
        assign: how often, evenly over the training, weights choose their entry anew; 0: never. At 2 bits it more than
            halves what is left of the loss. Seldom is worse than often, for weights then have come far unseen.

    Raises:
        ConfigError: a number out of its range.
    """

    bits: int = 4
    group: int | None = None
    start: codebook_levels.Start = "linear"
    assign: int = 100
    settled: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _within("bits of shared weights", self.bits, 1, 8)
        _within("assign", self.assign, 0, 1000)
        if self.group is not None:
            _within("group", self.group, 1, 1 << 20)

    def letter(self, place: CodedTensor) -> WeightCode:
        """For one weight."""
        return _SharedCode(self, place)


@dataclass(frozen=True)
class PowerOfTwoWeights:
    """Powers of two, or sums of two of them, with a scale for each output channel; zero is a level.

    Raises:
        ConfigError: bits not 2 to 6, or to 8 with two terms, which are 1 or 2.
    """

    bits: int = 4
    terms: int = 1
    settled: ClassVar[float] = STEPS[-1][0]

    def __post_init__(self) -> None:
        _within("terms", self.terms, 1, 2)
        _within("bits of powers of two", self.bits, 2, 6 if self.terms == 1 else 8)

    def letter(self, place: CodedTensor) -> WeightCode:
        """For one weight."""
        return _PowerCode(self, place)


@dataclass(frozen=True)
class BinaryWeights:
    """Two values for each output channel, ±α."""

    settled: ClassVar[float] = 0.0

    def letter(self, place: CodedTensor) -> WeightCode:
        """For one weight."""
        return _BinaryCode(place)


CodebookKind = SharedWeights | PowerOfTwoWeights | BinaryWeights


class _SharedCode(WeightCode):
    """Entries move as centre + unit · move, so that a step of an optimizer is one of the codebook's own size."""

    def __init__(self, how: SharedWeights, place: CodedTensor) -> None:
        import torch

        self._bits, self._assign, self._axis = how.bits, how.assign, place.axis
        group = None if how.group is None else _divisor(place.array.shape[place.axis], how.group)
        rows, shares, count = place.rows(group), place.shares(group), 1 << how.bits
        weights = [None] * len(rows) if shares is None else list(shares)
        zeros = rows == 0
        pruned = bool(zeros.mean() > 1 / count)  # more of them than of an entry among equals
        books = [_entries(row, share, count, how.start, pruned) for row, share in zip(rows, weights, strict=True)]
        self._centres = torch.from_numpy(np.stack(books).astype(np.float32))
        self._zeros = torch.from_numpy(zeros) if pruned else torch.zeros(1, dtype=torch.bool)
        self._fixed = (self._centres == 0) & pruned
        self._unit = torch.from_numpy(np.sqrt((rows**2).mean(1, keepdims=True)).astype(np.float32))
        self.moved = torch.zeros_like(self._centres, requires_grad=True)
        self._turns = 0
        self._codes = self._chosen(torch.from_numpy(place.array))

    def read(self, weight: Tensor) -> Tensor:
        first = weight.movedim(self._axis, 0).shape
        found = self._book().gather(1, self._codes).reshape(first).movedim(0, self._axis)
        return found + (weight - weight.detach()) if self._assign else found

    def coded(self, weight: Tensor) -> Coded:
        first = weight.movedim(self._axis, 0).shape
        codes = self._codes.reshape(first).movedim(0, self._axis).numpy().astype(np.uint8)
        return Coded(codes, self._book().detach().numpy(), self._bits, self._axis)

    def advance(self, weight: Tensor, share: float) -> None:
        turns = min(int(share * (self._assign + 1)), self._assign)
        if turns > self._turns:
            self._turns, self._codes = turns, self._chosen(weight)

    def state(self) -> dict[str, Any]:
        return {"turns": self._turns, "codes": self._codes.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._turns, self._codes = state["turns"], state["codes"].clone()

    def _book(self) -> Tensor:
        assert self.moved is not None
        return self._centres + self._unit * self.moved * ~self._fixed

    def _chosen(self, weight: Tensor) -> Tensor:
        """Index of the nearest entry, int64 [rows, weights]; training may have put entries out of order."""
        import torch

        book = self._book().detach()
        rows = weight.detach().movedim(self._axis, 0).reshape(len(book), -1).contiguous()
        ordered, order = book.sort(1)
        found = order.gather(1, torch.searchsorted((ordered[:, 1:] + ordered[:, :-1]) / 2, rows, right=True))
        return torch.where(self._zeros, self._fixed.int().argmax(1, keepdim=True), found)


class _PowerCode(WeightCode):
    def __init__(self, how: PowerOfTwoWeights, place: CodedTensor) -> None:
        import torch

        found = codebook_levels.powers(how.bits, how.terms)
        scale = codebook_levels.best_scales(place.rows(), found, place.shares()).astype(np.float32)
        self._bits, self._axis = how.bits, place.axis
        self._levels = torch.from_numpy(found.astype(np.float32))
        self._scale = torch.from_numpy(scale)
        self._wide = self._scale.reshape(-1, *[1] * (place.array.ndim - 1)).movedim(0, place.axis)
        self._zeros = torch.from_numpy(place.array == 0)
        self._frozen = self._zeros.clone()
        self._codes = self._nearest(torch.from_numpy(place.array))

    def read(self, weight: Tensor) -> Tensor:
        import torch

        return torch.where(self._frozen, self._levels[self._codes.long()] * self._wide, weight)

    def coded(self, weight: Tensor) -> Coded:
        import torch

        codes = torch.where(self._frozen, self._codes, self._nearest(weight))
        return Coded(codes.numpy(), self._levels.numpy()[None], self._bits, self._axis, self._scale.numpy())

    def advance(self, weight: Tensor, share: float) -> None:
        import torch

        part = max(part for since, part in STEPS if share >= since)
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
    def __init__(self, place: CodedTensor) -> None:
        self._axis = place.axis

    def read(self, weight: Tensor) -> Tensor:
        import torch

        held = weight.detach()
        alpha = self._alpha(held)
        hard = torch.where(held < 0, -alpha, alpha)
        passed = torch.where(held.abs() < CLIP * alpha, weight, held)
        return hard + (passed - held)

    def coded(self, weight: Tensor) -> Coded:
        alpha = self._alpha(weight.detach()).reshape(-1).numpy()
        codes = (weight.detach() >= 0).numpy().astype(np.uint8)
        return Coded(codes, np.array([[-1, 1]], np.float32), 1, self._axis, alpha)

    def advance(self, weight: Tensor, share: float) -> None:
        """Nothing to do: signs and α follow the weight."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def _alpha(self, weight: Tensor) -> Tensor:
        """Of every output channel, to be multiplied with the weight."""
        others = [axis for axis in range(weight.ndim) if axis != self._axis]
        return weight.abs().mean(others, keepdim=True)


def _entries(
    row: F64,
    share: F64 | None,
    count: int,
    start: codebook_levels.Start,
    pruned: bool,
) -> F64:
    """A codebook, sorted. pruned: zero is one of its entries, and the others are for the rest."""
    if not pruned:
        return codebook_levels.kmeans(row, codebook_levels.start_centres(row, count, start), share)
    left = row != 0
    if not left.any():
        return np.zeros(count)
    rest = row[left]
    found = codebook_levels.kmeans(
        rest, codebook_levels.start_centres(rest, count - 1, start), None if share is None else share[left]
    )
    return np.sort(np.append(found, 0.0))


def _rows(array: Array, axis: int, group: int | None) -> Any:
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(1 if group is None else len(moved) // group, -1)


def _divisor(channels: int, most: int) -> int:
    """The largest number up to `most` that divides the channels."""
    return next(n for n in range(min(most, channels), 0, -1) if channels % n == 0)


def _within(name: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise ConfigError(f"is {number}", where=name, hint=f"choose {least} to {most}")
