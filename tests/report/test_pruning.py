"""The result of pruning, as it is shown."""

from __future__ import annotations

from rendered import one_line, rendered_lines
from report_page import PRUNING

from toolchain.formats.findings import CutGroup, CutPoint, Pruning
from toolchain.formats.results import Score
from toolchain.report.pruning import MOST_GROUPS, curve, render


def test_groups_then_totals():
    lines = rendered_lines(render(PRUNING))
    assert lines[0].split() == ["group", "kept", "of", "nodes"]
    assert lines[2].split() == ["conv", "48", "64", "conv,", "next"]
    said = one_line(render(PRUNING))
    assert "checked: the pruned model computes what the original does with those channels switched off (largest" in said
    assert "multiply-accumulates 1 k → 700, parameters 100 → 60" in said
    assert "fp32 1.30× as fast on this computer, 1 thread; as int8, 1.20× as fast as int8 without pruning" in said
    assert "fidelity 11.0 dB after removal, 24.0 dB after repair" in said


def test_speed_ups_have_intervals_where_they_were_measured():
    measured = PRUNING.model_copy(update={"speedup_interval": (1.27, 1.33), "int8_speedup_interval": (1.18, 1.22)})
    said = one_line(render(measured))
    assert "fp32 1.30× (95 %: 1.27 to 1.33) as fast on this computer, 1 thread" in said
    assert "as int8, 1.20× (95 %: 1.18 to 1.22) as fast as int8 without pruning" in said


def test_the_curve_shows_what_smaller_models_gain_and_lose():
    points = [
        CutPoint(factor=1.09, fidelity_db=12.9, score=Score(kind="agreement", value=0.92)),
        CutPoint(factor=1.2, fidelity_db=None, score=Score(kind="agreement", value=0.7), fault="agreement is 0.700"),
    ]
    lines = [line.split() for line in rendered_lines(curve(points))]
    assert lines[1] == ["factor", "fidelity", "agreement"]
    assert lines[3] == ["1.09×", "12.9", "dB", "0.9200", "keeps", "enough"]
    assert lines[4] == ["1.20×", "0.7000", "agreement", "is", "0.700"]


def test_a_check_up_to_rounding_says_so():
    assert PRUNING.proof is not None
    rounded = PRUNING.model_copy(update={"proof": PRUNING.proof.model_copy(update={"exact": False})})
    assert "with those channels switched off, up to rounding" in one_line(render(rounded))


def test_nothing_pruned_has_a_reason():
    said = one_line(render(Pruning(helped=False, reason="every option is slower")))
    assert said == "nothing was pruned: every option is slower; the model is unchanged"


def test_the_most_pruned_groups_are_shown_first_and_the_rest_counted():
    groups = tuple(CutGroup(name=f"g{i}", size=100, kept=i + 1, nodes=(f"n{i}",)) for i in range(MOST_GROUPS + 1))
    lines = rendered_lines(render(PRUNING.model_copy(update={"groups": groups[::-1]})))
    assert lines[2].split()[0] == "g0"
    assert "... and 1 more group" in lines


def test_zeroed_weights_alone_change_no_size():
    only_zeros = PRUNING.model_copy(update={"groups": (), "dropped": (), "notes": ("half of the weights are zero",)})
    said = one_line(render(only_zeros))
    assert "half of the weights are zero" in said
    assert "parameters" not in said


def test_scores_before_and_after():
    scores = [Score(kind="agreement", value=value) for value in (1.0, 0.975)]
    assert "agreement: before 1.0000, pruned 0.9750" in one_line(render(PRUNING, scores))
