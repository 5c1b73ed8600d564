"""Index spaces: the structure of tensor axes, and which axes must be cut together.

An axis of 64 channels is an index space of 64 positions. Operators relate spaces to each other: a residual sum makes
two spaces one, a concatenation puts two behind each other, a reshape reads a space as rows of columns. A space is

    leaf             not divided so far; a sorted set of its positions is kept
    product          (a, b, ...): row-major, the last varies fastest; heads x width, groups x channels of one group
    concatenation    (a, b, ...): one behind the other; the parts of a Concat

`unify` makes two spaces equal: leaves are divided until both have the same form, and equal leaves are joined
(union-find: Tarjan, J. ACM 22(2), 1975). A leaf that cannot take a common form, or that an operator needs whole, is
*pinned*, with the reason. After all operators the leaves are the groups: when a leaf is cut, every axis that contains
it is cut at the positions that `kept_positions` gives.

Two products a1 x a2 x ... and b1 x b2 x ... of the same positions have a common refinement if and only if the running
products a1, a1 a2, ... and b1, b1 b2, ..., merged and sorted, each divide the next one; the quotients are the factors
of the refinement. `common_refinement` computes it from the left as far as it exists, which is as long as every running
product divides the next one of either side:

    4 x 6     and 2 x 12    2, 4, 24      2 x 2 x 6
    2 x 3 x 2 and 4 x 3     2, 4, 6, 12   2, then no common form, since 4 does not divide 6

Two concatenations always have one: both are split wherever either has a boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import numpy as np

from toolchain.core.arrays import Index

MIXED = "a reshape mixes its positions with others"
RUN_TIME_AXIS = "the size of its axis is only known when the model runs"
MEETS_RUN_TIME_AXIS = "it meets an axis whose size is only known when the model runs"


class Space:
    """An index space.

    Attributes:
        size: number of positions; None for an axis whose size is only known when the model runs, which is never cut.
    """

    def __init__(self, size: int | None, *pins: str) -> None:
        self.size = size
        self._pins = dict.fromkeys(pins)
        self._same: Space | None = None
        self._parts: tuple[Space, ...] = ()
        self._is_concatenation = False

    def __repr__(self) -> str:
        space = self.root
        if not space._parts:
            return f"{space.size}"
        return "(" + (" + " if space._is_concatenation else " x ").join(map(repr, space._parts)) + ")"

    @property
    def root(self) -> Space:
        """The space that this one was unified with, or itself."""
        space = self
        while space._same is not None:
            space = space._same
        if space is not self:
            self._same = space
        return space

    @property
    def pins(self) -> tuple[str, ...]:
        """Reasons why a leaf may not be cut; empty if it may."""
        return tuple(self.root._pins)

    def pin(self, reason: str) -> None:
        """Forbid cutting any part of the space."""
        for leaf in leaves(self):
            leaf._pins[reason] = None


def product(*spaces: Space) -> Space:
    """Row-major product. Factors of size 1 are left out, since they move nothing."""
    return _composed([space for space in spaces if space.root.size != 1], is_concatenation=False)


def concatenation(*spaces: Space) -> Space:
    """The spaces one behind the other; empty ones are left out."""
    return _composed([space for space in spaces if space.root.size != 0], is_concatenation=True)


def _composed(spaces: Sequence[Space], is_concatenation: bool) -> Space:
    if len(spaces) == 1:
        return spaces[0].root
    sizes = [space.root.size for space in spaces]
    if any(size is None for size in sizes):
        for space in spaces:
            space.pin(RUN_TIME_AXIS)
        return Space(None)
    whole = Space((sum if is_concatenation else prod)(size for size in sizes if size is not None))
    whole._parts, whole._is_concatenation = tuple(space.root for space in spaces), is_concatenation
    return whole


def leaves(space: Space) -> Iterator[Space]:
    """The leaves of a space, in order; a leaf may come more than once."""
    space = space.root
    if not space._parts:
        yield space
    for part in space._parts:
        yield from leaves(part)


def kept_positions(space: Space, keep: Mapping[Space, Index]) -> Index:
    """Return the sorted positions of `space` that are left when each leaf keeps its positions in `keep`.

    Leaves without an entry stay whole.
    """
    space = space.root
    if not space._parts:
        return keep[space] if space in keep else np.arange(space.size or 0)
    kept = [kept_positions(part, keep) for part in space._parts]
    sizes = [_size(part) for part in space._parts]
    if space._is_concatenation:
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([start + part for start, part in zip(starts, kept, strict=True)])
    result = np.zeros(1, np.intp)
    for size, part in zip(sizes, kept, strict=True):
        result = (result[:, None] * size + part[None, :]).reshape(-1)
    return result


def leaf_positions(space: Space, leaf: Space) -> Index:
    """Return for every position of `space` the position of `leaf` that it depends on, -1 where there is none.

    If a product contains the leaf twice, the first factor counts.
    """
    space = space.root
    if space is leaf.root:
        return np.arange(space.size or 0)
    if not space._parts:
        return np.full(space.size or 0, -1)
    of_parts = [leaf_positions(part, leaf) for part in space._parts]
    if space._is_concatenation:
        return np.concatenate(of_parts)
    grid = np.full([len(part) for part in of_parts], -1)
    for axis, part in enumerate(of_parts):
        line = part.reshape([-1 if a == axis else 1 for a in range(grid.ndim)])
        grid = np.where(grid < 0, line, grid)
    return grid.reshape(-1)


def _size(space: Space) -> int:
    return space.root.size or 0


# ------------------------------------------------------------------------------------------------ unifying


def unify(a: Space, b: Space) -> None:
    """Make two spaces one. Parts without a common form are pinned.

    A size that is only known at run time says nothing about the other space, whose leaves are then pinned.

    Raises:
        ValueError: two known sizes differ.
    """
    a, b = a.root, b.root
    if a is b:
        return
    if a.size is None or b.size is None:
        for space in (a, b):
            if space.size is not None:
                space.pin(MEETS_RUN_TIME_AXIS)
        return
    if a.size != b.size:
        raise ValueError(f"an axis of {a.size} cannot be one of {b.size}")
    if not a._parts:
        _join(a, b)
    elif not b._parts:
        _join(b, a)
    elif a._is_concatenation or b._is_concatenation:
        _unify_concatenations(a, b)
    else:
        unify_products([a], [b])


def _join(leaf: Space, other: Space) -> None:
    leaf._same = other
    for reason in leaf._pins:
        other.pin(reason)


def _divide(leaf: Space, sizes: Sequence[int], is_concatenation: bool) -> None:
    leaf._parts, leaf._is_concatenation = tuple(Space(size, *leaf._pins) for size in sizes), is_concatenation


# ------------------------------------------------------------------------------------------------ products


@dataclass(frozen=True)
class Factor:
    """A factor of a product, or a piece of one.

    Attributes:
        number: index of the factor in the product.
        size: number of positions; None if it is only known at run time.
        divisible: it may become a product of smaller factors. A leaf may, a concatenation may not.
    """

    number: int
    size: int | None
    divisible: bool = True


Factors = Sequence[Factor]


@dataclass(frozen=True)
class Refinement:
    """The common refinement of two products.

    Attributes:
        matches: consecutive pieces (of the left, of the right) that hold the same positions; one side has one piece.
        rest: the pieces behind them on each side, which have no common form.
    """

    matches: tuple[tuple[Factors, Factors], ...]
    rest: tuple[Factors, Factors]

    def pieces(self, side: int) -> list[Factor]:
        """All pieces of the left (0) or of the right (1) product, in order."""
        return [piece for part in (*self.matches, self.rest) for piece in part[side]]


def common_refinement(left: Factors, right: Factors) -> Refinement:
    """The common refinement of two row-major products of the same positions, from the left as far as it exists.

    A factor that is larger than the one it meets is divided by it; one that cannot be divided is matched with several.
    """
    matches = []
    while match := _first_match(left, right):
        (here, left), (there, right) = match
        matches.append((here, there))
    return Refinement(tuple(matches), (left, right))


def _first_match(left: Factors, right: Factors) -> tuple[tuple[Factors, Factors], tuple[Factors, Factors]] | None:
    """For each side, the pieces that hold the same positions and those behind them; None if there is no match."""
    if not left or not right or not left[0].size or not right[0].size:
        return None
    large, small = left[0].size, right[0].size
    if large < small:
        swapped = _first_match(right, left)
        return None if swapped is None else (swapped[1], swapped[0])
    if large % small:
        return None
    if large == small:
        return (left[:1], left[1:]), (right[:1], right[1:])
    if left[0].divisible:
        first, second = (replace(left[0], size=size) for size in (small, large // small))
        return ([first], [second, *left[1:]]), (right[:1], right[1:])
    running = list(accumulate((factor.size or 0 for factor in right), mul))
    count = running.index(large) + 1 if large in running else 0
    return ((left[:1], left[1:]), (right[:count], right[count:])) if count else None


def unify_products(left: Sequence[Space], right: Sequence[Space]) -> list[Space]:
    """Unify two row-major products of the same positions; returns the rest, which has no common form and is pinned."""
    sides = _factors(left), _factors(right)
    refinement = common_refinement(
        *([Factor(number, space.size, not space._parts) for number, space in enumerate(side)] for side in sides)
    )
    xs, ys = (_divided(spaces, refinement.pieces(side)) for side, spaces in enumerate(sides))
    for here, there in refinement.matches:
        unify(product(*xs[: len(here)]), product(*ys[: len(there)]))
        xs, ys = xs[len(here) :], ys[len(there) :]
    rest = [*xs, *ys]
    for space in rest:
        space.pin(MIXED)
    return rest


def _factors(spaces: Sequence[Space]) -> list[Space]:
    """Leaves and concatenations of which a product is made; factors of size 1 are left out."""
    factors: list[Space] = []
    for space in (space.root for space in spaces):
        is_product = space._parts and not space._is_concatenation
        factors += _factors(space._parts) if is_product else [space] if space.size != 1 else []
    return factors


def _divided(spaces: Sequence[Space], pieces: Factors) -> list[Space]:
    """One space for each piece; a factor of several pieces is made the product of them."""
    result: list[Space] = []
    for number, space in enumerate(spaces):
        own = [piece for piece in pieces if piece.number == number]
        if len(own) == 1:
            result.append(space)
            continue
        parts = [Space(piece.size) for piece in own]
        unify(space, product(*parts))
        result += parts
    return result


# ------------------------------------------------------------------------------------------ concatenations


def _unify_concatenations(a: Space, b: Space) -> None:
    """Two spaces of the same size, at least one of them a concatenation: split wherever either has a boundary."""
    boundaries = sorted({0, *_boundaries(a), *_boundaries(b)})
    sizes = [end - start for start, end in pairwise(boundaries)]
    for x, y in zip(split(a, sizes), split(b, sizes), strict=True):
        unify(x, y)


def _boundaries(space: Space) -> list[int]:
    parts = space._parts if space._is_concatenation else (space,)
    return list(accumulate(map(_size, parts)))


def split(space: Space, sizes: Sequence[int]) -> list[Space]:
    """Consecutive parts of these sizes, which must add up to the size of the space."""
    parts: list[Space] = []
    for size in sizes[:-1]:
        if size == 0:
            parts.append(Space(0))
        elif size == space.root.size:
            parts.append(space)
            space = Space(0)
        else:
            head, space = split_in_two(space, size)
            parts.append(head)
    return [*parts, space]


def split_in_two(space: Space, size: int) -> tuple[Space, Space]:
    """The first `size` positions (at least one, and not all), and the others.

    Raises:
        ValueError: nothing would be left on one side.
    """
    space = space.root
    if space.size is None or not 0 < size < space.size:
        raise ValueError(f"an axis of {space.size} cannot be split after {size}")
    if not space._parts:
        _divide(space, (size, space.size - size), is_concatenation=True)
    return (_split_concatenation if space._is_concatenation else _split_product)(space, size)


def _split_concatenation(space: Space, size: int) -> tuple[Space, Space]:
    head: list[Space] = []
    tail: list[Space] = []
    for part in space._parts:
        missing = size - sum(map(_size, head))
        if missing == 0:
            tail.append(part)
        elif _size(part) <= missing:
            head.append(part)
        else:
            first, second = split_in_two(part, missing)
            head.append(first)
            tail.append(second)
    return concatenation(*head), concatenation(*tail)


def _split_product(space: Space, size: int) -> tuple[Space, Space]:
    """Split rows x row after whole rows, or after some whole rows and a part of the next one."""
    rows, row = space._parts[0], product(*space._parts[1:])
    whole, part = divmod(size, _size(row))
    if part == 0:
        above, below = split_in_two(rows, whole)
        return product(above, row), product(below, row)
    above, rest = split_in_two(space, size - part) if whole else (Space(0), space)
    partial, below = (row, Space(0)) if _size(rest) == _size(row) else split_in_two(rest, _size(row))
    head, tail = split_in_two(partial, part)
    return concatenation(above, head), concatenation(tail, below)
