"""The legend explains what is in the table, and nothing else."""

from __future__ import annotations

from report_rows import ACCURACY, AGREEMENT, DEMO, results, row

from toolchain.report.compare import Comparison, compare_results
from toolchain.report.derive import derive
from toolchain.report.legend import legend, notes, row_names


def words(*rows) -> dict[str, str]:
    return dict(legend(Comparison(derive([(None, results(*rows))]))))


def test_only_what_occurs_is_explained():
    assert list(words(row("fp32", 20.0))) == ["MB", "median ms", "p90 ms", "RAM", "measured"]
    assert list(words(row("fp32", None, evidence="estimated"))) == ["MB", "RAM", "estimated"]
    both = words(row("fp32", 20.0, score=ACCURACY), row("int8", 10.0, evidence="host", score=AGREEMENT))
    assert list(both) == ["MB", "score", "median ms", "p90 ms", "speed-up", "RAM", "measured", "this host"]


def test_times_of_this_computer_are_explained():
    meaning = words(row("int8", 10.0, evidence="host"))["this host"]
    assert meaning == "in ( ): timed on this computer, because the device was not connected; expect other times there"


def test_agreement_is_not_called_accuracy():
    meaning = words(row("int8", 10.0, score=AGREEMENT))["score"]
    assert meaning.startswith("≈ how often the model gives the same answer as the original (64 samples;")
    assert meaning.endswith("; not accuracy")


def test_cpu_times_are_mentioned_with_one_thread():
    rows = [row(variant, ms, threads=1) for variant, ms in (("fp32", 20.0), ("int8", 10.0))]
    timed = [
        r.model_copy(update={"latency": r.latency.model_copy(update={"cpu_ms": r.latency.samples_ms})}) for r in rows
    ]
    assert "CPU times are compared" not in words(*rows)["speed-up"]
    assert words(*timed)["speed-up"].endswith("; with one thread, CPU times are compared")


def test_rows_of_one_variant_are_named_together():
    (block,) = derive([(None, DEMO)])
    named = row_names(block.rows)
    assert named == "mobilenetv2 fp32 for host; mobilenetv2 int8 for host, android-arm64-dotprod, raspberry-pi-zero-2w"
    (single,) = derive([(None, results(row("fp32", 9.0, threads=1)))])
    assert row_names(single.rows, with_threads=True) == "mobilenetv2 fp32 with 1 thread for host"


def test_a_row_that_passes_the_gate_says_by_how_much_it_differs():
    compared = compare_results([(None, results(row("fp32", 20.0), row("int8", 10.0)))], max_regression=0.05)
    (note,) = notes(compared)
    assert note.startswith("mobilenetv2 int8 compared with fp32: 50.0 % faster (95 %: ")
