"""The results table in every format, from invented measurements with known statistics."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from rendered import rendered
from report_rows import AGREEMENT, DEMO, HOST, OTHER, results, row, text
from rich.cells import cell_len
from rich.console import Group

from toolchain.core.errors import ConfigError
from toolchain.devices.catalogue import known_targets, load_target
from toolchain.report.derive import derive
from toolchain.report.profiles import list_targets, show_target
from toolchain.report.render import FORMATS, render


def one_row(shown: str, *words: str) -> str:
    lines = [line for line in shown.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, lines
    return lines[0]


def test_table_says_it_all_within_100_columns():
    shown = text(DEMO)
    assert max(map(cell_len, shown.splitlines())) <= 100
    assert "…" not in shown
    fp32 = one_row(shown, "fp32", "14.0").split()
    assert fp32[:4] + fp32[-3:] == ["host", "fp32", "14.0", "0.7073", "1×", "90", "measured"]
    assert float(fp32[4]) == pytest.approx(24.0, abs=0.2)
    assert (fp32[5], float(fp32[6])) == ("±0%", pytest.approx(24.3, abs=0.3))
    assert "2.00×" in one_row(shown, "host", "int8", "measured", "14.0")
    title, machine = shown.splitlines()[:2]
    assert title == "mobilenetv2"
    assert machine == "bench-box: AMD EPYC 9R14 96-Core Processor, 2 cores, 23.5 GiB, onnxruntime 1.32.0, 2 threads"


def test_names_stand_on_one_line_and_the_model_only_where_there_are_several():
    for target in known_targets():
        shown = text(results(row("fp32", 20.0), row("int8", 10.0, target=target, evidence="host", score=AGREEMENT)))
        assert "int8" in one_row(shown, target, "this host") if target != "host" else shown
        assert shown.count("mobilenetv2") == 1
    several = results(
        row("fp32", 20.0, model="mobilenet_v2"),
        row("int8", 10.0, model="mobilenet_v2", target="android-arm64-dotprod", evidence="host", spread=0.3),
        row("fp32", 20.0, model="ppocr_cls"),
    )
    shown = text(several)
    assert "mobilenet_v2 android-arm64-dotprod int8" in shown
    assert "ppocr_cls" in one_row(shown, "ppocr_cls", "fp32")
    assert max(map(cell_len, shown.splitlines())) <= 100


def test_digits_stand_below_each_other():
    lines = [line for line in text(DEMO).splitlines() if " int8 " in line or " fp32 " in line][:4]
    assert len(lines) == 4
    for column in (r"±\d+%", r"\d×"):
        assert len({re.search(column, line).end() for line in lines}) == 1, lines


def test_copies_of_the_hosts_row_repeat_no_remark():
    """Rows of absent devices are the host's own samples under another name."""
    measured = row("int8", 10.0, target="host", spread=0.3)
    copies = [measured.model_copy(update={"target": name, "evidence": "host", "note": "same integers"})
              for name in ("raspberry-pi-5", "android-arm64-dotprod")]  # fmt: skip
    shown = " ".join(text(results(row("fp32", 20.0), measured, *copies)).split())
    assert shown.count("noisy") == shown.count("same integers") == 1
    assert "! mobilenetv2 int8 for host, raspberry-pi-5, android-arm64-dotprod: noisy, " in shown
    assert " mobilenetv2 int8 for raspberry-pi-5, android-arm64-dotprod: same integers." in shown


@pytest.mark.parametrize("ms", [0.0123, 1.0, 99.96, 12345.0])
def test_wide_numbers_and_long_names_fit_too(ms):
    rows = [
        row("fp32", ms * 3, model="paraphrase-multilingual-MiniLM-L12-v2"),
        row("int8-percentile", ms, model="paraphrase-multilingual-MiniLM-L12-v2", target="android-arm64-dotprod",
            evidence="host", score=AGREEMENT, spread=0.3),
    ]  # fmt: skip
    rows = [r.model_copy(update={"size_bytes": 471_123_456}) for r in rows]
    shown = text(results(*rows))
    assert "…" not in shown
    assert max(map(cell_len, shown.splitlines())) <= 100


@pytest.mark.parametrize(("width", "left_out"), [(80, ""), (72, "p90 ms"), (60, "p90 ms, RAM, evidence")])
def test_no_number_is_cut_in_a_narrow_terminal(width, left_out):
    shown = rendered(render(DEMO), width)
    assert "…" not in shown
    assert ("too narrow" in shown) == bool(left_out)
    assert f"(the terminal is too narrow for {left_out})" in shown or not left_out
    for number in ("0.7073", "≈0.9823", "2.00×", "(2.50×)", "14.0"):
        assert number in shown, number
    assert re.search(r"^raspberry-pi- .*\nzero-2w", shown, re.MULTILINE)


@pytest.mark.parametrize("format", ["table", "markdown"])
def test_times_of_this_computer_cannot_be_mistaken_for_the_devices(format):
    shown = text(DEMO) if format == "table" else render(DEMO, format)
    substitutes = [line for line in shown.splitlines() if "int8" in line and "≈0.9823" in line]
    assert len(substitutes) == 2
    for line in substitutes:
        assert "this host" in line
        assert "measured" not in line
        p50, p90, faster = re.findall(r"\(([^)]*)\)", line)
        assert float(p50.split()[0]) == pytest.approx(10, abs=1)
        assert float(p90) == pytest.approx(12, abs=3)
        assert float(faster.removesuffix("×")) == pytest.approx(2.4, abs=0.3)
    said = " ".join(shown.split())
    assert "in ( ): timed on this computer, because the device was not connected; expect other times there" in said
    assert "≈ how often the model gives the same answer as the original (64 samples;" in said
    assert "not accuracy" in said


def test_unsubstitutesy_rows_are_marked_and_explained():
    shown = text(DEMO)
    assert "!" in one_row(shown, "raspberry-pi-", "int8", "14.0")
    assert "!" not in one_row(shown, "android-", "int8", "14.0")
    note = one_row(shown, "! mobilenetv2 int8 for raspberry-pi-zero-2w")
    assert "noisy, " in note
    assert "mobilenetv2 int8 for android-arm64-dotprod: Softmax stays float" in shown


def test_a_speedup_that_may_be_none_says_so():
    shown = text(results(row("fp32", 10.0), row("int8", 10.0, spread=0.05)))
    assert "~1.0" in shown or "~0.9" in shown
    assert "the 95 % interval of the speed-up includes 1, so there may be no difference" in shown


def test_hosts_threads_and_runtimes_stand_apart():
    rows = [
        row("fp32", 20.0),
        row("int8", 10.0),
        row("int8", 5.0, host=OTHER),
        row("int8", 6.0, threads=1),
        row("int8", 7.0, host=HOST.model_copy(update={"onnxruntime": "1.23.0"})),
    ]
    blocks = derive([(None, results(*rows))])
    assert [(b.host.name, b.host.onnxruntime, b.threads, len(b.rows)) for b in blocks] == [
        ("bench-box", "1.32.0", 2, 2),
        ("pi", "1.32.0", 2, 1),
        ("bench-box", "1.32.0", 1, 1),
        ("bench-box", "1.23.0", 2, 1),
    ]
    assert [r.speedup is not None for b in blocks for r in b.rows] == [False, True, False, False, False]
    shown = text(results(*rows))
    assert len(re.findall("target +variant", shown)) == 4
    assert "The tables differ in processor, number of cores, onnxruntime and threads: no speed-up is computed" in shown


def test_rows_without_latency_join_their_hosts_block():
    rows = [row("stored", None), row("fp32", 20.0), row("emulated", None, evidence="emulated", target="rk3588")]
    (block,) = derive([(None, results(*rows))])
    assert {r.measurement.variant for r in block.rows} == {"stored", "fp32", "emulated"}
    assert block.threads == 2
    assert "emulated   run in an emulator: its answers count, its times do not" in text(results(*rows))


def test_the_baseline_is_of_the_same_model_and_rather_of_the_same_target():
    rows = [
        row("fp32", 20.0),
        row("fp32", 40.0, target="rk3588", evidence="host"),
        row("int8", 10.0, target="rk3588", evidence="host"),
        row("int8", 10.0, target="raspberry-pi-5", evidence="host"),
        row("fp32", 90.0, model="resnet50"),
        row("int8", 30.0, model="resnet50"),
    ]
    (block,) = derive([(None, results(*rows))])
    speedups = [r.speedup.value if r.speedup else None for r in block.rows]
    assert [None if v is None else round(v, 1) for v in speedups] == [None, None, 4.0, 2.0, None, 3.0]


def test_unknown_baseline_and_format():
    with pytest.raises(ConfigError, match="unknown baseline 'fp23'; did you mean 'fp32'"):
        derive([(None, DEMO)], baseline="fp23")
    with pytest.raises(ConfigError, match="unknown format 'markdwon'; did you mean 'markdown'"):
        render(DEMO, "markdwon")
    with pytest.raises(ConfigError, match="no measurement"):
        render(results())


def test_brackets_in_names_are_text_and_pipes_do_not_break_markdown():
    odd = results(row("[bold]x[/bold]", 10.0, model="a|b"))
    assert "[bold]x" in text(odd)
    table = render(odd, "markdown").splitlines()
    assert len({line.replace("\\|", "").count("|") for line in table if line.startswith("|")}) == 1


def test_markdown_shows_the_interval():
    line = one_row(render(DEMO, "markdown"), "| fp32 |")
    low, high = line.split("[")[1].split("]")[0].split("–")
    assert float(low) <= 24.0 <= float(high)


def test_csv_and_json_hold_full_numbers():
    records = list(csv.DictReader(io.StringIO(render(DEMO, "csv"))))
    data = json.loads(render(DEMO, "json"))
    assert len(records) == len(data["hosts"][0]["rows"]) == 4
    for record, as_json, m in zip(records, data["hosts"][0]["rows"], DEMO.measurements, strict=True):
        assert float(record["p50_ms"]) == as_json["p50_ms"] == pytest.approx(np.median(m.latency.samples_ms))
        assert float(record["p50_low_ms"]) <= float(record["p50_ms"]) <= float(record["p50_high_ms"])
        assert record["evidence"] == as_json["evidence"] == m.evidence
        assert int(record["peak_load_bytes"]) == 90_000_000
    assert records[0]["cpu"] == HOST.cpu
    assert records[1]["speedup"] == str(data["hosts"][0]["rows"][1]["speedup"])
    assert data["regressions"] == []


def test_every_format_takes_several_results():
    for format in FORMATS:
        assert render([DEMO, results(row("fp32", 9.0, host=OTHER))], format)


def test_profiles_are_shown():
    targets = [load_target(name) for name in known_targets()]
    shown = rendered(Group(list_targets(targets), *map(show_target, targets)))
    for target in targets:
        assert shown.count(target.name) >= 2
        assert f"in multiples of {target.channel_multiple}" in shown
    assert "weights are chosen overflow-free" in shown
