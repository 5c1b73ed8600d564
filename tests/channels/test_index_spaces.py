"""Index spaces against explicit sets of indices: unified spaces keep the same positions."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.channels.index_spaces import (
    Factor,
    Space,
    common_refinement,
    concatenation,
    kept_positions,
    leaf_positions,
    leaves,
    product,
    split,
    split_in_two,
    unify,
    unify_products,
)


def needs(space):
    """For every position, the positions of leaves that it needs: {(leaf, position), ...}."""
    space = space.root
    if not space._parts:
        return [{(space, i)} for i in range(space.size)]
    parts = [needs(part) for part in space._parts]
    if space._is_concatenation:
        return [needed for part in parts for needed in part]
    result = [set()]
    for part in parts:
        result = [before | needed for before in result for needed in part]
    return result


def kept(space, keep):
    return [
        i for i, needed in enumerate(needs(space))
        if all(leaf not in keep or place in keep[leaf] for leaf, place in needed)
    ]  # fmt: skip


@st.composite
def spaces(draw, size, depth=3, pool=None):
    """A space of this size: a leaf, a product or a concatenation; leaves may occur more than once."""
    pool = {} if pool is None else pool
    factors = [d for d in range(2, size) if size % d == 0]
    kinds = ["leaf", *(["product"] if factors else []), *(["sum"] if size > 1 else [])]
    kind = draw(st.sampled_from(kinds)) if depth else "leaf"
    if kind == "leaf":
        if pool.get(size) and draw(st.booleans()):
            return draw(st.sampled_from(pool[size]))
        pool.setdefault(size, []).append(Space(size))
        return pool[size][-1]
    first = draw(st.sampled_from(factors) if kind == "product" else st.integers(1, size - 1))
    sizes = (first, size // first) if kind == "product" else (first, size - first)
    return {"product": product, "sum": concatenation}[kind](*(draw(spaces(n, depth - 1, pool)) for n in sizes))


@st.composite
def keeps(draw, *of):
    """A keep-set of every leaf that may be cut."""
    found = dict.fromkeys(leaf for space in of for leaf in leaves(space) if not leaf.pins)
    return {
        leaf: np.array(sorted(draw(st.sets(st.integers(0, leaf.size - 1), min_size=1)))) for leaf in found if leaf.size
    }


def agree(data, *of):
    keep = data.draw(keeps(*of))
    first = kept(of[0], keep)
    for space in of:
        assert list(kept_positions(space, keep)) == kept(space, keep) == first


SIZES = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 18, 24, 30])


@given(st.data())
def test_kept_positions_are_those_whose_leaves_are_all_kept(data):
    agree(data, data.draw(spaces(data.draw(SIZES))))


@settings(max_examples=400)
@given(st.data())
def test_unified_spaces_keep_the_same_places(data):
    size = data.draw(SIZES)
    pool = {}
    a, b, c = (data.draw(spaces(size, pool=pool)) for _ in range(3))
    unify(a, b)
    agree(data, a, b)
    unify(b, c)  # spaces that were unified before stay so
    agree(data, a, b, c)


@settings(max_examples=300)
@given(st.data())
def test_a_space_that_contains_a_unified_one_is_cut_with_it(data):
    size = data.draw(SIZES)
    a, b = data.draw(spaces(size)), data.draw(spaces(size))
    around = product(Space(3), a), concatenation(b, Space(2))
    unify(a, b)
    keep = data.draw(keeps(*around))
    for space in around:
        assert list(kept_positions(space, keep)) == kept(space, keep)


@settings(max_examples=400)
@given(st.data())
def test_aligned_products_keep_the_same_places(data):
    size = data.draw(SIZES)

    def factors(rest):
        divisor = data.draw(st.sampled_from([d for d in range(1 + (rest > 1), rest + 1) if rest % d == 0]))
        return [rest] if divisor == rest else [divisor, *factors(rest // divisor)]

    sides = [[data.draw(spaces(n, 2)) for n in factors(size)] for _ in range(2)]
    unify_products(*sides)
    agree(data, product(*sides[0]), product(*sides[1]))


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4), st.data())
def test_refinements_of_one_factorization_are_free(sizes, data):
    """Factors that were joined in two ways: nothing is pinned if one side only joins neighbours."""
    joined, rest = [], list(sizes)
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        joined.append(prod(rest[:count]))
        rest = rest[count:]
    fine, coarse = [Space(n) for n in sizes], [Space(n) for n in joined]
    assert unify_products(coarse, fine) == []
    assert not any(leaf.pins for space in (*fine, *coarse) for leaf in leaves(space))
    assert list(leaves(product(*coarse))) == [space.root for space in fine]


@settings(max_examples=300)
@given(st.data())
def test_a_split_space_equals_the_concatenation_of_its_parts(data):
    size = data.draw(SIZES)
    space = data.draw(spaces(size))
    marks = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    parts = split(space, [int(n) for n in np.diff([0, *marks, size])])
    assert [part.root.size for part in parts] == list(np.diff([0, *marks, size]))
    agree(data, space, concatenation(*parts))


@given(st.data())
def test_the_leaf_position_of_a_position_is_one_that_it_needs(data):
    space = data.draw(spaces(data.draw(SIZES)))
    for leaf in set(leaves(space)):
        for owner, needed in zip(leaf_positions(space, leaf), needs(space), strict=True):
            assert (owner < 0) == all(of is not leaf for of, _ in needed)
            assert owner < 0 or (leaf, owner) in needed


# ------------------------------------------------------------------------------------ common refinements


def refined(left, right, concatenations=()):
    """Sizes of the matches and of the rest; `concatenations`: (side, number) of factors that may not be divided."""
    sides = [
        [Factor(number, size, (side, number) not in concatenations) for number, size in enumerate(sizes)]
        for side, sizes in enumerate((left, right))
    ]
    found = common_refinement(*sides)
    for side, factors in enumerate(sides):
        for factor in factors:
            assert prod(piece.size for piece in found.pieces(side) if piece.number == factor.number) == factor.size
    sizes = [tuple([piece.size for piece in part] for part in pair) for pair in (*found.matches, found.rest)]
    return sizes[:-1], sizes[-1]


@pytest.mark.parametrize(
    ("left", "right", "concatenations", "matches", "rest"),
    [
        ([6], [6], (), [([6], [6])], ([], [])),
        ([4, 6], [2, 12], (), [([2], [2]), ([2], [2]), ([6], [6])], ([], [])),
        ([6, 4], [4, 6], (), [], ([6, 4], [4, 6])),
        ([2, 3, 2], [4, 3], (), [([2], [2])], ([3, 2], [2, 3])),
        ([2, 2, 5], [5, 4], (), [], ([2, 2, 5], [5, 4])),
        ([4, 2], [2, 2, 2], {(0, 0)}, [([4], [2, 2]), ([2], [2])], ([], [])),
        ([4, 3], [12], {(0, 0)}, [([4], [4]), ([3], [3])], ([], [])),
        ([4, 3], [2, 6], {(0, 0)}, [], ([4, 3], [2, 6])),
        ([4, 3], [12], {(1, 0)}, [([4, 3], [12])], ([], [])),
    ],
)
def test_common_refinements_worked_out_by_hand(left, right, concatenations, matches, rest):
    assert refined(left, right, concatenations) == (matches, rest)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), st.lists(st.integers(2, 12), min_size=1, max_size=4))
def test_a_refinement_ends_where_running_products_do_not_divide_each_other(left, right):
    """The condition in the module's docstring, computed as it stands there."""
    left, right = [*left, prod(right)], [*right, prod(left)]
    running = [[prod(side[: n + 1]) for n in range(len(side))] for side in (left, right)]
    boundaries = []
    for boundary in sorted({*running[0], *running[1]}):
        if any(next(n for n in side if n >= boundary) % boundary for side in running):
            break
        boundaries.append(boundary)
    matches, rest = refined(left, right)
    assert [prod(here[0] for here, _ in matches[: n + 1]) for n in range(len(matches))] == boundaries
    assert (rest == ([], [])) == (boundaries[-1:] == [prod(left)])


# ------------------------------------------------------------------------------------------- by hand


def test_heads_and_widths():
    """64 = 4 heads of 16: both are then free, and 2 heads of 3 columns are 6 places."""
    axis, heads, width = Space(64), Space(4), Space(16)
    unify(axis, product(heads, width))
    assert repr(axis) == "(4 x 16)"
    keep = {heads: np.array([1, 3]), width: np.array([0, 5, 6])}
    assert list(kept_positions(axis, keep)) == [16, 21, 22, 48, 53, 54]


def test_a_channel_shuffle_joins_both_halves():
    """(2 x c) is transposed to (c x 2) and split in two halves again."""
    halves, each = Space(2), Space(6)
    result = split(product(each, halves), [6, 6])
    unify(result[0], result[1])
    assert len(set(leaves(each))) == 1
    keep = {leaf: np.array([0]) for leaf in set(leaves(each))}
    assert list(kept_positions(result[0], keep)) == list(kept_positions(result[1], keep))


def test_several_factors_match_one_concatenation():
    """(1 + 3) x 2 against 2 x 2 x 2: the first two are as large as the sum, and the third is free."""
    last = Space(2), Space(2)
    left, right = [concatenation(Space(1), Space(3)), last[0]], [Space(2), Space(2), last[1]]
    assert unify_products(left, right) == []
    assert last[0].root is last[1].root
    assert not last[0].pins


def test_factors_without_a_common_form_are_pinned_with_the_reason():
    left, right = [Space(6), Space(4)], [Space(4), Space(6)]
    unify_products(left, right)
    reason = "a reshape mixes its positions with others"
    assert all(leaf.pins == (reason,) for space in (*left, *right) for leaf in leaves(space))


def test_a_run_time_size_pins_the_space_it_is_unified_with():
    known, unknown = Space(8), Space(None)
    unify(known, unknown)
    assert known.pins
    assert list(kept_positions(known, {})) == list(range(8))


def test_a_pin_applies_to_spaces_joined_before_and_after():
    a, b, c = Space(8), Space(8), Space(8)
    unify(a, b)
    b.pin("why")
    unify(c, a)
    assert a.pins == b.pins == c.pins == ("why",)
    unify(a, product(Space(2), Space(4)))
    assert all(leaf.pins == ("why",) for leaf in leaves(c))


def test_known_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="8 cannot be one of 6"):
        unify(Space(8), Space(6))


@pytest.mark.parametrize("size", [0, 8, 9])
def test_a_split_has_positions_on_both_sides(size):
    with pytest.raises(ValueError, match="cannot be split"):
        split_in_two(Space(8), size)
