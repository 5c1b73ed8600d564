"""Numbers as text."""

from __future__ import annotations

import pytest

from toolchain.report.amounts import bytes_text, count_text, plural, short_number


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (987, "987"), (999, "999"), (12_345, "12.3 k"), (999_600, "1 M"), (3_010_000_000, "3.01 G")],
)
def test_counts_have_three_digits(count, text):
    assert count_text(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (14_000_000, "14 MB"), (2_500, "2.5 kB")])
def test_bytes_are_decimal(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (1.0, "1.00"), (9.99, "9.99"), (12.34, "12.3"), (123.4, "123"), (12345.0, "12345")],
)
def test_short_numbers_have_no_exponent(value, text):
    assert short_number(value) == text


def test_plurals():
    assert [plural(n, "core") for n in (0, 1, 2)] == ["0 cores", "1 core", "2 cores"]
    assert plural(2, "machine or setting", "machines or settings") == "2 machines or settings"
