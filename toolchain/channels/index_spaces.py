"""Index spaces: what the axes of tensors are made of, and which of them must be cut together.

An axis of 64 channels is an index space of 64 places. Operators tie spaces together and take them apart: a residual sum
makes two spaces one; a concatenation joins two behind each other; a reshape sees a space as rows of columns. So a space
is one of

    leaf       indivisible so far; what is kept of it is a sorted set of its places
    product    (a, b, ...): row-major, the last varies fastest: heads x width, groups x channels of one
    sum        (a, b, ...): behind each other: the parts of a concatenation

`unify` makes two spaces the same one: both are refined to a common form, and their leaves are then joined (union-find).
A leaf that cannot be brought to such a form, or that somebody reads whole, is *pinned*, with the reason.

After all operators have had their say, the leaves that are left are the groups: cut one, and every axis of which it is
a part is cut at the places that `places` gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from toolchain.core.arrays import Index

"""Sorted indices into a space."""

MIXED = "a reshape mixes its places with others"


class Space:
    """An index space. size: None for an axis whose size is only known when the model runs; such a one is never cut."""

    def __init__(self, size: int | None, *pins: str) -> None:
        self.size = size
        self._pins = dict.fromkeys(pins)
        self._same: Space | None = None
        self._parts: tuple[Space, ...] = ()
        self._is_sum = False

    def __repr__(self) -> str:
        space = self.root
        if not space._parts:
            return f"{space.size}"
        return "(" + (" + " if space._is_sum else " x ").join(map(repr, space._parts)) + ")"

    @property
    def root(self) -> Space:
        """The space that this one has become."""
        space = self
        while space._same is not None:
            space = space._same
        if space is not self:
            self._same = space
        return space

    @property
    def pins(self) -> tuple[str, ...]:
        """Why a leaf may not be cut; empty where it may."""
        return tuple(self.root._pins)

    def pin(self, reason: str) -> None:
        """Forbid that anything of it is cut."""
        for leaf in leaves(self):
            leaf._pins[reason] = None


def product(*spaces: Space) -> Space:
    """Row-major product. Factors of size 1 are left out, since they move nothing."""
    return _composed([space for space in spaces if space.root.size != 1], is_sum=False)


def total(*spaces: Space) -> Space:
    """The spaces behind each other."""
    return _composed([space for space in spaces if space.root.size != 0], is_sum=True)


def _composed(spaces: Sequence[Space], is_sum: bool) -> Space:
    if len(spaces) == 1:
        return spaces[0].root
    sizes = [space.root.size for space in spaces]
    if any(size is None for size in sizes):
        for space in spaces:
            space.pin("the size of its axis is only known when the model runs")
        return Space(None)
    whole = Space((sum if is_sum else prod)(size for size in sizes if size is not None))
    whole._parts, whole._is_sum = tuple(space.root for space in spaces), is_sum
    return whole


def leaves(space: Space) -> Iterator[Space]:
    """Its leaves, in order; one may come more than once."""
    space = space.root
    if not space._parts:
        yield space
    for part in space._parts:
        yield from leaves(part)


def places(space: Space, keep: Mapping[Space, Index]) -> Index:
    """Which places of `space` are left, given what is kept of its leaves (all of those not named)."""
    space = space.root
    if not space._parts:
        return keep[space] if space in keep else np.arange(space.size or 0)
    found = [places(part, keep) for part in space._parts]
    sizes = [part.root.size or 0 for part in space._parts]
    if space._is_sum:
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate([start + part for start, part in zip(starts, found, strict=True)])
    result = np.zeros(1, np.intp)
    for size, part in zip(sizes, found, strict=True):
        result = (result[:, None] * size + part[None, :]).reshape(-1)
    return result


def owners(space: Space, leaf: Space) -> Index:
    """For every place of `space`, the place of `leaf` that it stands or falls with, or -1 where there is none.

    A leaf that enters twice, as a factor of both sides, counts with the first.
    """
    space = space.root
    if space is leaf.root:
        return np.arange(space.size or 0)
    if not space._parts:
        return np.full(space.size or 0, -1)
    found = [owners(part, leaf) for part in space._parts]
    if space._is_sum:
        return np.concatenate(found)
    grid = np.full([len(part) for part in found], -1)
    for axis, part in enumerate(found):
        line = part.reshape([-1 if a == axis else 1 for a in range(grid.ndim)])
        grid = np.where(grid < 0, line, grid)
    return grid.reshape(-1)


# ------------------------------------------------------------------------------------------------ unifying


def unify(a: Space, b: Space) -> None:
    """Make two spaces one. Where their forms do not fit together, what does not is pinned.

    A size that is only known at run time says nothing about the other, whose leaves are then pinned.

    Raises:
        ValueError: two known sizes differ.
    """
    a, b = a.root, b.root
    if a is b:
        return
    if a.size is None or b.size is None:
        for space in (a, b):
            if space.size is not None:
                space.pin("it meets an axis whose size is only known when the model runs")
        return
    if a.size != b.size:
        raise ValueError(f"an axis of {a.size} cannot be one of {b.size}")
    if not a._parts:
        _become(a, b)
    elif not b._parts:
        _become(b, a)
    elif a._is_sum or b._is_sum:
        _align_sums([a], [b])
    else:
        align([a], [b])


def _become(leaf: Space, other: Space) -> None:
    leaf._same = other
    for reason in leaf._pins:
        other.pin(reason)


def _divide(leaf: Space, sizes: tuple[int, int], is_sum: bool) -> None:
    """A leaf turns out to be a product or a sum of two."""
    leaf._parts, leaf._is_sum = tuple(Space(size, *leaf._pins) for size in sizes), is_sum


def align(left: Sequence[Space], right: Sequence[Space]) -> tuple[list[Space], list[Space]]:
    """Two row-major products of the same places: unify factor by factor from the left, dividing where one is larger.

    Returns what is left of both where they do not fit; it is pinned. Both empty: all was unified.
    """
    xs, ys = deque(left), deque(right)
    while xs and ys:
        x, y = _factors(xs), _factors(ys)
        if x is None or y is None:
            continue
        if x.size is None or y.size is None:
            break
        if x.size == y.size:
            unify(xs.popleft(), ys.popleft())
        elif not (_fits(xs, ys) or _fits(ys, xs)):
            break
    rest = [s for s in xs if s.root.size != 1], [s for s in ys if s.root.size != 1]
    for space in (*rest[0], *rest[1]):
        space.pin(MIXED)
    return rest


def _factors(spaces: deque[Space]) -> Space | None:
    """The first space, or None after taking it apart: into its factors, or away where it is of size 1."""
    space = spaces[0].root
    if space.size == 1:
        spaces.popleft()
    elif space._parts and not space._is_sum:
        spaces.popleft()
        spaces.extendleft(reversed(space._parts))
    else:
        return space
    return None


def _fits(larges: deque[Space], smalls: deque[Space]) -> bool:
    """Whether the larger of two first factors was brought nearer to the smaller: divided, or met by several of them."""
    large, small = larges[0].root, smalls[0].root
    if large.size is None or small.size is None or large.size % small.size:
        return False
    if not large._parts:
        _divide(large, (small.size, large.size // small.size), is_sum=False)
        return True
    # A sum cannot be divided; but several factors together may be as large.
    for count in range(2, len(smalls) + 1):
        taken = [smalls[i] for i in range(count)]
        if prod(space.root.size or 0 for space in taken) == large.size:
            _align_sums([large], [product(*taken)])
            larges.popleft()
            for _ in taken:
                smalls.popleft()
            return True
    return False


def _align_sums(left: Sequence[Space], right: Sequence[Space]) -> None:
    """Two sums of the same places: unify part by part, cutting where one is longer."""
    xs, ys = deque(left), deque(right)
    while xs and ys:
        x, y = _terms(xs), _terms(ys)
        if x is None or y is None or x.size is None or y.size is None:
            continue
        if x.size == y.size:
            unify(xs.popleft(), ys.popleft())
        elif x.size > y.size:
            _cut_first(xs, y.size)
        else:
            _cut_first(ys, x.size)


def _terms(spaces: deque[Space]) -> Space | None:
    """The first space, or None after taking it apart into its terms."""
    space = spaces[0].root
    if not space._is_sum:
        return space
    spaces.popleft()
    spaces.extendleft(reversed(space._parts))
    return None


def _cut_first(spaces: deque[Space], size: int) -> None:
    spaces.extendleft(reversed(cut(spaces.popleft(), size)))


def cut(space: Space, size: int) -> tuple[Space, Space]:
    """Two spaces: the first `size` places (at least one, and not all), and the others."""
    space = space.root
    if space.size is None or not 0 < size < space.size:
        raise ValueError(f"{size} places cannot be cut from {space.size}")
    if not space._parts:
        _divide(space, (size, space.size - size), is_sum=True)
    if space._is_sum:
        first: list[Space] = []
        rest = deque(space._parts)
        while (missing := size - sum(part.root.size or 0 for part in first)) > 0:
            if (rest[0].root.size or 0) > missing:
                _cut_first(rest, missing)
            first.append(rest.popleft())
        return total(*first), total(*rest)
    # A product: whole rows first, then a part of a row.
    rows, row = space._parts[0], product(*space._parts[1:])
    whole, part = divmod(size, row.root.size or 1)
    if part == 0:
        above, below = cut(rows, whole)
        return product(above, row), product(below, row)
    start, behind = (cut(space, size - part)) if whole else (Space(0), space)
    if (behind.root.size or 0) == (row.root.size or 0):
        torn, others = row, Space(0)
    else:
        torn, others = cut(behind, row.root.size or 0)
    head, tail = cut(torn, part)
    return total(start, head), total(tail, others)


def carve(space: Space, sizes: Sequence[int]) -> list[Space]:
    """Consecutive parts of these sizes, which sum to the whole."""
    parts: list[Space] = []
    for size in sizes[:-1]:
        if size == 0:
            parts.append(Space(0))
        elif size == space.root.size:
            parts.append(space)
            space = Space(0)
        else:
            head, space = cut(space, size)
            parts.append(head)
    return [*parts, space]
