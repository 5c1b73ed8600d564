"""Channel groups, as they are shown."""

from __future__ import annotations

from rendered import one_line, rendered_lines

from toolchain.channels.groups import Group, Member
from toolchain.inspection.groups import Grouping
from toolchain.report.groups import render


def group(name: str, members: int, *, pins: tuple[str, ...] = (), op: str = "Conv") -> Group:
    parts = tuple(Member(node=f"{name}_{i}", op=op, parameter="weight", axis=0, makes=True) for i in range(members))
    return Group(name=name, size=16, members=parts, pins=pins, macs=250, leaf=None)  # the leaf is not shown


GROUPING = Grouping((group("first", 5), group("last", 1, pins=("it is an output of the model", "and more"))), 1000)


def test_a_row_for_each_group():
    lines = rendered_lines(render(GROUPING))
    assert lines[2].split() == ["first", "16", "25.0%", "first_0[0],", "first_1[0],", "first_2[0],", "2", "more"]
    assert lines[3].split(maxsplit=4) == ["last", "16", "25.0%", "last_0[0]", "it is an output of the model"]


def test_the_total_counts_groups_that_can_be_pruned():
    assert one_line(render(GROUPING)).endswith("1 of 2 groups can be pruned; 1 k multiply-accumulates (MACs) in total")


def test_members_without_weights_are_named_where_there_are_no_others():
    assert "norm_0[0]" in one_line(render(Grouping((group("norm", 1, op="Mul"),), 1000)))
