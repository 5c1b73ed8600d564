"""The report: its charts draw what was measured, and it needs no other file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from report_page import CHECKPOINTS, FINDINGS, PROFILES, PRUNING, TRAINING, manifest, page
from report_rows import ACCURACY, DEMO, HOST, OTHER, results, row

from toolchain.formats.findings import Checkpoint, Profile
from toolchain.formats.manifest import FileEntry, NodePrecision
from toolchain.formats.results import OperatorTime
from toolchain.report.compare import compare
from toolchain.report.derive import derive
from toolchain.report.html import charts
from toolchain.report.html import page as html
from toolchain.report.html.series import (
    MOST_KINDS,
    accuracy_points,
    by_layer,
    by_operator,
    kind_of,
    latency_outlines,
    round_changes,
    series_of,
    sizes,
    slowest_layers,
)
from toolchain.report.render import render

EVIL = "</script><b>&\"'net"


class Reader(HTMLParser):
    """Text outside of scripts and styles, titles, the specifications of charts, and everything that is linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.specs, self.links, self.inside = "", [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.inside = ["json"] if given.get("type") == "application/json" else [tag]
        self.links += [v for k, v in given.items() if k in ("src", "href", "srcset", "data", "action")]
        self.text += given.get("title") or ""

    def handle_endtag(self, tag):
        self.inside = []

    def handle_data(self, data):
        if self.inside == ["json"]:
            self.specs.append(json.loads(data))
        elif self.inside not in (["script"], ["style"]):
            self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def values(spec) -> list[list[dict]]:
    """The data of every layer of a chart."""
    own = [spec["data"]["values"]] if "data" in spec else []
    return own + [data for layer in spec.get("layer", ()) for data in values(layer)]


def series():
    (block,) = derive([(None, DEMO)])
    return series_of(block)


# ------------------------------------------------------------------------------------------------ what is drawn


def test_rows_that_repeat_the_hosts_are_drawn_once():
    fp32 = row("fp32", 20.0)
    int8 = row("int8", 10.0, target="host")
    copy = int8.model_copy(update={"target": "raspberry-pi-5", "evidence": "host"})
    (block,) = derive([(None, results(fp32, int8, copy))])
    drawn = series_of(block)
    assert [(s.name, s.colour) for s in drawn] == [("fp32", "var(--fp32)"), ("int8", "var(--int8)")]


def test_a_variant_has_one_colour_and_no_two_series_share_it():
    (block,) = derive([("a", DEMO), ("b", DEMO)])
    drawn = series_of(block)
    assert drawn[0].colour == "var(--fp32)"
    assert len({s.colour for s in drawn}) == len({s.name for s in drawn}) == len(drawn)


def test_accuracy_is_held_against_latency():
    spec = charts.accuracy(series())
    drawn = values(spec)[-1]
    expected = [(m.latency.p50_ms, 100 * m.score.value) for m in DEMO.measurements]
    assert [(p["ms"], p["score"]) for p in drawn] == [pytest.approx(pair) for pair in expected]


def test_labels_of_points_at_the_sides_stay_inside():
    spec = charts.accuracy(series())
    aligned = {p["series"]: p["align"] for p in values(spec)[-1]}
    assert (aligned["int8 for raspberry-pi-zero-2w"], aligned["fp32"]) == ("left", "right")
    marks = [layer["mark"] for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert {mark["align"] for mark in marks} == set(aligned.values())


def test_rounds_are_numbered_once():
    axis = charts.steadiness(series())["encoding"]["x"]["axis"]
    assert axis["values"] == [1, 2, 3]


def test_the_front_leaves_out_what_is_beaten():
    fast, slow, worse = row("int8", 10.0, score=ACCURACY), row("fp32", 20.0, score=ACCURACY), row("other", 30.0)
    worse = worse.model_copy(update={"score": ACCURACY.model_copy(update={"value": 0.5})})
    (block,) = derive([(None, results(slow, fast, worse))])
    front = {p["series"]: p["front"] for p in accuracy_points(series_of(block))}
    assert front == {"fp32": False, "int8": True, "other": False}


def test_distributions_count_every_sample():
    drawn = series()
    outlines, marks = latency_outlines(drawn)
    for number, s in enumerate(drawn):
        latency = s.measurement.latency
        mine = [o for o in outlines if o["row"] == number]
        assert marks[number]["median"] == pytest.approx(np.median(latency.samples_ms))
        assert marks[number]["p90"] == pytest.approx(np.percentile(latency.samples_ms, 90))
        peak = max(mine, key=lambda o: o["height"])["ms"]
        low, high = np.percentile(latency.samples_ms, [1, 99])
        assert low <= peak <= high
        assert all(0 <= o["height"] <= 1 for o in mine)


def test_rounds_show_how_far_they_lie_from_the_whole():
    steady = row("fp32", 10.0)
    samples = (*steady.latency.samples_ms[:60], *(2 * s for s in steady.latency.samples_ms[60:]))
    drifting = steady.model_copy(update={"latency": steady.latency.model_copy(update={"samples_ms": samples})})
    (block,) = derive([(None, results(drifting))])
    changes = [r["change"] for r in round_changes(series_of(block))]
    assert changes == [pytest.approx(0, abs=0.02), pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.03)]


def test_memory_is_that_above_the_baseline():
    first = {r["size"]: r["MB"] for r in sizes(series()[:1])}
    assert first == {"file": 14.0, "loading": 41.0, "running": 22.0}


def test_quantized_operators_are_counted_with_their_kind():
    drawn = {(r["operator"], r["series"]): r["us"] for r in by_operator(PROFILES)}
    assert drawn == {
        ("Conv", "fp32"): 100.0, ("Conv", "int8"): 45.0,
        ("layout change", "fp32"): 5.0, ("int8 conversion", "int8"): 3.0,
    }  # fmt: skip
    assert {kind_of(op) for op in ("QGemm", "Gemm", "FusedGemm")} == {"Gemm"}
    assert kind_of("QuickGelu") == "QuickGelu"


def test_small_kinds_are_summed_and_nothing_is_lost():
    many = Profile(
        variant="fp32",
        operators=tuple(OperatorTime(node=f"n{i}", op=f"Op{i}", median_us=float(i + 1)) for i in range(20)),
    )
    drawn = by_operator([many])
    assert len(drawn) == MOST_KINDS + 1
    assert sum(r["us"] for r in drawn) == sum(range(1, 21))
    assert drawn[-1]["operator"] == "8 other kinds"


def test_layers_are_matched_between_variants():
    drawn = [(r["layer"], r["number"], r["series"], r["us"]) for r in by_layer(PROFILES)]
    assert drawn == [("a", 1, "fp32", 40.0), ("a", 1, "int8", 20.0), ("b", 2, "fp32", 60.0), ("b", 2, "int8", 25.0)]
    assert [layer.name for layer in slowest_layers(PROFILES, 1)] == ["b"]


def test_charts_hold_the_data_they_were_given():
    assert values(charts.operators(PROFILES))[0] == by_operator(PROFILES)
    drawn = [r for data in values(charts.layers(PROFILES)) for r in data]
    assert sorted(r["us"] for r in drawn) == [20.0, 25.0, 40.0, 60.0]
    assert [(c["share"], c["kind"]) for c in values(charts.causes(FINDINGS.causes))[0]] == [
        (0.75, "activation"), (0.25, "weight"),
    ]  # fmt: skip
    assert [(c["kept"], c["channels"]) for c in values(charts.pruned_groups(PRUNING))[0]] == [(48, 64)]


def test_what_cannot_be_drawn_is_left_out():
    (block,) = derive([(None, results(row("int8", None)))])
    drawn = series_of(block)
    assert charts.accuracy(drawn) is charts.distributions(drawn) is charts.steadiness(drawn) is None
    assert "Latency in numbers" not in page(results(row("int8", None)))


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_says_what_matters_first():
    shown = read(page(DEMO, html.Details(FINDINGS, (manifest(),)))).text
    assert "2.00× as fast as fp32" in shown
    assert "the same integers on every processor." in shown
    assert "!" in shown
    assert "noisy" in shown
    for words in (
        "Where the time goes",
        "What was pruned",
        "How it fits the targets",
        "does not fit",
        "max_drop = 0.5",
    ):
        assert words in shown, words
    assert "90.0 % of the multiply-accumulates in int8" in shown
    assert "photos" in shown
    assert "1" * 64 in shown


def test_its_cells_are_the_terminals():
    shown = read(page(DEMO)).text
    markdown = render(DEMO, "markdown")
    for line in (line for line in markdown.splitlines() if line.startswith("| host") or line.startswith("| raspberry")):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for cell in (cells[0], cells[1], cells[2], cells[3], cells[-1], cells[-3]):
            assert cell in shown


def test_a_latency_budget_is_held_against_what_was_measured_there():
    shown = " ".join(read(page(DEMO, html.Details(FINDINGS, (manifest(),)))).text.split())
    assert re.search(r"latency 1[12](\.\d)? of 15 ms: fits", shown)
    absent = FINDINGS.fits[0].model_copy(update={"target": "raspberry-pi-zero-2w"})
    known = html.Details(FINDINGS.model_copy(update={"fits": (absent,)}), (manifest(),))
    assert "latency at most 15 ms: measure it on the device" in " ".join(read(page(DEMO, known)).text.split())


def test_names_are_escaped():
    evil = results(*(m.model_copy(update={"model": EVIL, "note": EVIL}) for m in DEMO.measurements))
    profiles = tuple(
        p.model_copy(update={"operators": tuple(o.model_copy(update={"layer": EVIL}) for o in p.operators)})
        for p in PROFILES
    )
    precision = (NodePrecision(node=EVIL, op="Conv", precision="float", reason=EVIL),)
    known = html.Details(FINDINGS.model_copy(update={"profiles": profiles}), (manifest(precision=precision),))
    text = page(evil, known)
    assert EVIL not in text
    assert "<b>&" not in text
    reader = read(text)
    assert EVIL in reader.text
    assert EVIL in {r["layer"] for spec in reader.specs for data in values(spec) for r in data if "layer" in r}
    assert "A <box>" in reader.text
    assert "its <reason> & more" in read(page(DEMO, html.Details(None, (manifest(),)))).text


def test_it_refers_to_nothing_outside():
    text = page(DEMO, html.Details(FINDINGS, (manifest(),)))
    reader = read(text)
    assert reader.links == []
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?http", text)
    assert "default-src 'none'" in text
    urls = set(re.findall(r'"(https?://[^"]*)"', json.dumps(reader.specs)))
    assert {re.sub(r"v\d.*", "", url) for url in urls} == {"https://vega.github.io/schema/vega-lite/"}
    assert len(reader.specs) == 10
    assert len(text.encode()) < 2.5e6


def test_without_altair_the_tables_remain(monkeypatch):
    monkeypatch.setattr(html, "can_draw", lambda: False)
    text = page(DEMO, html.Details(FINDINGS, (manifest(),)))
    reader = read(text)
    assert reader.specs == []
    assert "pip install 'edge-toolchain[html]'" in reader.text
    assert "<script" not in text
    for words in ("2.00×", "0.7073", "75.0 %", "node", "48"):
        assert words in reader.text


def test_altair_is_loaded_only_to_draw():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['altair', 'vl_convert']))\n"
        "from toolchain.report import compare\nfrom toolchain.report.html import charts, page\n"
        "sys.stdout.write(str(page.can_draw()) if 'torch' not in sys.modules else 'torch')"
    )
    # A module that is None cannot be imported, and importlib says that it has no specification.
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False"), done.stderr


def test_models_share_the_colours_of_variants_and_scores_of_several_are_not_compared():
    (block,) = derive(
        [(None, results(*(row(v, 9.0, model=m, score=ACCURACY) for m in "ab" for v in ("fp32", "int8"))))]
    )
    drawn = series_of(block)
    assert [(s.name, s.colour) for s in drawn] == [
        ("a fp32", "var(--fp32)"), ("a int8", "var(--int8)"), ("b fp32", "var(--fp32)"), ("b int8", "var(--int8)"),
    ]  # fmt: skip
    assert charts.accuracy(drawn) is None
    assert {r["size"] for r in sizes(drawn)} >= {"a file", "b running"}


def test_several_models_and_hosts_on_one_page():
    several = results(row("fp32", 20.0), row("fp32", 9.0, model="other"), row("int8", 5.0, host=OTHER))
    reader = read(page(several))
    assert "2 models, 2 variants, 2 machines or settings." in reader.text
    assert HOST.cpu in reader.text
    assert OTHER.cpu in reader.text


# ------------------------------------------------------------------------------------------------ its folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "host").mkdir()
    DEMO.save(tmp_path / "results.json")
    FINDINGS.save(tmp_path / "findings.json")
    manifest().save(tmp_path / "host" / "manifest.json")
    return tmp_path


def test_details_lie_beside_the_results(folder):
    expected = html.Details(FINDINGS, (manifest(),))
    assert html.read_details(folder) == html.read_details(folder / "results.json") == expected
    assert compare([folder]) == compare([folder / "results.json"])


def test_details_of_other_results_are_left_out(folder):
    FINDINGS.model_copy(update={"when": "2020-01-01"}).save(folder / "findings.json")
    other = FileEntry(name="model.onnx", sha256="f" * 64, size_bytes=1)
    manifest(files=(other,)).save(folder / "host" / "manifest.json")
    assert html.read_details(folder) == html.Details()


def test_training_is_told_step_by_step():
    text = page(DEMO, html.Details(FINDINGS))
    assert "prune: &lt;some&gt; channels" in text
    assert "50.0% → 90.0%" in text
    assert "no faster" in text
    spec = charts.training(TRAINING, "accuracy")
    (rows,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    assert [row["at"] for row in rows[:6]] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert sum(row["kept"] for row in rows) == 2
    checkpoints = tuple(
        Checkpoint(share=c.share, evaluation=c.evaluation.model_copy(update={"accuracy": None})) for c in CHECKPOINTS
    )
    unclassed = [step.model_copy(update={"checkpoints": checkpoints}) for step in TRAINING]
    assert charts.training(unclassed, "accuracy") is None
    assert "0.0 dB → 20.0 dB" in page(DEMO, html.Details(FINDINGS.model_copy(update={"training": tuple(unclassed)})))
