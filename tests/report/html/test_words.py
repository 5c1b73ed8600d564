"""The headline, the tiles and the origin of the results."""

from __future__ import annotations

from report_page import manifest
from report_rows import ACCURACY, AGREEMENT, DEMO, HOST, OTHER, results, row

from toolchain.formats.manifest import Exactness, NodePrecision
from toolchain.formats.verdict import PartFidelity, Verdict
from toolchain.report.compare import Comparison
from toolchain.report.derive import derive
from toolchain.report.html.words import headline, provenance, tiles

SMALL = results(
    row("fp32", 24.0, score=ACCURACY),
    row("int8", 12.0, target="host", score=ACCURACY).model_copy(update={"size_bytes": 3_500_000}),
)
EXCEPTIONS = ("3 Conv run in float; their last digits may differ between processors",)


def comparison(of=SMALL):
    return Comparison(derive([(None, of)]))


def inexact():
    return manifest(exactness=Exactness(activations="u8", overflow_free=True, exceptions=EXCEPTIONS))


def test_the_headline_holds_speed_size_score_and_exactness():
    assert headline(comparison(), ()) == "2.00× as fast as fp32; 4.0× smaller; score 70.73\xa0% → 70.73\xa0%."
    assert headline(comparison(), (manifest(),)).endswith("; the same integers on every processor.")
    assert headline(comparison(), (inexact(),)).endswith("on every processor, with exceptions named below.")


def test_several_models_or_machines_are_counted():
    several = results(row("fp32", 20.0), row("fp32", 9.0, model="other"), row("int8", 5.0, host=OTHER))
    assert headline(comparison(several), ()) == "2 models, 2 variants, 2 machines or settings."
    assert tiles(comparison(several), ()) == []


def test_tiles_say_what_their_number_is_compared_with():
    shown = {tile.label: (tile.value, tile.note) for tile in tiles(comparison(), (inexact(),))}
    assert shown["file"] == ("3.5 MB", "fp32: 14 MB")
    assert shown["score"] == ("70.73\xa0%", "fp32: 70.73\xa0%, 64 samples")
    assert shown["memory"] == ("41 MB", "fp32: 41 MB; without the runtime itself")
    assert shown["other processors"] == ("identical, except", EXCEPTIONS[0])
    value, note = shown["speed-up"]
    assert value == "2.00×"
    assert note.startswith("24 → 12 ms; 95\xa0%: ")


def test_agreement_is_not_shown_as_accuracy():
    agreed = results(row("fp32", 24.0, score=AGREEMENT), row("int8", 12.0, target="host", score=AGREEMENT))
    assert "; agrees with float in 98.23\xa0%, which is not accuracy." in headline(comparison(agreed), ())
    shown = {tile.label: (tile.value, tile.note) for tile in tiles(comparison(agreed), ())}
    assert "score" not in shown
    assert shown["agreement"] == ("98.23\xa0%", "with float on 64 samples, right or wrong; not accuracy")


def test_the_worst_part_has_a_tile():
    part = PartFidelity(name="y[:, 4:84]", tensor="y", fidelity_db=12.25)
    kept = manifest(verdict=Verdict(samples=8, parts=(part,)))
    lost = manifest(verdict=Verdict(samples=8, parts=(part,), lost=("y: nothing is left",)))
    for known, value in ((kept, "12.2 dB"), (lost, "lost")):
        (tile,) = (tile for tile in tiles(comparison(), (known,)) if tile.label == "worst part")
        assert tile.value == value
        assert tile.note.startswith("y[:, 4:84]; ")


def test_a_model_without_int8_does_not_promise_integers():
    left = manifest(precision=(NodePrecision(node="b", op="Conv", precision="float"),))
    assert "integers" not in headline(comparison(), (left,))


def test_steps_are_not_called_the_same_integers():
    stepping = manifest(exactness=Exactness(activations="u8", overflow_free=True, exceptions=EXCEPTIONS, steps=True))
    assert headline(comparison(), (stepping,)).endswith("; numbers that may differ between processors, as said below.")
    shown = {tile.label: tile.value for tile in tiles(comparison(), (stepping,))}
    assert shown["other processors"] == "may differ"


def test_a_row_measured_on_the_target_comes_before_those_of_absent_devices():
    (speedup, *_) = tiles(comparison(DEMO), ())
    assert speedup.note.startswith("24 → 12 ms")


def test_the_origin_leaves_out_what_is_unknown():
    emulated = HOST.model_copy(update={"memory_mib": 0})
    ((_, machine), _) = provenance(comparison(results(row("fp32", 20.0, host=emulated))), ())
    assert "memory" not in dict(machine)
    titles = [title for title, _ in provenance(comparison(), (manifest(),))]
    assert titles == ["Machine bench-box", "Export", "Files"]
