"""The greedy path from nothing cut to as much as possible."""

import itertools

import pytest

from toolchain.pruning.search import PruningUnit, WidthOption, aligned_widths, greedy_path, with_rising_losses


def unit(name, *options, work=None, inside=(), size=64):
    found = tuple(WidthOption(kept, loss, saving) for kept, loss, saving in options)
    return PruningUnit(name, size, found, work or {name: 1.0}, tuple(inside))


def test_the_best_ratio_goes_first():
    path = greedy_path([unit("dear", (32, 0.5, 1.0)), unit("cheap", (32, 0.1, 1.0))])
    assert [dict(w.kept) for w in path] == [{}, {"cheap": 32}, {"dear": 32, "cheap": 32}]
    assert path[-1].loss == pytest.approx(0.6)
    assert path[-1].saving_ms == pytest.approx(2.0)


def test_a_width_may_be_skipped():
    """Half costs little more than three quarters and saves twice as much."""
    path = greedy_path([unit("a", (48, 0.10, 1.0), (32, 0.12, 2.0))])
    assert [dict(w.kept) for w in path] == [{}, {"a": 32}]


def test_savings_of_two_groups_in_one_operator_overlap():
    shared = {"conv": 1.0}
    path = greedy_path([unit("in", (32, 0.1, 1.0), work=shared), unit("out", (32, 0.1, 1.0), work=shared)])
    # Of 2 ms each half saves 1; both leave a quarter, so they save 1.5.
    assert path[-1].saving_ms == pytest.approx(1.5)


def test_losses_and_savings_rise_along_the_path():
    units = [unit(f"g{n}", (48, 0.01 * n, 0.3), (32, 0.03 * n, 0.7), (16, 0.2 * n, 1.0)) for n in range(1, 6)]
    path = greedy_path(units)
    assert all(a.saving_ms < b.saving_ms and a.loss <= b.loss for a, b in itertools.pairwise(path))


def test_the_path_ends_where_the_outputs_degrade():
    path = greedy_path([unit("a", (32, 0.6, 1.0)), unit("b", (32, 0.5, 0.5))])
    assert [dict(w.kept) for w in path] == [{}, {"a": 32}]


def test_units_inside_a_removed_branch_no_longer_count():
    inner = unit("inner", (32, 0.01, 0.4), work={"conv": 1.0})
    path = greedy_path([inner, unit("sum", (0, 0.5, 1.0), work={"conv": 1.0}, inside=["inner"], size=1)])
    assert dict(path[1].kept) == {"inner": 32}
    assert (dict(path[-1].kept), path[-1].dropped) == ({}, ("sum",))
    assert path[-1].loss == pytest.approx(0.5)


def test_scattered_losses_are_made_to_rise():
    found = with_rising_losses(unit("a", (48, 0.2, 0.5), (32, 0.1, 1.0)))
    assert [option.loss for option in found.options] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("size", "multiple", "widths"), [(96, 16, [80, 64, 48, 32]), (24, 16, [21, 18, 12, 6]), (3, 8, [2, 1])]
)
def test_widths_are_multiples_where_the_group_is_large_enough(size, multiple, widths):
    found = aligned_widths(size, multiple, (0.875, 0.75, 0.5, 0.25))
    assert found == sorted(found, reverse=True)
    assert set(found) <= set(range(1, size))
    assert found == widths or all(width % multiple == 0 for width in found)
