"""The stored results: small files, and every cell that samples decide comes out of them as it stands in the tables."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import curves, fresh, prune, quantize, tables
from benchmarks.contestants import Made
from benchmarks.curves import Run
from benchmarks.pruners import Cut
from benchmarks.timing import latency, thinned
from toolchain.benchmark import stats
from toolchain.formats.results import Results

CPU = "amd-epyc-vnni"
LABEL = re.compile(r"(?P<contestant>.*), (?P<size>[\d.]+), seed (?P<seed>\d+)")


def stored(name):
    """The rows of a results file, and the lines of the page beside it."""
    rows = Results.load(tables.RESULTS / f"{name}-{CPU}.json.gz").measurements
    return rows, (tables.RESULTS / f"{name}-{CPU}.md").read_text(encoding="utf-8").splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def numbers(cell):
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def table(lines, heading):
    """Name of the row → its cells, from the table behind a line that starts so."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(heading))
    begin = next(i for i in range(begin, len(lines)) if lines[i].startswith("|"))
    end = next((i for i in range(begin, len(lines)) if not lines[i].startswith("|")), len(lines))
    return [cells(line) for line in lines[begin + 2 : end]]


def test_raw_samples_are_stored_in_little_space():
    assert sum(file.stat().st_size for file in tables.RESULTS.iterdir()) < 1_500_000


def test_quantizers_tables_come_out_of_the_samples():
    rows, lines = stored("quantize")
    costs = json.loads((tables.RESULTS / f"quantize-{CPU}.costs.json").read_text(encoding="utf-8"))
    models = dict.fromkeys(row.model for row in rows)
    assert len(models) >= 10
    for model in models:
        measured = {row.variant: row for row in rows if row.model == model}
        spent = {row["variant"]: row for row in costs if row["model"] == model and row["error"] is None}
        page = {variant: others for variant, *others in table(lines, f"## {model}")}
        assert measured.keys() <= page.keys()
        for variant, row in measured.items():
            cost = spent.get(variant)
            taken = {key: cost[key] for key in ("seconds", "baseline_bytes", "peak_bytes", "returned")} if cost else {}
            made = Made(variant, None, fresh.Cost(**taken) if cost else None, cost["qdq_left"] if cost else None)
            decibels = float(page[variant][2] or 0)  # of outputs, which are not stored
            line = dict(zip(quantize.COLUMNS, quantize.line(made, row, measured["fp32"], decibels), strict=True))
            published = dict(zip(quantize.COLUMNS, [variant, *page[variant]], strict=True))
            # The page's speed-ups were computed by an earlier statistic; the intervals of both must overlap.
            newer, older = numbers(line.pop("speed-up")), numbers(published.pop("speed-up"))
            assert not newer or (newer[1] <= older[2] and older[1] <= newer[2])
            assert line == published


@pytest.mark.parametrize("name", ["prune-mobilenet_v2", "prune-mobilenet_v2-photographs"])
def test_pruners_tables_come_out_of_the_samples(name):
    (base, *rows), lines = stored(name)
    labels = [LABEL.fullmatch(row.variant) for row in rows]
    runs = [
        Run(
            label["contestant"], float(label["size"]), stats.speedup(latency(base), latency(row)).value, row.score.value
        )
        for label, row in zip(labels, rows, strict=True)
    ]
    points = curves.points(runs)
    best = curves.unbeaten(points, base.score.value)
    page = [line for line in table(lines, "| contestant") if line[0] != prune.UNPRUNED]
    assert len(points) == len(page) > 5
    for point, line in zip(points, page, strict=True):
        seconds = fresh.Cost(float(line[-1]), 0, 0, None)  # of pruning, which is not stored
        cuts = [Cut(point.contestant, point.size, 0, Made(point.contestant, None, seconds))]
        key = (point.contestant, point.size)
        first = next(row for row, run in zip(rows, runs, strict=True) if (run.contestant, run.size) == key)
        assert list(prune.line(point, point in best, base.score.value, first, cuts)) == line


def test_of_many_times_some_of_each_round_are_stored():
    times = tuple(float(i) for i in range(1, 4101))
    (row, *_), _ = stored("quantize")
    many = latency(row).model_copy(update={"samples_ms": times, "cpu_ms": times, "rounds": (0, 3500)})
    kept = latency(thinned(row.model_copy(update={"latency": many})))
    assert kept.samples_ms == kept.cpu_ms == (*times[:3500:4], *times[3500:])
    assert kept.rounds == (0, 875)
