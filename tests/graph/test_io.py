"""Files come back as they went, wherever they go; damaged ones are refused in one sentence."""

import contextlib
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import numpy_helper

from toolchain.core.errors import ModelError
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import edit, io

F32 = np.dtype("float32")


def tiny():
    return small_models.proto(
        "h = MatMul(x, w) y = Mul(h, factor)",
        "float[N, 300] x",
        "float[N, 4] y",
        {**small_models.weights(w=(300, 4)), "factor": np.float32(0.5)},
    )


@pytest.fixture
def feed():
    return {"x": np.random.default_rng(3).standard_normal((2, 300)).astype(np.float32)}


@pytest.fixture
def external(tmp_path):
    """A model whose weight lies in a second file."""
    folder = tmp_path / "origin"
    folder.mkdir()
    onnx.save(tiny(), folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=64)
    return folder / "m.onnx"


def answers(path, feed):
    """Outputs of the file at `path`, with external data read by onnx."""
    return small_models.plain(onnx.load(path), feed)["y"]


# --- external data ---


@pytest.mark.parametrize("limit", [10**9, 100], ids=["embedded", "beside"])
def test_external_data_survives_moving_to_another_folder(external, tmp_path, feed, limit, monkeypatch):
    expected = answers(external, feed)
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", limit)
    target = tmp_path / "elsewhere" / "copy.onnx"
    io.save(io.load(external), target)
    shutil.rmtree(external.parent)
    names = sorted(path.name for path in target.parent.iterdir())
    assert names == (["copy.onnx"] if limit > 4800 else ["copy.onnx", "copy.onnx.data"])
    np.testing.assert_array_equal(answers(target, feed), expected)
    moved = target.parent.rename(tmp_path / "third")  # the reference is relative, so the folder may move
    np.testing.assert_array_equal(small_models.plain(io.embedded(io.load(moved / "copy.onnx")), feed)["y"], expected)


def test_a_big_model_can_be_saved_over_itself(external, feed, monkeypatch):
    expected = answers(external, feed)
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", 100)
    io.save(io.load(external), external)
    io.save(io.load(external), external)  # now it reads m.onnx.data and replaces it
    np.testing.assert_array_equal(answers(external, feed), expected)


def test_a_model_stays_usable_after_being_saved_beside(external, tmp_path, feed, monkeypatch):
    expected = answers(external, feed)
    monkeypatch.setattr(io, "EMBED_LIMIT_BYTES", 100)
    loaded = io.load(external)
    for name in ("first", "second"):
        io.save(loaded, tmp_path / name / "m.onnx")
    np.testing.assert_array_equal(answers(tmp_path / "second" / "m.onnx", feed), expected)
    made = ir.from_proto(tiny())
    io.save(made, tmp_path / "third" / "m.onnx")
    np.testing.assert_array_equal(small_models.plain(made, feed)["y"], expected)


def test_missing_external_data_is_named(external):
    (external.parent / "m.bin").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx: its external data file 'm\.bin' is missing; copy it next to"):
        io.load(external)


def test_short_external_data_is_counted(external):
    data = external.parent / "m.bin"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"'m\.bin' has 1000 bytes, and 4800 are needed; copy it again"):
        io.load(external)


def test_weight_bytes_count_external_ones_too(external):
    assert io.weight_bytes(io.load(external)) == io.weight_bytes(ir.from_proto(tiny())) == 4 * 300 * 4 + 4


# --- round trips ---


def test_a_saved_model_is_read_back_the_same(tmp_path, feed):
    io.save(ir.from_proto(tiny()), tmp_path / "new" / "m.onnx")
    stored = onnx.load(tmp_path / "new" / "m.onnx")
    np.testing.assert_array_equal(small_models.plain(stored, feed)["y"], small_models.plain(tiny(), feed)["y"])
    onnx.checker.check_model(stored, full_check=True)


@pytest.mark.parametrize("array", [np.float32(3), np.array(7, np.uint8), np.array(-1, np.int32)])
def test_scalar_constants_stay_scalars_in_the_file(tmp_path, array):
    source = ir.from_proto(tiny())
    edit.add_constant(source.graph, "scalar", np.asarray(array))
    io.save(source, tmp_path / "m.onnx")
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert list(stored["scalar"].dims) == []
    assert list(stored["factor"].dims) == []
    restored = numpy_helper.to_array(stored["scalar"])
    assert restored == array
    assert restored.dtype == array.dtype


def test_ports_are_what_a_session_must_be_fed():
    source = small_models.proto(
        "h = Add(x, extra) y = MatMul(h, w)",
        "float[N, 3] x, float[3, 2] w, float extra, int64[?] ids",
        "float[N, 2] y",
        small_models.weights(w=(3, 2)),
    )
    loaded = ir.from_proto(source)
    assert io.inputs(loaded) == [
        TensorSpec("x", F32, ("N", 3)),
        TensorSpec("extra", F32, ()),
        TensorSpec("ids", np.dtype("int64"), (None,)),
    ]
    assert io.outputs(loaded) == [TensorSpec("y", F32, ("N", 2))]


# --- what is not a model ---


def refused(path):
    with pytest.raises(ModelError) as caught:
        io.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert caught.value.hint
    assert caught.value.exit_code == 2
    return text


def test_missing_file(tmp_path):
    assert "no such file; give the path of an .onnx file" in refused(tmp_path / "none.onnx")


def test_folder(tmp_path):
    assert "is a folder, not an ONNX file" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"import torch\nprint(1)\n" * 20,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"PK\x03\x04" + b"\0" * 60,
        b"\xff" * 9,
    ],
    ids=["text", "png", "zip", "ones"],
)
def test_not_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file" in refused(path)


def test_empty_file_and_model_without_nodes(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    assert "contains no nodes or no outputs" in refused(path)
    onnx.save(small_models.proto("", "float[1] x", "float[1] x"), path)
    assert "contains no nodes or no outputs" in refused(path)


def test_cut_short_anywhere(tmp_path):
    """No prefix is taken for a model, unless all of the graph is in it."""
    whole = small_models.proto(
        "h = MatMul(x, w) y = Mul(h, factor)",
        "float[N, 3] x",
        "float[N, 4] y",
        {**small_models.weights(w=(3, 4)), "factor": np.float32(0.5)},
    ).SerializeToString()
    path = tmp_path / "m.onnx"
    accepted = []
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with contextlib.suppress(ModelError):
            io.load(path)
            accepted.append(length)
    # The opset import is the last field; without it the message still is a model, which convert refuses.
    assert all(length >= len(whole) - 6 for length in accepted), accepted
    path.write_bytes(whole[: len(whole) // 2])
    assert "is not an ONNX file, or is incomplete" in refused(path)
