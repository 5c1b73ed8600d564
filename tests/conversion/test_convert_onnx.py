"""ONNX files of users: old, damaged, from other programs, with external data."""

import hashlib
import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.conversion import from_onnx
from toolchain.conversion.parity import measure
from toolchain.conversion.source import convert
from toolchain.core.errors import GateError, InputError, ModelError
from toolchain.formats.tensor_spec import TensorSpec
from toolchain.graph import io, query, run

F = TensorProto.FLOAT
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def conv_net(opset=17, ir_version=8, batch="batch", old_inputs=False):
    """Conv, BatchNormalization, Softmax over all but the batch: opset 12 and 13 mean different axes by default."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "scale": rng.uniform(0.5, 2, 4),
        "shift": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "var": rng.uniform(0.5, 2, 4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Softmax", ["b"], ["y"], name="softmax"),
    ]
    info = helper.make_tensor_value_info
    inputs = [info("x", F, [batch, 3, 8, 8])]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    if old_inputs:
        inputs += [info(tensor.name, F, list(tensor.dims)) for tensor in tensors]
    graph = helper.make_graph(nodes, "net", inputs, [info("y", F, [batch, 4, 6, 6])], tensors)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="maker")


def saved(model, path):
    onnx.save(model, path)
    return path


def one_node(op, domain="", opset=17, **imports):
    info = helper.make_tensor_value_info
    node = helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)
    graph = helper.make_graph([node], "g", [info("x", F, [2, 3])], [info("y", F, [2, 3])])
    ids = [helper.make_opsetid("", opset), *(helper.make_opsetid(k.replace("_", "."), v) for k, v in imports.items())]
    return helper.make_model(graph, opset_imports=ids, ir_version=8)


# --- accepted files ---


def test_a_current_file_is_taken_as_it_is(tmp_path):
    path = saved(conv_net(), tmp_path / "net.onnx")
    got = convert(path)
    assert got.parity is None
    assert got.notes == ()
    assert got.exporter == "maker"
    assert got.source.kind == "onnx"
    assert got.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [str(spec) for spec in io.inputs(got.model)] == ["x: float32[batch, 3, 8, 8]"]


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 16])
def test_old_opsets_are_upgraded_and_compared(tmp_path, opset):
    path = saved(conv_net(opset, ir_version=4), tmp_path / "net.onnx")
    got = convert(str(path))
    assert query.opset(got.model) == 17
    assert got.model.ir_version == 8
    assert f"opset {opset} was upgraded to 17" in got.notes
    assert got.parity is not None
    assert got.parity.samples >= 3
    assert got.parity.max_rel_error < 1e-6
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32)}
    np.testing.assert_allclose(run.run(got.model, [feed])[0][0], run.run(run.session(path), [feed])[0][0], atol=1e-6)


def test_weights_listed_as_inputs_become_constants(tmp_path):
    path = saved(conv_net(9, ir_version=3, old_inputs=True), tmp_path / "net.onnx")
    got = convert(path)
    assert [spec.name for spec in io.inputs(got.model)] == ["x"]
    assert [value.name for value in got.model.graph.inputs] == ["x"]
    conv = next(node for node in got.model.graph if node.op_type == "Conv")
    assert query.constant(conv.inputs[1]) is not None
    assert "5 weights were listed as inputs and are now constants" in got.notes


def test_exporter_parity_and_notes_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="toolchain.conversion"):
        got = convert(saved(conv_net(12), tmp_path / "net.onnx"))
    assert f"net.onnx, written by {got.exporter}" in caplog.text
    assert f"largest relative error {got.parity.max_rel_error:.1e} on {got.parity.samples} samples" in caplog.text
    assert "opset 12 was upgraded to 17" in caplog.text


def test_an_ir_version_newer_than_needed_is_lowered(tmp_path):
    path = saved(conv_net(ir_version=11), tmp_path / "net.onnx")
    assert convert(path).model.ir_version == 8


def test_freeze_reaches_the_outputs(tmp_path):
    got = convert(saved(conv_net(12), tmp_path / "net.onnx"), freeze={"batch": 2})
    assert [spec.dims for spec in (*io.inputs(got.model), *io.outputs(got.model))] == [(2, 3, 8, 8), (2, 4, 6, 6)]
    assert "fixed batch = 2" in got.notes
    assert got.parity is not None
    assert got.parity.samples >= 3


def test_external_data(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(conv_net(12), path, save_as_external_data=True, location="net.data", size_threshold=0)
    whole = convert(saved(conv_net(12), tmp_path / "whole.onnx"))
    got = convert(path)
    elsewhere = tmp_path / "other" / "out.onnx"
    io.save(got.model, elsewhere)
    (tmp_path / "net.data").unlink()
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32)}
    np.testing.assert_array_equal(run.run(io.load(elsewhere), [feed]), run.run(whole.model, [feed]))


def test_the_hash_covers_external_data(tmp_path):
    hashes = set()
    for value in (1.0, 2.0):
        model = conv_net()
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(4, value, np.float32), "scale"))
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
        hashes.add(convert(tmp_path / "net.onnx").source.sha256)
    assert len(hashes) == 2


def test_operators_of_onnxruntime_and_of_the_file_itself(tmp_path):
    fused = convert(saved(one_node("Gelu", "com.microsoft", com_microsoft=1), tmp_path / "gelu.onnx"))
    assert len(run.run(fused.model, [{"x": np.ones((2, 3), np.float32)}])) == 1
    model = one_node("Twice", "own.ops", own_ops=1)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("own.ops", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    convert(saved(model, tmp_path / "function.onnx"))


# --- refused files ---


def test_paths(tmp_path):
    with pytest.raises(ModelError, match=r"no such file; give an \.onnx or \.pt2 file, or package\.module:callable"):
        convert(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        convert(tmp_path)
    for name, said in (("w.pth", "holds weights, not a model"), ("m.tflite", "tf2onnx"), ("m.ort", "packaged")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ModelError, match=said):
            convert(tmp_path / name)
    path = saved(conv_net(), tmp_path / "net.onnx")
    inputs = [TensorSpec("x", np.dtype("float32"), (1,))]
    with pytest.raises(InputError, match=r"net\.onnx: states its inputs itself, so --input x does not apply"):
        convert(path, inputs=inputs)
    with pytest.raises(ModelError, match=r"w\.pth: holds weights, not a model; .* give package\.module:function"):
        convert(tmp_path / "w.pth", inputs=inputs)  # the file is the problem, not the option


def test_python_code_is_given_as_a_function(tmp_path):
    (tmp_path / "net.py").write_text("def build(): ...")
    with pytest.raises(ModelError, match=r"is Python code, not a model; give package\.module:function"):
        convert(tmp_path / "net.py")
    with pytest.raises(ModelError, match=r"no such file; give package\.module:function, .* without \.py"):
        convert(f"{tmp_path}/net.py:build")


@pytest.mark.parametrize("content", [b"", b"\x00" * 50, b"hello world, this is no model", b"PK\x03\x04zip", b"{}"])
def test_not_onnx(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        convert(tmp_path / "net.onnx")


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    whole = conv_net().SerializeToString()
    for size in range(0, len(whole) - 8, 13):  # the last bytes are the opset, whose absence is caught too
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            convert(tmp_path / "cut.onnx")


def test_missing_and_short_external_data(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(conv_net(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    data = (tmp_path / "net.data").read_bytes()
    (tmp_path / "net.data").write_bytes(data[:100])
    with pytest.raises(ModelError, match=r"net\.data"):
        convert(path)
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelError, match=r"'net\.data' is missing"):
        convert(path)


def test_no_nodes(tmp_path):
    model = conv_net()
    del model.graph.node[:]
    with pytest.raises(ModelError, match="no nodes"):
        convert(saved(model, tmp_path / "net.onnx"))


def test_opsets_out_of_range(tmp_path):
    with pytest.raises(ModelError, match="has opset 6, and the oldest supported is 7; export it again"):
        convert(saved(one_node("Relu", opset=6), tmp_path / "old.onnx"))
    with pytest.raises(ModelError, match=r"has opset 999, and onnxruntime .* runs up to \d+; export it again with"):
        convert(saved(one_node("Relu", opset=999), tmp_path / "new.onnx"))
    model = one_node("Relu")
    model.ir_version = 99
    with pytest.raises(ModelError, match="has IR version 99, which onnxruntime"):
        convert(saved(model, tmp_path / "ir.onnx"))
    model = one_node("Relu")
    del model.opset_import[:]
    with pytest.raises(ModelError, match="states no opset"):
        convert(saved(model, tmp_path / "none.onnx"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            one_node("Sparkle", "my.ops", my_ops=1),
            r"node 'odd': .* has no operator 'Sparkle' in domain 'my\.ops'",
        ),
        (one_node("Convv"), "has no operator 'Convv' in the standard domain"),
        (one_node("Gelu", opset=17), "'Gelu' of the standard domain exists since opset 20, and the model has opset 17"),
    ],
)
def test_unknown_operators(tmp_path, model, said):
    with pytest.raises(ModelError, match=said):
        convert(saved(model, tmp_path / "odd.onnx"))


def test_unknown_operator_in_a_subgraph(tmp_path):
    info = helper.make_tensor_value_info
    odd = helper.make_graph(
        [helper.make_node("Sparkle", ["x"], ["t"], name="deep", domain="my.ops")], "t", [], [info("t", F, [2])]
    )
    plain = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "e", [], [info("e", F, [2])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=odd, else_branch=plain)
    inputs = [info("flag", TensorProto.BOOL, []), info("x", F, [2])]
    graph = helper.make_graph([node], "g", inputs, [info("y", F, [2])])
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    with pytest.raises(ModelError, match=r"node 'deep'.*'Sparkle'"):
        convert(saved(helper.make_model(graph, opset_imports=ids, ir_version=8), tmp_path / "odd.onnx"))


def test_wrong_types_are_reported_by_onnxruntime(tmp_path):
    model = conv_net()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int64), "w"))
    with pytest.raises(ModelError, match="does not accept it"):
        convert(saved(model, tmp_path / "net.onnx"))


def test_an_impossible_size(tmp_path):
    info = helper.make_tensor_value_info
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")
    graph = helper.make_graph([node], "g", [info("x", F, ["n"])], [info("y", F, ["m", 4])], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = saved(model, tmp_path / "net.onnx")
    assert io.outputs(convert(path, freeze={"n": 8}).model)[0].dims == (2, 4)
    with pytest.raises(InputError, match="freeze n=6: the model does not load with these sizes"):
        convert(path, freeze={"n": 6})


def test_a_failing_converter_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no adapter for Foo")

    monkeypatch.setattr(from_onnx.onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError, match=r"has opset 12, which could not be upgraded to 17 \(no adapter for Foo\)"):
        convert(saved(conv_net(12), tmp_path / "net.onnx"))


# --- parity ---


def test_a_converter_that_changes_the_result_is_detected(tmp_path, monkeypatch):
    def wrong(proto, version):
        """Takes Softmax over the last axis alone, as opset 13 does by default."""
        del version
        proto.opset_import[0].version = 17
        return proto

    monkeypatch.setattr(from_onnx.onnx.version_converter, "convert_version", wrong)
    with pytest.raises(GateError, match=r"output .y.: differs from the source by .*again with opset 17") as caught:
        convert(saved(conv_net(12), tmp_path / "net.onnx"))
    assert caught.value.exit_code == 1


@pytest.fixture
def relu():
    return ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
    )


def test_parity_figures(relu):
    got = measure(relu, lambda feed: [np.maximum(feed["x"], 0) * 1.00005], size=8)
    assert got is not None
    assert got.samples == 8
    assert got.max_rel_error == pytest.approx(0.00005 / 1.00005, rel=2e-2)
    feeds = []
    measure(relu, lambda feed: feeds.append(feed["x"].shape), size=8)
    assert {shape[0] for shape in feeds} == {1, 2, 3}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (lambda feed: [feed["x"]], "output 'y': differs from the source by"),
        (lambda feed: [np.maximum(feed["x"], 0)[:, :3]], r"has shape \[2, 4\], and in the source \[2, 3\]"),
        (lambda feed: [np.where(feed["x"] > 0, feed["x"], np.nan)], "has NaN or infinity"),
        (lambda feed: [feed["x"], feed["x"]], "has 1 outputs, and its source 2"),
    ],
)
def test_parity_refuses(relu, reference, said):
    with pytest.raises(GateError, match=said):
        measure(relu, reference, size=8)


def test_parity_refuses_a_source_that_draws_random_numbers(relu):
    with pytest.raises(ModelError, match="the source: gives two different results for one input; remove"):
        measure(relu, lambda feed: [np.random.default_rng().random(feed["x"].shape)], size=8)


def test_a_source_that_runs_on_no_input_has_no_parity(relu):
    assert measure(relu, lambda feed: None, size=8) is None


# --- files that packages carry ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name", "inputs"),
    [
        ("rapidocr-onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x.0": 1, "x.2": 48, "x.3": 192}),
        ("rapidocr-onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", {"x.0": 1, "x.2": 64, "x.3": 96}),
        ("rapidocr-onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", {"x.0": 1, "x.2": 48, "x.3": 160}),
        ("ddddocr", "common_det.onnx", {}),
        ("ddddocr", "common.onnx", {"image_width": 128}),
        ("ddddocr", "common_old.onnx", {"image_width": 128}),
    ],
)
def test_real_files(package, name, inputs):
    store = pytest.importorskip("benchmarks.models.store")
    if absent := store.missing([f"pypi/{package}"]):
        pytest.skip(f"not fetched: {', '.join(absent)} (benchmarks/fetch.sh all)")
    path = store.path(f"pypi/{package}", package.replace("-", "_"), name)
    loose = convert(path)
    assert query.opset(loose.model) == 17
    assert loose.parity is not None
    assert loose.parity.samples >= 3
    assert loose.parity.max_rel_error < 1e-4
    fixed = convert(path, freeze=inputs)
    assert fixed.parity is not None
    assert all(isinstance(dim, int) for spec in io.inputs(fixed.model) for dim in spec.dims)


@pytest.mark.slow
def test_above_two_gigabytes(tmp_path):
    """A sparse 2.2 GB weight of which one corner is read; nothing of it may pass through one message."""
    path = tmp_path / "big.onnx"
    weight = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([550_000_000]))
    offset, length = 0, 4 * 550_000_000
    with open(tmp_path / "big.data", "wb") as file:
        file.truncate(length)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    weight.const_value = ir.ExternalTensor(
        "big.data", offset, length, ir.DataType.FLOAT, shape=weight.shape, name="w", base_dir=str(tmp_path)
    )
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[n] i, float[550000000] w) => (float[n] y) {y = Gather(w, i)}'
    )
    model = ir.from_onnx_text(text)
    old = model.graph.inputs.pop(1)
    model.graph.register_initializer(weight)
    old.replace_all_uses_with(weight)
    ir.save(model, path)
    got = convert(path)
    io.save(got.model, tmp_path / "out" / "copy.onnx")
    assert (tmp_path / "out" / "copy.onnx").stat().st_size < 10_000
    feed = {"i": np.array([3, 1, 9], np.int64)}
    np.testing.assert_array_equal(run.run(run.session(tmp_path / "out" / "copy.onnx"), [feed])[0][0], [3, 1, 0])
    for file in tmp_path.rglob("*.data"):
        file.unlink()  # pytest keeps its folders for a while


def test_a_model_that_answers_in_texts_is_compared(tmp_path):
    """The upgrade of an old file is checked text by text; texts have no difference that could be a number."""
    text = """
        <ir_version: 8, opset_import: ["" : 12]>
        g (float[n, 2] x) => (string[n] y) <string[2] names = {"left", "right"}>
        {
            best = ArgMax <axis = 1, keepdims = 0> (x)
            y = Gather (names, best)
        }
    """
    got = convert(saved(onnx.parser.parse_model(text), tmp_path / "net.onnx"))
    assert got.parity is not None
    assert (got.parity.max_abs_error, got.parity.max_rel_error) == (0, 0)
    with pytest.raises(GateError, match="output 'y': has other texts than in the source"):
        measure(got.model, lambda feed: [np.full(len(feed["x"]), "up", object)], size=8)
