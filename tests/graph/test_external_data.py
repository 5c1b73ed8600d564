"""Weights beside a model: layouts that people have are read, and files that do not belong to the model are refused."""

from __future__ import annotations

import os
import shutil

import numpy as np
import onnx
import pytest
import small_models
from onnx import helper, numpy_helper

from toolchain.core.errors import ModelError
from toolchain.graph import io

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)


def save(folder, name="model.onnx", location="model.onnx_data"):
    folder.mkdir(parents=True, exist_ok=True)
    model = small_models.proto("y = MatMul(x, w)", "float[n, 8] x", "float[n, 8] y", {"w": WEIGHT})
    onnx.save(model, folder / name, save_as_external_data=True, location=location, size_threshold=0)
    return folder / name


def names(path, location):
    """Make the model at `path` name another external data file."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    onnx.save(model, path)


def assert_reads(path):
    x = np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(small_models.plain(io.embedded(io.load(path)), {"x": x})["y"], WEIGHT)


@pytest.mark.parametrize("inner", ["", "onnx"])
def test_links_into_a_folder_of_blobs(tmp_path, inner):
    plain, blobs, snapshot = tmp_path / "plain", tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    save(plain)
    blobs.mkdir(parents=True)
    (snapshot / inner).mkdir(parents=True)
    up = "../" * (3 if inner else 2)
    for name, blob in (("model.onnx", "1111"), ("model.onnx_data", "2222")):
        shutil.copy(plain / name, blobs / blob)
        (snapshot / inner / name).symlink_to(f"{up}blobs/{blob}")
    assert_reads(snapshot / inner / "model.onnx")


def test_a_link_beside_the_model(tmp_path):
    path = save(tmp_path, location="real.bin")
    (tmp_path / "link.bin").symlink_to("real.bin")
    names(path, "link.bin")
    assert_reads(path)


def test_a_model_in_a_folder_that_is_a_link(tmp_path):
    save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert_reads(tmp_path / "link" / "model.onnx")


def test_hard_links(tmp_path):
    path = save(tmp_path)
    os.link(tmp_path / "model.onnx_data", tmp_path / "second")
    assert_reads(path)


@pytest.mark.parametrize("location", ["my weights.bin", "weights/part one.bin", "wëights.bin", "./w.bin"])
def test_spaces_folders_and_accents_in_names(tmp_path, location):
    (tmp_path / "my model" / "weights").mkdir(parents=True)
    assert_reads(save(tmp_path / "my model", "my net.onnx", location))


def test_a_path_relative_to_the_working_directory(tmp_path, monkeypatch):
    save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert_reads("model.onnx")


def _parent(path, outside):
    names(path, "../outside.bin")


def _hidden_parent(path, outside):
    names(path, "weights/../../outside.bin")


def _windows_parent(path, outside):
    names(path, r"..\outside.bin")


def _absolute(path, outside):
    names(path, str(outside))


def _link(path, outside):
    (path.parent / "model.onnx_data").unlink()
    (path.parent / "model.onnx_data").symlink_to(outside)


def _linked_folder(path, outside):
    (path.parent / "sub").symlink_to(outside.parent)
    names(path, f"sub/{outside.name}")


def _linked_model_and_stranger(path, outside):
    """The model is a link, but its data links to another folder than the real model's."""
    real = path.parent.parent / "real"
    real.mkdir()
    path.rename(real / "model.onnx")
    path.symlink_to(real / "model.onnx")
    _link(path, outside)


def _link_to_itself(path, outside):
    (path.parent / "loop.bin").symlink_to("loop.bin")
    names(path, "loop.bin")


def _folder(path, outside):
    (path.parent / "sub").mkdir()
    names(path, "sub")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_parent, r"'../outside.bin' lies outside the model's folder; save model and weights again in one folder"),
        (_hidden_parent, r"'weights/../../outside.bin' lies outside the model's folder; "),
        (_windows_parent, "outside.bin' lies outside the model's folder; "),
        (_absolute, "outside.bin' is named by an absolute path; "),
        (_link, r"'model.onnx_data' is a link to '.*outside.bin', outside the model's folder; copy the file itself"),
        (_linked_folder, r"'sub/outside.bin' is a link to '.*outside.bin', outside the model's folder; "),
        (_linked_model_and_stranger, r"'model.onnx_data' is a link to '.*outside.bin', outside "),
        (_link_to_itself, "'loop.bin' is missing; copy it next to the model"),
        (_folder, "'sub' is missing; copy it next to the model"),
    ],
)
def test_files_that_do_not_belong_to_the_model(tmp_path, change, message):
    path = save(tmp_path / "folder")
    outside = tmp_path / "secret" / "outside.bin"
    outside.parent.mkdir()
    shutil.copy(tmp_path / "folder" / "model.onnx_data", outside)
    change(path, outside)
    with pytest.raises(ModelError, match=rf"model\.onnx: its external data file .*{message}"):
        io.load(path)


def test_a_tensor_of_a_constant_node_is_checked_too(tmp_path):
    path = save(tmp_path)
    model = onnx.load(path, load_external_data=False)
    weight = model.graph.initializer.pop()
    weight.external_data[0].value = "../outside.bin"
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"'../outside.bin' lies outside the model's folder"):
        io.load(path)


def test_a_tensor_of_a_subgraph_is_read(tmp_path):
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    value = helper.make_tensor_value_info
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", 1, None)], [weight]),
        helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [value("e", 1, None)]),
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    ports = [value("x", 1, [8, 8]), value("c", onnx.TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", ports, [value("y", 1, [8, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    model = io.embedded(io.load(tmp_path / "m.onnx"))
    got = small_models.plain(model, {"x": np.eye(8, dtype=np.float32), "c": np.array(True)})
    np.testing.assert_array_equal(got["y"], WEIGHT)
