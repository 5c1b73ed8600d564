"""The section on what is left of the float model's answer."""

from __future__ import annotations

from report_page import FINDINGS, manifest, page
from report_rows import DEMO

from toolchain.formats.findings import ClippedTensor
from toolchain.formats.verdict import Decision, PartFidelity, Verdict
from toolchain.report.html.answer import MOST_PARTS, answer
from toolchain.report.html.page import Details

BOXES = PartFidelity(name="y[:, 0:4]", tensor="y", fidelity_db=31.25, worst_index=2, worst_db=24.5, indices=4)
SCORES = PartFidelity(name="y[:, 4:84]", tensor="y", fidelity_db=0.0, indices=78, constant=2, lost=True)
LOST = ("y[:, 4:84], computed by Concat '<join>': nothing is left of float's answer", "picked: 10% of 100 are kept")
VERDICT = Verdict(
    samples=8,
    parts=(BOXES, SCORES),
    decisions=(
        Decision(part="y[:, 4:84]", kind="positives", kept=0.0, count=200),
        Decision(part="picked", kind="set", kept=0.1, count=100),
    ),
    lost=LOST,
    doubtful=("z: 3.1 dB are left",),
)
CLIPPED = (ClippedTensor(tensor="relu", share=0.012, beyond=0.34), ClippedTensor(tensor="x", share=2e-5, beyond=0.04))


def test_rows_are_the_parts_then_decisions_of_no_part():
    found = answer(manifest(verdict=VERDICT, clipped=CLIPPED))
    assert [(row.name, row.lost, row.fidelity, row.constant) for row in found.rows] == [
        ("y[:, 4:84]", True, "0.0 dB", "2 of 80"),
        ("y[:, 0:4]", False, "31.2 dB", ""),
        ("picked", True, "", ""),
    ]
    assert [row.decisions for row in found.rows] == ["positives 0.000", "", "set 0.100"]
    assert found.clipped == (("1.20%", "34% of the range", "relu"), ("< 0.01%", "4% of the range", "x"))


def test_the_page_says_first_what_is_lost():
    text = page(DEMO, Details(FINDINGS, (manifest(verdict=VERDICT, clipped=CLIPPED),)))
    assert "&lt;join&gt;" in text
    assert text.index("A part of the float model's answer is lost") < text.index("<h2>Results</h2>")
    assert "(and 1 more)" in text
    for words in ("too few to tell", "z: 3.1 dB are left", "Values outside the int8 ranges", "not accuracy"):
        assert words in text, words


def test_a_model_that_lost_nothing_has_no_warning():
    kept = Verdict(samples=8, parts=(BOXES,))
    text = page(DEMO, Details(FINDINGS, (manifest(verdict=kept),)))
    assert "What is left of float's answer" in text
    assert "is lost:" not in text
    assert "Values outside" not in text


def test_a_manifest_older_than_the_judge_has_no_section():
    assert answer(manifest()) is None
    assert answer(manifest(verdict=Verdict(samples=0))) is None


def test_of_many_parts_the_worst_are_shown():
    parts = tuple(BOXES.model_copy(update={"name": str(i), "fidelity_db": float(i)}) for i in range(MOST_PARTS + 5))
    found = answer(manifest(verdict=Verdict(samples=8, parts=parts[::-1])))
    assert (len(found.rows), found.rows[0].name, found.hidden) == (MOST_PARTS, "0", 5)
