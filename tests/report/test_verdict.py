"""Tables of what is left of the answer, in a terminal."""

from __future__ import annotations

from rendered import one_line, rendered, rendered_lines

from toolchain.formats.verdict import Decision, PartFidelity, Verdict
from toolchain.report import verdict

BOXES = PartFidelity(name="y[:, 0:4]", tensor="y", fidelity_db=31.25, worst_index=2, worst_db=24.5, indices=4)
SCORES = PartFidelity(name="y[:, 4:84]", tensor="y", fidelity_db=0.0, indices=80, lost=True)
LOST = "y[:, 4:84], computed by Concat 'join': nothing is left of float's answer"
KEPT = (
    Decision(part="y[:, 0:4]", kind="boxes", kept=0.91, count=50),
    Decision(part="y[:, 4:84]", kind="positives", kept=0.0, count=200),
    Decision(part="y[:, 4:84]", kind="order", kept=0.125, count=200),
    Decision(part="picked", kind="set", kept=0.5, count=100),
)
VERDICT = Verdict(samples=8, parts=(BOXES, SCORES), decisions=KEPT, lost=(LOST,))


def test_the_worst_part_comes_first_with_its_decisions():
    lines = [line.split("  ") for line in rendered_lines(verdict.render(VERDICT))]
    assert lines[0] == ["what is left of float's answer, on 8 samples that were held out:"]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines[2:5]]
    assert rows == [
        ["y[:, 4:84] (lost)", "0.0 dB", "positives 0.000, order 0.125"],
        ["y[:, 0:4]", "31.2 dB", "24.5 dB (2)", "boxes 0.910"],
        ["picked", "set 0.500"],
    ]


def test_every_number_is_explained_and_agreement_is_not_accuracy():
    shown = one_line(verdict.render(VERDICT))
    assert verdict.FIDELITY_MEANING in shown
    assert "not accuracy" in shown
    assert "not accuracy" not in one_line(verdict.render(VERDICT.model_copy(update={"decisions": ()})))


def test_lost_parts_are_said_loudly():
    assert verdict.warnings(VERDICT) == [f"LOST: {LOST}"]


def test_a_model_that_gives_the_same_answer_needs_no_table():
    same = Verdict(samples=1, parts=(BOXES.model_copy(update={"fidelity_db": 100.0, "worst_db": 100.0}),))
    shown = one_line(verdict.render(same))
    assert shown == "what is left of float's answer, on 1 sample that was held out: all of it"


def test_a_model_of_many_parts_shows_the_worst_and_fits_80_columns():
    parts = [BOXES.model_copy(update={"name": f"out[:, {i}:{i + 1}]", "fidelity_db": 20.0 + i}) for i in range(30)]
    shown = rendered(verdict.render(VERDICT.model_copy(update={"parts": tuple(parts[::-1])})), 80)
    assert "out[:, 0:1]" in shown
    assert "out[:, 12:13]" not in shown
    assert "and 18 parts with a higher fidelity" in shown


def test_a_part_that_was_lost_by_one_index_is_shown_before_parts_of_lower_fidelity():
    one = BOXES.model_copy(update={"name": "a", "fidelity_db": 40.0, "worst_db": 0.0, "lost": True})
    assert [part.name for part in verdict.worst_first(Verdict(samples=8, parts=(BOXES, one)))] == ["a", "y[:, 0:4]"]


def test_nothing_is_shown_where_nothing_was_judged():
    assert rendered(verdict.render(Verdict(samples=0))).strip() == ""
