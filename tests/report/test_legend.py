"""The legend explains what is in the table, and nothing else."""

from __future__ import annotations

from report_rows import ACCURACY, AGREEMENT, DEMO, latency, results, row

from toolchain.formats.results import Original
from toolchain.report.cells import table_cells
from toolchain.report.compare import Comparison, compare_results
from toolchain.report.derive import derive
from toolchain.report.legend import legend, notes, row_names, scores_text


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
    meaning = words(row("int8", 10.0, score=AGREEMENT))["agreement"]
    assert meaning.startswith("≈ how often the model gives the same answer as the original (64 samples;")
    assert meaning.endswith("; not accuracy")


def test_a_column_of_agreement_alone_is_named_so():
    """A reader who sees the table without its legend must not take it for accuracy."""
    for score, other, header in ((AGREEMENT, AGREEMENT, "agreement"), (ACCURACY, AGREEMENT, "score")):
        (block,) = derive([(None, results(row("fp32", 9.0, score=score), row("int8", 5.0, score=other)))])
        headers, cells = table_cells(block)
        assert [h for h in headers if h in ("score", "agreement")] == [header]
        assert {len(line) for line in cells} == {len(headers)}


def test_a_model_that_stayed_float_is_explained():
    assert words(row("fp32", 9.0), row("float", 9.0))["float"] == "no operator is int8"
    assert "float" not in words(row("fp32", 9.0), row("int8", 5.0))


def test_the_users_own_file_is_compared_with_the_float_model():
    own = Original(name="mine.onnx", size_bytes=2_500_000, latency=latency(20.0))
    faster = row("fp32", 10.0).model_copy(update={"original": own})
    (line,) = [line for line in notes(Comparison(derive([(None, results(faster))]))) if "mine.onnx" in line]
    assert line.startswith("mobilenetv2 fp32: your own file mine.onnx has 2.5 MB and takes 20.0 ms; compared")
    assert "faster" in line


def test_scores_in_a_sentence():
    agreed = scores_text(AGREEMENT.model_copy(update={"value": 1.0}), AGREEMENT, "int8")
    assert agreed == "int8 agrees with float on 64 held-out samples: 0.9823 (how often, or how nearly; not accuracy)"
    assert scores_text(ACCURACY, ACCURACY, "int8") == "score: float 0.7073, int8 0.7073"


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
