"""The fit of a model to targets, as it is shown."""

from __future__ import annotations

from rendered import one_line, rendered_lines
from report_page import FINDINGS

from toolchain.formats.findings import WidthMisfit
from toolchain.report.fit import render, summary

FIT = FINDINGS.fits[0]


def test_each_budget_has_its_verdict():
    assert rendered_lines(render(FIT)) == [
        "on A <box> (host)",
        "  size: limit 10 MiB, at least 13.4 needed: DOES NOT FIT",
        "  latency: limit 15 ms; run toolchain bench on the device",
        "  channels: every convolution gives a multiple of 8",
    ]


def test_unsuitable_widths_are_listed():
    misfit = WidthMisfit(channels=12, nodes=2, macs=20_700, example="conv_1")
    lines = rendered_lines(render(FIT.model_copy(update={"misfits": (misfit,), "convolutions": 5})))
    assert lines[-2:] == [
        "  channels: 2 of 5 convolutions do not give a multiple of 8:",
        "    2 × 12 channels, 20.7 k MACs (e.g. conv_1)",
    ]


def test_a_model_without_convolutions_and_a_profile_without_budget():
    bare = FIT.model_copy(update={"convolutions": 0, "budgets": ()})
    assert rendered_lines(render(bare)) == ["on A <box> (host)", "  the profile sets no budget"]


def test_many_targets_in_one_line():
    small = FIT.model_copy(update={"target": "tiny"})
    large = FIT.model_copy(update={"target": "big", "budgets": ()})
    said = one_line(summary([small, large]))
    assert said == "fits 1 of 2 profiles in size and memory; too large for tiny (size limit 10 MiB)"
    assert one_line(summary([large])) == "fits all 1 profiles of `toolchain targets list` in size and memory"
