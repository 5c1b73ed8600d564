"""Union-find: partition items into sets from pairs of items that belong together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def representatives(pairs: Iterable[tuple[T, T]]) -> Callable[[T], T]:
    """Return a function from an item to the representative of its set.

    Args:
        pairs: items that are in the same set. An item in no pair is alone in its set.
    """
    parents: dict[T, T] = {}

    def find(item: T) -> T:
        while (parent := parents.setdefault(item, item)) != item:
            item = parent
        return item

    for one, other in pairs:
        parents[find(one)] = find(other)
    return find
