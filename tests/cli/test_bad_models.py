"""Bad models and samples, to every command: exit code 2, one sentence saying what, where and what to do, and nothing
written.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import QUANTIZE, samples, save_net
from onnx import TensorProto, helper

from toolchain.conversion.source import convert
from toolchain.core.errors import ToolchainError

# ------------------------------------------------------------------------------------------------ models


def altered(change):
    """The net after `change`, as bytes."""
    model = onnx.load("net.onnx")
    change(model)
    return model.SerializeToString()


def _operator(domain, name):
    def change(model):
        model.graph.node[1].domain, model.graph.node[1].op_type = domain, name
        model.opset_import.append(helper.make_opsetid(domain, 1) if domain else model.opset_import[0])

    return change


def _opset(version):
    def change(model):
        model.opset_import[0].version = version

    return change


MODELS = {
    "empty": (lambda: b"", "bad.onnx: contains no nodes or no outputs; export or copy it again"),
    "text": (lambda: b"hello world, this is no model", "bad.onnx: is not an ONNX file, or is incomplete ("),
    "cut short": (lambda: Path("net.onnx").read_bytes()[:3000], "bad.onnx: is not an ONNX file, or is incomplete ("),
    "custom operator": (
        lambda: altered(_operator("my.ops", "Swirl")),
        "has no operator 'Swirl' in domain 'my.ops'; export the model with standard operators",
    ),
    "misspelt operator": (
        lambda: altered(_operator("", "Rleu")),
        "has no operator 'Rleu' in the standard domain; ",
    ),
    "old opset": (lambda: altered(_opset(6)), "bad.onnx: has opset 6, and the oldest supported is 7; export it again"),
    "future opset": (lambda: altered(_opset(99)), "bad.onnx: has opset 99, and onnxruntime "),
}


@pytest.mark.parametrize("command", ["convert", "optimize", "inspect", "quantize", "export"])
@pytest.mark.parametrize("kind", MODELS)
def test_models(refused, workplace, kind, command):
    make, said = MODELS[kind]
    Path("bad.onnx").write_bytes(make())
    rest = {
        "inspect": "",
        "quantize": "-c samples.npz -o out.onnx",
        "export": "-t host -c samples.npz -o out",
    }.get(command, "-o out.onnx")
    assert said in refused(f"{command} bad.onnx {rest}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.onnx", "missing.onnx: no such file; give an .onnx or .pt2 file, or package.module:callable"),
        ("folder", "folder: is a folder, not an ONNX file; give the path of an .onnx file"),
        ("weights.pth", "weights.pth: holds weights, not a model; write a function that builds the module"),
        ("net.tflite", "net.tflite: is a TensorFlow file; convert it to ONNX with tf2onnx first"),
        (
            "net.onnx --input x:1x3",
            "net.onnx: states its inputs itself, so --input x does not apply; leave --input out",
        ),
        ("net.onnx --input x", "input 'x': is not of the form name:1x3x224x224[:dtype]; for example"),
        ("net.onnx --input x:1x0", "input 'x:1x0': '0' is not a dimension; write a size above 0"),
        ("net.onnx --input x:1x3:floot32", "input 'x:1x3:floot32': unknown dtype 'floot32'; did you mean 'float32'?"),
        ("net.onnx --freeze batch", "freeze 'batch': is not of the form name=size; for example batch=1"),
        ("net.onnx --freeze batch=1", "freeze batch: all axes of the model's inputs are fixed; leave it out"),
    ],
)
def test_sources(refused, workplace, source, said):
    Path("folder").mkdir()
    for name in ("weights.pth", "net.tflite"):
        Path(name).write_bytes(b"something")
    assert refused(f"convert {source} -o out.onnx").startswith(said)


@pytest.mark.parametrize(
    ("text", "source", "said"),
    [
        ("", "nowhere:net", "nowhere:net: there is no module 'nowhere' in "),
        ("def nets(): ...", "mine:net", "mine:net: mine has no 'net'; did you mean 'nets'?"),
        ("def net(): ...", "mine.py:net", "mine.py:net: is not of the form package.module:callable; write mine:net"),
        ("net = 3", "mine:net", "mine:net: is of type int and cannot be called; name a function"),
        ("def net(: ...", "mine:net", "mine:net: raised SyntaxError: "),
        (
            "1 / 0",
            "mine:net",
            "mine:net: raised ZeroDivisionError: division by zero (mine.py line 1); make ",
        ),
        ("import sys; sys.exit('bye')", "mine:net", "mine:net: raised SystemExit: bye (mine.py line 1); "),
        ("def net(): raise KeyError('w')", "mine:net", "mine:net: raised KeyError: 'w' (mine.py line 1); correct"),
        (
            "def net(): return 3",
            "mine:net",
            "mine:net: returns an object of type int, not a torch.nn.Module; return the",
        ),
    ],
)
def test_module_callables(refused, code, text, source, said):
    code(text)
    assert refused(f"convert {source} --input x:1x3 -o out.onnx").startswith(said)


def test_any_byte_may_be_damaged(tmp_path):
    """100 times one byte is changed: the model is still read, or refused in a sentence; never a traceback."""
    whole = save_net(tmp_path / "net.onnx").read_bytes()
    rng, bad = np.random.default_rng(0), tmp_path / "bad.onnx"
    outcomes, sentences = [], []
    for _ in range(100):
        data = bytearray(whole)
        # Most of the file are weights, so most of the damage is done to the structure before and behind them.
        place = int(rng.choice([rng.integers(600), len(data) - 1 - rng.integers(300), rng.integers(len(data))]))
        data[place] ^= int(rng.integers(1, 256))
        bad.write_bytes(data)
        try:
            convert(bad)
            outcomes.append(True)
        except ToolchainError as error:
            outcomes.append(False)
            sentences.append(str(error))
    assert 10 < sum(outcomes) < 90
    assert not [sentence for sentence in sentences if "\n" in sentence]


def test_a_name_that_is_no_text(refused, workplace):
    """Linux takes any bytes as a name, onnxruntime only UTF-8."""
    name = os.fsdecode(b"n\xfft.onnx")
    Path("net.onnx").rename(name)
    said = refused(f"convert -o out.onnx {name}")
    assert said == r"'n\udcfft.onnx': has a name that onnxruntime cannot open; rename the file"


def test_external_data(refused, workplace):
    onnx.save(onnx.load("net.onnx"), "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    whole = Path("ext.bin").read_bytes()
    Path("ext.bin").write_bytes(whole[:100])
    assert "its external data file 'ext.bin' has 100 bytes, and " in refused("convert ext.onnx -o out.onnx")
    Path("ext.bin").unlink()
    assert "its external data file 'ext.bin' is missing; copy it next to" in refused("convert ext.onnx -o out.onnx")
    Path("ext.onnx").write_bytes(Path("ext.onnx").read_bytes().replace(b"ext.bin", b"ext\xff\xffbin"[:7]))
    assert "the name of its external data file cannot be read" in refused("convert ext.onnx -o out.onnx")


# -------------------------------------------------------------------------------------- calibration data


def _npz(**arrays):
    return lambda: np.savez("data.npz", **arrays)


def _bytes(name, data):
    return lambda: Path(name).write_bytes(data())


def _one_bad_value(value):
    array = samples()
    array[5, 0, 0, 0] = value
    return _npz(x=array)


def _images(*, broken=False):
    def make():
        from PIL import Image

        Path("data").mkdir()
        for number in range(4):
            Image.fromarray(np.full((20, 20, 3), 60 * number, np.uint8)).save(f"data/{number}.png")
        if broken:
            Path("data/2.png").write_bytes(Path("data/2.png").read_bytes()[:50])

    return make


def _saved(array):
    np.save("saved.npy", array)
    data = Path("saved.npy").read_bytes()
    Path("saved.npy").unlink()
    return data


DATA = [
    ("missing folder", None, "nowhere", "nowhere: no such file or folder; give a folder of images, "),
    ("missing function", None, "nowhere:f", "nowhere:f: there is no module 'nowhere' in "),
    ("empty folder", lambda: Path("data").mkdir(), "data", "data: is an empty folder; put images ("),
    ("no data", _bytes("data.csv", lambda: b"1,2"), "data.csv", "data.csv: is neither a folder nor an .npz file; save"),
    ("wrong name", _npz(y=samples()), "data.npz", "data.npz: sample 0: the model has no input 'y'; choose one of: x"),
    ("one name too many", _npz(x=samples(), y=samples()), "data.npz", "data.npz: sample 0: the model has no input 'y'"),
    (
        "wrong shape",
        _npz(x=samples()[:, :2]),
        "data.npz",
        "data.npz: sample 0, input 'x': has shape [1, 2, 16, 16] where the model takes [1, 3, 16, 16]; make",
    ),
    (
        "wrong type",
        _npz(x=samples().astype(np.int32) - 9),
        "data.npz",
        "data.npz: sample 0, input 'x': is int32 where the model takes float32; convert it with .astype('float32')",
    ),
    ("NaN", _one_bad_value(np.nan), "data.npz", "data.npz: sample 5, input 'x': holds NaN (1 of 768 values); correct"),
    ("infinity", _one_bad_value(np.inf), "data.npz", "data.npz: sample 5, input 'x': holds infinity (1 of 768 values)"),
    ("no arrays", _npz(), "data.npz", "data.npz: holds no arrays; give one array for each input, stacked along"),
    ("empty archive", _bytes("data.npz", lambda: b""), "data.npz", "data.npz: cannot be read as numpy arrays ("),
    (
        "cut archive",
        _bytes("data.npz", lambda: Path("samples.npz").read_bytes()[:9000]),
        "data.npz",
        "data.npz: cannot be read as numpy arrays (",
    ),
    (
        "cut array",
        _bytes("data.npy", lambda: _saved(samples())[:20_000]),
        "data.npy",
        "data.npy: cannot be read as numpy arrays (it ends within sample 6); save it again with numpy",
    ),
    ("images as they are", _images(), "data", "data: holds images, and their preprocessing is not given; give "),
    (
        "unknown pipeline",
        _images(),
        "data --preprocess units",
        "'units' is neither a named pipeline nor a .toml file",
    ),
    ("broken image", _images(broken=True), "data --preprocess unit", "data/2.png: cannot be read as an image ("),
    ("pipeline for arrays", None, "samples.npz --preprocess unit", "samples.npz: only images are preprocessed, and "),
]


@pytest.mark.parametrize(("make", "data", "said"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_calibration_data(refused, workplace, make, data, said):
    if make is not None:
        make()
    assert refused(f"{QUANTIZE} -c {data}").startswith(said)


EARLY = [
    "missing folder", "missing function", "empty folder", "no data", "no arrays", "empty archive", "cut archive",
    "images as they are", "unknown pipeline", "pipeline for arrays",
]  # fmt: skip


@pytest.mark.parametrize("kind", EARLY)
def test_calibration_data_is_looked_at_before_the_model(refused, code, kind):
    """Converting takes minutes where the model is big: here it would fail, with another sentence."""
    make, data, said = next(rest for name, *rest in DATA if name == kind)
    code("def net(): raise AssertionError('too early')")
    if make is not None:
        make()
    assert refused(f"export mine:net --input x:1x3 -t host -o out -c {data}").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def data(): return 3",
            "mine:data: gives an object of type int, not an iterable of samples; yield",
        ),
        ("def data(): return []", "mine:data: gives no samples; yield a few hundred dictionaries of arrays"),
        (
            "def data(): yield 3",
            "mine:data: sample 0: is of type int, not a dictionary from input name to array; yield",
        ),
        ("def data(): yield {'z': 3}", "mine:data: sample 0: the model has no input 'z'; choose one of: x"),
        (
            "def data():\n  yield 1 / 0",
            "mine:data: sample 0: raised ZeroDivisionError: division by zero (mine.py line 2)",
        ),
    ],
)
def test_calibration_functions(refused, code, text, said):
    code(text)
    assert refused(f"{QUANTIZE} -c mine:data").startswith(said)


def test_a_sample_the_model_cannot_run(refused, workplace):
    """The shapes fit, the values do not; and no int8 node asks for the tensors behind."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3])],
        [onnx.numpy_helper.from_array(np.zeros((10, 3), np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    ids = np.zeros((8, 2), np.int64)
    ids[4, 0] = 10
    np.savez("ids.npz", x=ids)
    said = refused(f"{QUANTIZE} -c ids.npz")
    assert said.startswith("ids.npz: sample 4: onnxruntime cannot run the model on it (Gather node.")
    assert "ONNXRuntimeError" not in said
