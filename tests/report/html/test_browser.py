"""The report in a real browser: it is drawn without an error, fits a phone, follows dark mode, and prints."""

from __future__ import annotations

import re

import pytest
from browser import ABSENT, browser
from report_page import FINDINGS, manifest, page
from report_rows import DEMO

from toolchain.report.html.page import Details

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))]

MARKS = ", ".join(f".mark-{kind} path" for kind in ("rect", "area", "line", "symbol"))
SEEN = f"""(() => {{
  const charts = [...document.querySelectorAll(".chart")];
  const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1);
  return {{
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    marks: charts.map((chart) => chart.querySelectorAll("{MARKS}").length),
    wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    ink: getComputedStyle(document.body).color,
    fill: getComputedStyle(document.querySelector(".chart .mark-rect path")).fill,
    label: getComputedStyle(document.querySelector(".chart .role-axis-label text")).fill,
  }};
}})()"""


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page(DEMO, Details(FINDINGS, (manifest(),))), encoding="utf-8")
    return path


@pytest.fixture
def tab(tmp_path):
    with browser(tmp_path) as opened:
        yield opened


def unfold(tab):
    tab.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")


@pytest.mark.parametrize("width", [360, 390, 820, 1280])
def test_everything_is_drawn_and_nothing_is_too_wide(tab, report, width):
    tab.open(report, width)
    unfold(tab)
    seen = tab.evaluate(SEEN)
    assert tab.complaints == []
    assert tab.requests == [report.as_uri()]
    assert len(seen["marks"]) == 10
    assert min(seen["marks"]) > 0, seen
    assert (seen["width"], seen["scroll"], seen["wide"]) == (width, width, [])


def test_charts_follow_the_window(tab, report):
    tab.open(report, 1280)
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=True)
    tab.evaluate("new Promise((done) => setTimeout(done, 500))")
    unfold(tab)
    seen = tab.evaluate(SEEN)
    assert (seen["scroll"], seen["wide"]) == (390, [])


def test_it_follows_dark_mode(tab, report):
    themes = []
    for dark in (False, True):
        tab.open(report, 800, dark=dark)
        themes.append(tab.evaluate(SEEN))
    light, dark = themes
    for seen in themes:
        assert seen["label"] == seen["ink"]
        assert seen["fill"].startswith("rgb(")
    assert dark["ink"] != light["ink"]
    assert dark["fill"] != light["fill"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("console.warn('dropped');", "dropped"),
        ("nothing();", "nothing is not defined"),
        ("fetch('https://localhost/');", "violates the following Content Security Policy directive"),
    ],
)
def test_what_goes_wrong_in_a_page_is_seen(tab, report, broken, said):
    report.write_text(
        report.read_text().replace('"use strict";', f'"use strict"; setTimeout(() => {{ {broken} }});', 1)
    )
    tab.open(report, 800)
    tab.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert said in " ".join(tab.complaints)


def test_it_prints(tab, report):
    tab.open(report, 1280)
    paper = tab.paper()
    assert paper.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 12
