"""Time by kind of operator, and the note on a sustained run."""

from __future__ import annotations

from rendered import rendered_lines
from report_rows import results, row, text

from toolchain.formats.results import OperatorTime, Window
from toolchain.report.operators import MOST_KINDS, render


def test_kinds_of_operators_by_time():
    times = [OperatorTime(node=f"n{i}", op=op, median_us=us) for i, (op, us) in enumerate(
        [("Conv", 50.0), ("Relu", 10.0), ("Conv", 30.0), *((f"Op{i}", 0.5) for i in range(20))]
    )]  # fmt: skip
    profiled = row("fp32", 20.0).model_copy(update={"operators": tuple(times)})
    lines = rendered_lines(render(results(profiled, row("int8", 10.0))))
    assert [" ".join(line.split()) for line in lines if line.startswith(("Conv", "Relu", "others"))] == [
        "Conv 2 80 80%",
        "Relu 1 10 10%",
        f"others {22 - MOST_KINDS} {(22 - MOST_KINDS) / 2:.0f} {(22 - MOST_KINDS) / 200:.0%}",
    ]
    assert "mobilenetv2 fp32 with 2 threads" in lines[0]
    assert not any("int8" in line for line in lines)


def test_a_sustained_run_in_a_sentence():
    curve = tuple(
        Window(at_s=10.0 * i, p50_ms=20 + i, runs=5, clock_mhz=2400.0 - i, temperature_c=50.0 + i) for i in range(1, 61)
    )
    shown = " ".join(text(results(row("fp32", 20.0).model_copy(update={"sustained": curve}))).split())
    first, last = 23.5, 77.5  # the medians of windows 1 to 6 and 55 to 60
    assert f"run continuously for 10 minutes: {first:.3g} ms at the start, {last:.3g} ms at the end (+230 %)" in shown
    assert "2399 to 2340 MHz; 51 to 110 °C." in shown
    assert "! mobilenetv2 fp32 for host: drifting, 230% slower at the end of 10 minutes" in shown
