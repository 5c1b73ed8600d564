"""The exactness certificate, as it is shown."""

from __future__ import annotations

import pytest
from rendered import one_line, rendered_lines

from toolchain.formats.manifest import STEPS_MEANING, Doubt, Exactness, Proof
from toolchain.report.certificate import render

PROOF = Proof(kernel="QLinearConv", nodes=("a", "b"), proof="sums stay inside int32", used=0.125)
FLOAT = Doubt(op="Softmax", kernel=None, nodes=("s",), reason="runs in float")
INT8 = Doubt(op="Conv", kernel="QLinearConv", nodes=("c", "d"), reason="pairs may saturate")


@pytest.mark.parametrize(
    ("doubts", "exceptions", "verdict"),
    [
        ((), (), "same bits on every processor (u8 activations)"),
        ((FLOAT,), ("Softmax",), "same integers on every processor; float may differ in the last digits"),
        ((FLOAT, INT8), ("Softmax",), "not proven; int8 operators may differ between processors"),
    ],
)
def test_the_verdict_comes_first(doubts, exceptions, verdict):
    exactness = Exactness(activations="u8", overflow_free=True, exceptions=exceptions, proofs=(PROOF,), doubts=doubts)
    assert one_line(render(exactness)).startswith(f"exactness: {verdict}")


@pytest.mark.parametrize(
    ("differing", "verdict", "summary"),
    [
        ({"steps": True, "proofs": (PROOF,)}, STEPS_MEANING, f"{STEPS_MEANING}: Softmax"),
        (
            {"proofs": (PROOF,)},
            "same integers on every processor; float",
            "the same numbers on every processor, except: Softmax",
        ),
        ({}, "float; the last digits may differ", "the same numbers on every processor, except: Softmax"),
        (
            {"proofs": (PROOF,), "doubts": (FLOAT, INT8)},
            "not proven",
            "not the same numbers on every processor: Softmax",
        ),
    ],
)
def test_a_last_digit_that_becomes_a_step_is_not_called_a_last_digit(differing, verdict, summary):
    exactness = Exactness(
        **{"activations": "u8", "overflow_free": True, "exceptions": ("Softmax",), "doubts": (FLOAT,)} | differing
    )
    assert one_line(render(exactness)).startswith(f"exactness: {verdict}")
    assert exactness.summary == summary


def test_proofs_and_doubts_have_rows_of_their_own():
    exactness = Exactness(activations="u8", overflow_free=True, proofs=(PROOF,), doubts=(FLOAT, INT8))
    lines = rendered_lines(render(exactness))
    assert lines[1] == "  2 × QLinearConv  sums stay inside int32 (uses at most 12.50% of what the proof allows)"
    assert lines[2:] == [
        "may differ between processors:",
        "  1 × Softmax      runs in float (e.g. s)",
        "  2 × QLinearConv  pairs may saturate (e.g. c)",
    ]
