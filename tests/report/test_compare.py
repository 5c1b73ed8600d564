"""Comparison of results files: baselines, the gate, and malformed files."""

from __future__ import annotations

import json

import pytest
from report_rows import HOST, OTHER, results, row, text

from toolchain.core.errors import ConfigError
from toolchain.report.compare import compare
from toolchain.report.render import render


@pytest.fixture
def before(tmp_path):
    path = tmp_path / "before.json"
    results(row("fp32", 20.0), row("int8", 10.0)).save(path)
    return path


@pytest.fixture
def after(tmp_path):
    path = tmp_path / "after.json"
    results(row("fp32", 20.0, when="2026-02-01"), row("int8", 11.0, when="2026-02-01")).save(path)
    return path


def test_against_a_variant(before):
    passed = compare([before], max_regression=0.05)
    assert passed.regressions == ()
    failed = compare([before], baseline="int8", max_regression=0.05)
    (slow,) = failed.regressions
    assert slow.label == "mobilenetv2 fp32"
    assert (
        "REGRESSION: mobilenetv2 fp32 compared with int8: 100.0 % slower (95 %: 94.5 to 105.6 %), 5.0 % allowed."
        in " ".join(text(failed).split())
    )
    assert json.loads(render(failed, "json"))["regressions"] == ["mobilenetv2 fp32"]


def test_against_a_file(before, after):
    compared = compare([before, after], baseline="before", max_regression=0.05)
    (slow,) = compared.regressions
    assert slow.label == "mobilenetv2 int8 in after"
    assert slow.speedup.value == pytest.approx(10 / 11, rel=0.01)
    assert compare([before, after], baseline="before", max_regression=0.2).regressions == ()
    assert "| int8 (after) |" in render(compared, "markdown")


def test_each_file_is_compared_with_its_own_baseline_variant(before, after):
    (block,) = compare([before, after]).blocks
    speedups = {(r.measurement.variant, r.source): r.speedup.value for r in block.rows if r.speedup}
    assert speedups[("int8", "before")] == pytest.approx(2, rel=0.01)
    assert speedups[("int8", "after")] == pytest.approx(20 / 11, rel=0.01)


def test_noise_does_not_fail_the_gate(tmp_path):
    path = tmp_path / "noisy.json"
    results(row("fp32", 10.0), row("int8", 10.0, spread=0.3)).save(path)
    assert compare([path], max_regression=0.0).regressions == ()


def test_other_hosts_are_never_compared(before, tmp_path):
    path = tmp_path / "pi.json"
    results(row("int8", 1.0, host=OTHER)).save(path)
    first, second = compare([before, path]).blocks
    assert (first.host, second.host) == (HOST, OTHER)
    assert second.rows[0].speedup is None
    with pytest.raises(
        ConfigError, match="no row can be compared with the baseline 'fp32'; measure both together, on the same host"
    ):
        compare([path], max_regression=0.05)


def test_files_of_one_name_are_told_apart(before, tmp_path):
    other = tmp_path / "run" / "before.json"
    results(row("int8", 10.0)).save(other)
    (block,) = compare([before, other], baseline=str(before)).blocks
    assert {r.source for r in block.rows} == {str(before), str(other)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a results file"),
        ('{"schema_version": 1}', "measurements: is missing from this results file"),
        ('{"schema_version": 1, "measurments": []}', "measur"),
        ('{"schema_version": 1, "measurements": []}', "hold no measurement"),
    ],
)
def test_a_malformed_results_file_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        compare([path])


def test_rounds_must_divide_the_samples(before):
    data = json.loads(before.read_text())
    data["measurements"][0]["latency"]["rounds"] = [0, 500]
    before.write_text(json.dumps(data))
    with pytest.raises(
        ConfigError, match=r"before\.json: measurements\.0\.latency: rounds \[0, 500\] do not divide 90 samples"
    ):
        compare([before])


def test_bad_arguments(before):
    with pytest.raises(ConfigError, match="no results file"):
        compare([])
    with pytest.raises(ConfigError, match=r"max_regression is -0\.1"):
        compare([before], max_regression=-0.1)
    with pytest.raises(ConfigError, match="no such results file"):
        compare([before.with_name("gone.json")])
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        compare([before], baseline="int9")


def test_a_row_without_a_baseline_is_named(before, tmp_path):
    path = tmp_path / "after.json"
    results(row("int8", 10.1), row("int4", 3.0)).save(path)
    compared = compare([before, path], baseline="before", max_regression=0.05)
    assert [r.label for r in compared.without_baseline] == ["mobilenetv2 int4 in after"]
    shown = " ".join(text(compared).split())
    assert "No baseline to compare with: mobilenetv2 int4 for host in after." in shown
    assert "mobilenetv2 int8 in after compared with before: no significant difference (95 %:" in shown


def test_other_cores_of_the_same_host_are_never_compared(tmp_path):
    big, little = row("fp32", 20.0), row("fp32", 60.0)
    little = little.model_copy(update={"latency": little.latency.model_copy(update={"cpus": (0, 1)})})
    blocks = compare([results_file(tmp_path, big, little)]).blocks
    assert [block.cpus for block in blocks] == [(), (0, 1)]
    assert "The tables differ in the cores they were pinned to: no speed-up is" in text(
        compare([tmp_path / "some.json"])
    )


def results_file(folder, *rows):
    results(*rows).save(folder / "some.json")
    return folder / "some.json"
