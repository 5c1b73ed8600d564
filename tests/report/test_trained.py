"""The steps of a training recipe, as they are shown."""

from __future__ import annotations

from rendered import rendered_lines
from report_page import TRAINING

from toolchain.formats.findings import Evaluation
from toolchain.report.trained import evaluation_text, render


def test_a_row_for_each_step_and_its_notes():
    lines = rendered_lines(render(TRAINING))
    assert lines[2].split() == [
        "prune:", "<some>", "channels", "50.0%", "→", "90.0%", "123", "k", "25%", "2.00", "1.00", "40", "12",
    ]  # fmt: skip
    assert lines[-2:] == ["prune: no faster", "distil: no faster"]


def test_outputs_that_are_not_classes_have_a_fidelity():
    assert evaluation_text(Evaluation(loss=0.5, fidelity_db=21.34)) == "21.3 dB"
    assert evaluation_text(Evaluation(loss=0.5, fidelity_db=21.34, accuracy=0.875)) == "87.5%"
