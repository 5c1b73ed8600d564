"""Precision of the nodes, as it is shown below the export table: counts, reasons and examples within 100 columns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from rendered import rendered

from toolchain.core.errors import ConfigError
from toolchain.formats.manifest import NodePrecision
from toolchain.inspection.precision import FloatGroup, float_groups
from toolchain.report import precision
from toolchain.report.render import check_format

COSTLY = "reads float tensors; converting them would cost more than it saves"


def left_float(node, op, reason):
    return NodePrecision(node=node, op=op, precision="float", reason=reason)


CHOICES = [
    NodePrecision(node="conv", op="Conv", precision="int8"),
    left_float("flat", "Flatten", COSTLY),
    left_float("soft", "Softmax", "int8 Softmax loses small probabilities"),
    left_float("mul_1", "Mul", COSTLY),
    left_float("mul_2", "Mul", COSTLY),
    left_float("mul_3", "Mul", "the recipe keeps it float"),
]


def text(choices, width=100):
    return rendered(precision.render(choices), width)


def test_groups_are_by_operator_and_reason_most_frequent_first():
    assert float_groups(CHOICES) == (
        FloatGroup("Mul", COSTLY, 2, "mul_1"),
        FloatGroup("Flatten", COSTLY, 1, "flat"),
        FloatGroup("Softmax", "int8 Softmax loses small probabilities", 1, "soft"),
        FloatGroup("Mul", "the recipe keeps it float", 1, "mul_3"),
    )


def test_a_reason_is_said_once_with_its_counts_and_an_example():
    lines = text(CHOICES).splitlines()
    assert lines[0] == "int8: 1 of 6 nodes; the others are float:"
    entries = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    assert entries == [
        ["2 × Mul, 1 × Flatten", f"{COSTLY} (e.g."],
        ["mul_1)"],
        ["1 × Softmax", "int8 Softmax loses small probabilities (soft)"],
        ["1 × Mul", "the recipe keeps it float (mul_3)"],
    ]


def test_all_int8_is_one_line():
    assert text(CHOICES[:1]) == "int8: 1 of 1 nodes\n"


def test_a_model_without_int8_is_not_called_int8():
    lines = text(CHOICES[1:]).splitlines()
    assert lines[0] == "no operator is int8; all 5 stay float:"
    assert "int8: 0" not in text(CHOICES[1:])
    table = NodePrecision(node="words", op="Gather", precision="int8 storage", reason="its table is stored as int8")
    assert text([*CHOICES[1:], table]).splitlines()[0] == "int8 storage: 1 of 6 nodes (Gather); the others are float:"


def test_what_is_neither_int8_nor_float_is_named_as_what_it_is():
    table = NodePrecision(node="words", op="Gather", precision="int8 storage", reason="its table is stored as int8")
    assert text([CHOICES[0], table]) == "int8: 1 of 2 nodes; int8 storage: 1 (Gather)\n"
    head = text([*CHOICES, table]).splitlines()[0]
    assert head == "int8: 1 of 7 nodes; int8 storage: 1 (Gather); the others are float:"
    assert "words" not in text([*CHOICES, table])


def test_times_that_differ_from_node_to_node_do_not_make_a_line_each():
    slow = [left_float(f"add_{i}", "Add", f"measured slower as int8: {i} µs float") for i in range(30)]
    lines = text(slow).splitlines()
    assert len(lines) == 2
    assert "30 × Add" in lines[1]
    assert "measured slower as int8 (e.g. add_0: 0 µs float)" in lines[1]
    (line,) = text(slow[5:6]).splitlines()[1:]
    assert "measured slower as int8: 5 µs float (add_5)" in line


def test_counts_break_between_operators_and_nothing_is_cut():
    operators = ["GatherElements", "Range", "Max", "GatherND", "And", "NonMaxSuppression", "x.y::" + "Long" * 12]
    choices = [left_float("n" * 150, op, "its operator is not in the table") for op in operators]
    shown = text(choices)
    assert "…" not in shown
    for op in operators:
        assert f"1 × {op}" in shown
    assert shown.count("n") - "".join(operators).count("n") >= 150


def test_markup_in_names_is_text():
    assert "[bold]x[/bold]" in text([left_float("[bold]x[/bold]", "Add", "why")])


def test_a_format_is_refused_before_the_work():
    for format in ("table", "markdown", "csv", "json"):
        check_format(format)
    with pytest.raises(ConfigError, match="--format: unknown format 'cvs'; did you mean 'csv'"):
        check_format("cvs")


def test_reports_of_benchmarks_need_no_onnx():
    code = "import sys, toolchain.report; sys.exit(', '.join({'onnx', 'onnx_ir', 'torch'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
