"""Embedding tables as int8 rows: which tables, how exact, and that only requested rows are computed with."""

import numpy as np
import onnxruntime as ort
import pytest
import quantize_by_hand as by_hand
import small_models

from toolchain.graph import io, run
from toolchain.quantization.qdq.embedding_tables import MIN_TABLE_BYTES, quantize_rows
from toolchain.quantization.qdq.fragments import fragments
from toolchain.quantization.qdq.fusion_audit import audit, optimized_graph
from toolchain.quantization.selection import select

WIDTH = 32
ROWS = MIN_TABLE_BYTES // 4 // WIDTH
IDS = "int64[N, 3] ids"
LOOK_UP = "[look] y = Gather(t, ids)"


def table(rows=ROWS, width=WIDTH, seed=0):
    """Rows of very different sizes, one of them all zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((rows, width)) * np.exp(rng.standard_normal((rows, 1)) * 3)
    rows[0] = 0
    return rows.astype(np.float32)


def oracle(array, ids):
    """Round to 255 steps per row, by the definition, in float64."""
    scale = np.abs(array.astype(np.float64)).max(axis=1, keepdims=True) / 127
    steps = np.divide(array, scale, out=np.zeros(array.shape), where=scale > 0)
    return (np.rint(steps) * scale)[ids]


def build(body=LOOK_UP, inputs=IDS, outputs="float[?, ?, ?] y", constants=None):
    return by_hand.named(body, inputs, outputs, {"t": table()} if constants is None else constants)


def choice(model, name="look", **options):
    return next(c for c in select(model, **options).choices if c.node == name)


FEED = {"ids": np.array([[0, 1, 2], [-1, 2, ROWS - 1]])}


@pytest.mark.parametrize("encoding", ["u8", "s8"])
def test_rows_come_back_within_their_own_step(encoding):
    model = build()
    plan, written = by_hand.quantized(model, [FEED], encoding)
    assert plan.tables["look"].values.dtype == np.int8
    for fused in (False, True):
        found = small_models.plain(written, FEED, fused=fused)["y"]
        np.testing.assert_allclose(found, oracle(table(), FEED["ids"]), rtol=1e-6, atol=1e-30)


def test_the_choice_says_what_it_is():
    found = choice(build())
    assert (found.int8, found.precision) == (False, "int8 storage")
    assert "table is stored as int8" in found.reason


def test_the_file_shrinks_to_a_quarter():
    model = build(constants={"t": table(4 * ROWS, 128)})
    _, written = by_hand.quantized(model, [FEED])
    assert io.weight_bytes(written) == pytest.approx(io.weight_bytes(model) / 4, rel=0.04)


def test_nothing_of_the_size_of_the_table_is_computed():
    _, written = by_hand.quantized(build(), [FEED])
    graph = optimized_graph(written)
    assert audit(graph, set()).clean
    assert [tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) == ROWS * WIDTH] == [3], "int8"
    assert sorted(node.op_type for node in graph.node) == ["Cast", "Gather", "Gather", "Mul"]


def test_the_runtimes_own_format_stores_integers_too(tmp_path):
    _, written = by_hand.quantized(build(), [FEED])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(io.to_bytes(written), options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "m.ort").stat().st_size < ROWS * WIDTH * 4 / 2
    [found] = ort.InferenceSession(tmp_path / "m.ort").run(None, FEED)
    np.testing.assert_array_equal(found, run.run(written, [FEED])[0][0])


def test_two_readers_share_one_table():
    model = build("[look] a = Gather(t, ids) [again] b = Gather(t, more) [y] y = Add(a, b)", IDS + ", int64[N, 3] more")
    feed = {**FEED, "more": FEED["ids"][::-1].copy()}
    plan, written = by_hand.quantized(model, [feed])
    assert plan.tables["look"] is plan.tables["again"]
    assert io.weight_bytes(written) < io.weight_bytes(model) / 3
    expected = oracle(table(), feed["ids"]) + oracle(table(), feed["more"])
    np.testing.assert_allclose(small_models.plain(written, feed)["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_product_that_reads_the_rows_is_int8_as_ever():
    constants = {"t": table(), **small_models.weights(w=(WIDTH, 8))}
    model = build("[look] e = Gather(t, ids) [product] y = MatMul(e, w)", constants=constants)
    plan, written = by_hand.quantized(model, [FEED])
    assert plan.int8_nodes() == {"product"}
    assert audit(optimized_graph(written), plan.int8_nodes()).clean
    assert [part.nodes for part in fragments(model, plan, "u8")] == [("product",)]
    step = plan.activations["e"].scale * np.abs(constants["w"]).sum(axis=0).max()
    expected = table()[FEED["ids"]] @ constants["w"]
    assert np.abs(small_models.plain(written, FEED, fused=True)["y"] - expected).max() < 2 * step


REFUSED = {
    "small": (LOOK_UP, IDS, {"t": table(ROWS - 1)}),
    "narrow": (LOOK_UP, IDS, {"t": table(ROWS * 4, 8)}),
    "not along rows": ("[look] y = Gather<axis = 1>(t, ids)", IDS, {"t": table().T.copy()}),
    "computed": (LOOK_UP, f"{IDS}, float[{ROWS}, {WIDTH}] t", {}),
    "half precision": (LOOK_UP, IDS, {"t": np.ones((ROWS * 2, WIDTH), np.float16)}),
    "read by another operator, too": ("[look] y = Gather(t, ids) z = Neg(t)", IDS, None),
    "read by a float product, too": ("[look] y = Gather(t, ids) z = MatMul(t, v)", f"{IDS}, float[{WIDTH}, 2] v", None),
    "not finite": (LOOK_UP, IDS, {"t": np.where(table() > 1, np.float32(np.inf), table())}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_tables_stay_as_they_are(case):
    body, inputs, constants = REFUSED[case]
    outputs = "float16[?, ?, ?] y" if case == "half precision" else "float[?, ?, ?] y"
    outputs += ", float[?, ?] z" if " z " in body else ""
    found = choice(build(body, inputs, outputs, constants))
    assert found.precision == "float"
    assert found.reason


@pytest.mark.parametrize("kept", ["look", "Gather"])
def test_the_recipe_keeps_a_table_float(kept):
    assert choice(build(), keep_float=(kept,)).reason == "the recipe keeps it float"


def test_a_row_of_zeros_and_the_smallest_numbers_have_a_scale():
    rows = np.zeros((2, 16), np.float32)
    rows[1, 0] = 1e-40
    found = quantize_rows(rows)
    assert (found.scales > 0).all()
    np.testing.assert_allclose(found.dequantized(), rows, atol=1e-30)
