"""Stored codes: onnxruntime, onnx's reference and our own clean-up all decode what NumPy says, and nothing is left."""

from __future__ import annotations

from unittest import mock

import numpy as np
import onnx
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.core.errors import ModelError
from toolchain.graph import io, run
from toolchain.graph.sizes import sizes
from toolchain.optimization.passes import optimize
from toolchain.quantization.qdq.fusion_audit import optimized_graph
from toolchain.storage import codebook
from toolchain.storage.codebook import CodedWeight, fields, pack, store

BODY = {0: "y = Gemm <transB = 1> (x, w)", 1: "y = MatMul(x, w)"}


def drawn(seed, shape, bits, axis=0, rows=1, scaled=False):
    """A weight by dice, and its values worked out one after the other."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 1 << bits, shape).astype(np.uint8)
    book = rng.standard_normal((rows, 1 << bits)).astype(np.float32)
    scale = rng.standard_normal(shape[axis]).astype(np.float32) if scaled else None
    moved = np.moveaxis(numbers, axis, 0)
    values = np.empty(moved.size, np.float32)
    for i, number in enumerate(moved.reshape(-1)):
        factor = np.float32(1) if scale is None else scale[i // (moved.size // len(moved))]
        values[i] = book[i // (moved.size // rows), number] * factor
    return CodedWeight(numbers, book, bits, axis, scale), np.moveaxis(values.reshape(moved.shape), 0, axis)


def identity(shape):
    """A model that gives out its weight, w + 0."""
    line = f"float[{','.join(map(str, shape))}]"
    return small_models.model("y = Add(x, w)", f"{line} x", f"{line} y", {"w": np.zeros(shape, np.float32)})


def decoded(model, shape):
    return small_models.plain(model, {"x": np.zeros(shape, np.float32)})["y"]


@pytest.fixture
def always(monkeypatch):
    """Also what is too small to be worth it."""
    monkeypatch.setattr(codebook, "DECODER_BYTES", -(1 << 40))


# ----------------------------------------------------------------------------------------------- packing


def test_fields_fill_a_code():
    assert {bits: fields(bits) for bits in (1, 3, 4, 7, 8)} == {
        1: [(1, 0)], 3: [(2, 0), (1, 2)], 4: [(4, 0)], 7: [(4, 0), (2, 4), (1, 6)], 8: [(8, 0)],
    }  # fmt: skip


@given(st.integers(0, 3), st.integers(0, 50), st.integers(0, 99))
def test_bits_lie_one_behind_the_other(power, count, seed):
    width = 1 << power
    numbers = np.random.default_rng(seed).integers(0, 1 << width, count).astype(np.uint8)
    whole = sum(int(number) << width * i for i, number in enumerate(numbers))
    assert pack(numbers, width).tobytes() == whole.to_bytes(-(-count * width // 8), "little")


# ----------------------------------------------------------------------------------------------- storage


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    bits=st.integers(1, 8),
    axis=st.integers(0, 3),
    per_channel=st.booleans(),
    scaled=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_every_way_of_decoding_gives_the_same_bits(shape, bits, axis, per_channel, scaled, seed):
    axis %= len(shape)
    code, expected = drawn(seed, shape, bits, axis, shape[axis] if per_channel else 1, scaled)
    with mock.patch.object(codebook, "DECODER_BYTES", -(1 << 40)):
        stored = store(identity(shape), {"w": code})
    onnx.checker.check_model(onnx.load_model_from_string(io.to_bytes(stored)), full_check=True)
    np.testing.assert_array_equal(code.dense(), expected)
    np.testing.assert_array_equal(decoded(stored, shape), expected)
    np.testing.assert_array_equal(small_models.reference(stored, {"x": np.zeros(shape, np.float32)})["y"], expected)
    np.testing.assert_array_equal(run.run(stored, [{"x": np.zeros(shape, np.float32)}])[0][0], expected)
    folded = optimize(stored).model
    assert small_models.ops(folded) == ["Add"]
    np.testing.assert_array_equal(decoded(folded, shape), expected)
    assert [node.op_type for node in optimized_graph(stored).node] == ["Add"]


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_the_operator_set_stays(always, opset):
    model = small_models.model(
        "y = MatMul(x, w)", "float[2, 9] x", "float[2, 5] y", {"w": np.zeros((9, 5), np.float32)}, opset=opset,
        ir_version=10 if opset > 20 else 8,
    )  # fmt: skip
    code, values = drawn(0, (9, 5), 3, 1, 5, scaled=True)
    stored = store(model, {"w": code})
    assert stored.opset_imports[""] == opset
    onnx.checker.check_model(onnx.load_model_from_string(io.to_bytes(stored)), full_check=True)
    feed = small_models.weights(x=(2, 9))
    np.testing.assert_allclose(small_models.plain(stored, feed)["y"], feed["x"] @ values, rtol=1e-5, atol=1e-5)


def test_an_older_operator_set_is_refused():
    model = small_models.model(
        "y = MatMul(x, w)", "float[2, 9] x", "float[2, 5] y", {"w": np.zeros((9, 5), np.float32)}, opset=10
    )
    with pytest.raises(ModelError, match="operator set 10, and codes can be stored from 11 on; convert it first"):
        store(model, {"w": drawn(0, (9, 5), 3)[0]})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_file_of_bits_runs_as_the_dense_one(axis, bits):
    """Bit-identical outputs, the same operators, and a size that is the codes' and little more."""
    model = small_models.model(BODY[axis], "float[3, 96] x", "float[3, 96] y", small_models.weights(w=(96, 96)))
    code, values = drawn(bits, (96, 96), bits, axis, scaled=True)
    dense = model.clone()
    dense.graph.initializers["w"].const_value = codebook.ir.tensor(values, name="w")
    stored = store(model, {"w": code})
    feed = small_models.weights(x=(3, 96))
    for fused in (False, True):
        found, expected = (small_models.plain(m, feed, fused=fused)["y"] for m in (stored, dense))
        np.testing.assert_array_equal(found, expected)
    assert [n.op_type for n in optimized_graph(stored).node] == [n.op_type for n in optimized_graph(dense).node]
    assert code.nbytes == 96 * 96 * bits // 8 + 4 * (1 << bits) + 4 * 96
    assert code.nbytes < sizes(stored).raw < code.nbytes + 2500
    assert small_models.ops(model) == [BODY[axis].split()[2].split("(")[0]]


def test_two_weights_share_the_constants_of_decoding():
    body = "a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, w)"
    model = small_models.model(body, "float[3, 64] x", "float[3, 64] y", small_models.weights(w=(64, 64), v=(64, 64)))
    stored = store(model, {"w": drawn(0, (64, 64), 2, 1)[0], "v": drawn(1, (64, 64), 2, 1)[0]})
    assert sum(name.startswith("shifts") for name in stored.graph.initializers) == 1
    assert small_models.ops(stored).count("BitShift") == 2, "w is decoded once for its two readers"


def test_what_cannot_be_decoded_or_is_not_worth_it_is_stored_dense():
    branch = "w_used = Identity(w)"
    body = (
        "c = Greater(s, z) a = If (c) <then_branch = t () => (float[64, 64] w_used) { " + branch + " }, "
        "else_branch = e () => (float[64, 64] v_used) { v_used = Neg(w) }> b = MatMul(x, a) y = MatMul(b, v)"
    )
    constants = {**small_models.weights(w=(64, 64), v=(64, 4)), "z": np.float32(0)}
    model = small_models.model(body, "float[3, 64] x, float s", "float[3, 4] y", constants)
    given = {"w": drawn(0, (64, 64), 2)[0], "v": drawn(1, (64, 4), 2)[0]}
    stored = store(model, given)
    assert "BitShift" not in small_models.ops(stored)
    for name, code in given.items():
        np.testing.assert_array_equal(stored.graph.initializers[name].const_value.numpy(), code.dense())


def test_codes_that_do_not_fit_their_book_are_refused():
    numbers, book = np.array([[0, 1, 2]], np.uint8), np.zeros((1, 4), np.float32)
    for wrong in (
        {"bits": 1}, {"bits": 0}, {"bits": 9}, {"book": book[:, :2]}, {"book": np.zeros((2, 4), np.float32)},
        {"scale": np.ones(3, np.float32)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"bits|rows|scale"):
            CodedWeight(**{"codes": numbers, "book": book, "bits": 2, **wrong})


# ----------------------------------------------------------------------------------------------- others


def test_sizes_of_a_model_are_those_of_its_file(tmp_path):
    model = small_models.model(BODY[1], "float[3, 64] x", "float[3, 64] y", {"w": np.zeros((64, 64), np.float32)})
    io.save(model, tmp_path / "m.onnx")
    found = sizes(model)
    assert found == sizes(tmp_path / "m.onnx")
    assert found.raw == (tmp_path / "m.onnx").stat().st_size > 64 * 64 * 4
    assert max(found.zipped, found.wire) < 600
    assert str(found).startswith("0.02 MB, zipped 0.00 MB")


def test_the_command_line_takes_the_file(toolchain, tmp_path):
    model = small_models.model(
        "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", "float[3, 64] x", "float[3, 64] y",
        small_models.weights(w=(64, 64), v=(64, 64)),
    )  # fmt: skip
    given = {name: drawn(i, (64, 64), 3, 1, scaled=True)[0] for i, name in enumerate("wv")}
    source, target = tmp_path / "coded.onnx", tmp_path / "dense.onnx"
    io.save(store(model, given), source)
    assert source.stat().st_size < 64 * 64 * 4
    done = toolchain(f"optimize {source} -o {target}")
    assert done.code == 0, done.err
    folded = io.load(target)
    assert small_models.ops(folded) == ["MatMul", "Relu", "MatMul"]
    for name, code in given.items():
        np.testing.assert_array_equal(folded.graph.initializers[name].const_value.numpy(), code.dense())
    done = toolchain(f"inspect {source}")
    assert done.code == 0, done.err
    assert "MatMul" in done.out
    assert "Gather" not in done.out
    quick = "warmup_s = 0.01\nmin_time_s = 0.02\nmin_runs = 4\nrounds = 3\nprocesses = 1\n"
    (tmp_path / "quick.toml").write_text(f"[bench]\n{quick}")
    done = toolchain(f"bench {source} --recipe {tmp_path}/quick.toml --threads 1")
    assert done.code == 0, done.err
